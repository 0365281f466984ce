"""Tables and verdicts as they stand on a screen of 80 columns, and in a pipe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.api.inspecting import ORDERS
from nola_codec.rendering import render_row

Run = Callable[..., Any]
LONG = "down_blocks.{}.attentions.{}.transformer_blocks.0.attn1.processor.to_{}_lora"


@pytest.fixture(scope="module")
def nola(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ten weights with long names, of which the first half is far stronger, and a carried tensor."""
    rng = np.random.default_rng(3)
    tensors = {"head.weight": rng.standard_normal((8, 96)).astype(np.float32)}
    for i, layer in enumerate((10, 2)):
        for j in range(5):
            name = LONG.format(layer, j, "qk"[j % 2])
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((4, 96)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((96, 4)).astype(np.float32) * (0.02 if i else 1)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "all", "modules_to_save": ["head"]}
    path = tmp_path_factory.mktemp("tables") / "long.nola"
    nola_codec.encode(tensors, path, config=config, error=0.2)
    return path


def shown_names(table: str) -> list[str]:
    return [line.split()[-1] for line in table.splitlines() if "_lora" in line]


def test_a_screen_of_80_columns_takes_every_line(
    run: Run, nola: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nola.parent)
    piped = run("inspect", nola.name, "--tensors").out
    assert max(map(len, piped.splitlines())) > 80  # one line for each tensor, for grep and others
    monkeypatch.setattr("nola_codec.cli.inspect.screen_width", lambda stream: 80)
    screen = run("inspect", nola.name, "--tensors").out
    assert max(map(len, screen.splitlines())) <= 80
    whole = [tensor.name for tensor in nola_codec.inspect(nola).tensors]
    common = re.search(r"all names begin with (.*)", piped)
    start = common[1] if common else ""
    for out in (piped, screen):
        assert [start + name for name in shown_names(out.split("\n\n")[1])] == whole[:-1]


def test_the_worst_delta_has_a_line_for_its_name(nola: Path) -> None:
    same = nola_codec.compare(nola, nola)
    name = same.tensors[0].name
    assert len(name) > 65
    assert f"\nworst    0\n  {name}" in str(same)
    short = replace(same, tensors=(replace(same.tensors[0], name="q_proj"),))
    assert "\nworst    0  q_proj" in str(short)


def test_an_error_on_a_screen_is_broken_between_words(nola: Path) -> None:
    """In a real terminal: the message of 110 characters takes several lines, and piped one."""
    import pty
    import subprocess
    import sys

    command = [sys.executable, "-m", "nola_codec", "inspect", str(nola), "--limits", "tensors=1"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    piped = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60).stderr
    main, side = pty.openpty()
    with subprocess.Popen(command, stderr=side, env=environment) as process:
        process.wait(60)
    os.close(side)
    shown = os.read(main, 10_000).decode().replace("\r\n", "\n")
    os.close(main)
    assert piped.count("\n") == 1
    assert " ".join(shown.split()) == " ".join(piped.split())
    assert max(map(len, shown.splitlines())) < 80


def test_orders_of_tensors(run: Run, nola: Path) -> None:
    facts = nola_codec.inspect(nola)
    tables = {order: shown_names(facts.tensor_table(order)) for order in ORDERS}
    assert all(sorted(names) == sorted(tables["file"]) for names in tables.values())
    assert [re.search(r"(\d+)\.att", name)[1] for name in tables["name"]] == ["2"] * 5 + ["10"] * 5  # type: ignore[index]
    rows = [line.split() for line in facts.tensor_table("coefficients").splitlines() if "_lora" in line]
    counts = [int(row[3].replace(",", "")) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    kept = [int(line.split()[2]) for line in facts.tensor_table("kept").splitlines() if "_lora" in line]
    assert kept == sorted(kept)
    listed = run("inspect", nola, "--tensors", "--sort", "kept").out.split("\n\n")[1]
    assert listed == facts.tensor_table("kept")
    with pytest.raises(nola_codec.NolaError, match="order: expected file, name, coefficients, kept, found 'size'"):
        facts.tensor_table("size")


@pytest.mark.parametrize("options", [["--sort", "name"], ["--tensors", "--json", "--sort", "name"]], ids=str)
def test_an_order_without_a_table_is_refused(options: list[str], run: Run, nola: Path) -> None:
    done = run("inspect", nola, *options)
    assert (done.status, "--sort is the order of the table of --tensors" in done.err) == (2, True)


def test_sums_by_module_type_are_those_of_the_tensors(run: Run, nola: Path) -> None:
    facts = nola_codec.inspect(nola)
    table = run("inspect", nola, "--tensors").out.split("\n\n")[2].splitlines()
    assert table[0].split() == ["tensors", "kept", "coefficients", "share", "carried", "module", "type"]
    rows = [line.split() for line in table[1:] if "_lora" in line]
    assert sum(int(row[0]) for row in rows) == 10
    assert sum(int(row[1]) for row in rows) == sum(tensor.units or 0 for tensor in facts.tensors)
    assert sum(int(row[2].replace(",", "")) for row in rows) == facts.coefficients
    assert sum(float(row[3].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)
    assert any(line.endswith("head.weight") and " KB " in line for line in table)


def test_a_size_and_its_unit_stay_on_one_line() -> None:
    assert render_row("bytes", "carried 538.8 KB", 8, 21) == "bytes   carried\n        538.8 KB"
