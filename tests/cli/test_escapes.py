"""Names that strangers gave may hold what a terminal obeys; it is printed as an escape, on every path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nola_codec.cli.messages import echo
from nola_codec.cli.output import print_json
from nola_codec.rendering import escape

Run = Callable[..., Any]
ODD = "q\x1b[2J\x9b1mx\x07\u202e\ny\x7f\U000e0041"
"""An escape that wipes the screen, one in a single character, a bell, a change of direction, a new line, a tag."""


def write(folder: Path, name: str = ODD, change: float = 0.0) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    tensors = {}
    for module in ("base_model.model.v_proj", f"base_model.model.{name}"):
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((2, 32)).astype(np.float32) + np.float32(change)
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((32, 2)).astype(np.float32)
    tensors[f"base_model.model.{name}.bias"] = np.ones(3, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt", name: name})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": "all", "base_model_name_or_path": name}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def calm(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_every_command_writes_escapes_out(run: Run, tmp_path: Path) -> None:
    adapter, other, file = write(tmp_path / "a"), write(tmp_path / "b", change=0.1), tmp_path / "a.nola"
    commands: list[tuple[int, list[Any]]] = [
        (0, ["encode", adapter, "-o", file, "--carry-unknown"]),
        (0, ["inspect", file]),
        (0, ["inspect", file, "--tensors"]),
        (0, ["inspect", file, "--tensors", "--json"]),
        (0, ["verify", file]),
        (0, ["encode", other, "-o", tmp_path / "b.nola", "--carry-unknown"]),
        (1, ["compare", file, tmp_path / "b.nola", "--per-tensor", "--max-nmse", "1e-9"]),
        (0, ["compare", file, file, "--json"]),
        (3, ["compare", adapter, file]),
        (0, ["sweep", adapter, "--sizes", "3KB", "--carry-unknown"]),
        (0, ["decode", file, "-o", tmp_path / "back"]),
        (3, ["encode", adapter, "-n"]),  # an unknown tensor
        (3, ["decode", file, "-o", tmp_path / "model", "--base", adapter]),
        (3, ["decode", file, "-o", tmp_path / "back.gguf", "--format", "gguf"]),
        (3, ["inspect", tmp_path / f"no{ODD}.nola"]),
        (2, ["encode", tmp_path / f"no{ODD}", "-n", "--prompts", "a", "--data", ODD]),
        (2, [f"no{ODD}"]),
        (0, ["encode-many", adapter, other, "-o", tmp_path / "many", "--carry-unknown", "--quiet"]),
    ]  # fmt: skip
    for status, arguments in commands:
        done = run(*arguments)
        assert done.status == status, (arguments, done.err)
        assert calm(done.out), (arguments, done.out)
        assert calm(done.err), (arguments, done.err)
    shown = run("inspect", file, "--tensors").out
    assert escape(ODD) in shown
    facts = run("inspect", file, "--tensors", "--json").json
    assert any(ODD in tensor["name"] for tensor in facts["tensors"])
    assert facts["base_model"] == ODD


@pytest.mark.parametrize("value", [ODD, "\ud800", "\x80", "é 你 😀", "a\\u0041"])
def test_json_says_the_same_with_escapes(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"value": value, value: [value]})
    printed = capsys.readouterr().out
    assert calm(printed)
    assert json.loads(printed) == {"value": value, value: [value]}
    assert ("é" in printed) == ("é" in value)


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\nb\x1b[1m\tc")
    assert capsys.readouterr().out == "a\nb\\x1b[1m\tc\n"
