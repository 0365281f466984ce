"""`encode --fit activations` and `--importance`, on a language model of two layers made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Run = Callable[..., Any]
SIZE = "1200B"


def test_fit_activations(run: Run, trained: Path, base: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.nola"
    options = ["--fit", "activations", "--base", base, "--calibration", text, "--calibration-rows", 6]
    done = run("encode", trained, "-o", out, "--size", SIZE, *options, "--json")
    assert (done.status, done.err) == (0, "")
    assert 0 < done.json["activation_error"] < 1
    assert all(t["activation_error"] >= 0 for t in done.json["tensors"])
    assert run("verify", out).status == 0
    plain = run("encode", trained, "-o", tmp_path / "b.nola", "--size", SIZE)
    assert plain.status == 0
    assert "\nactivations " not in plain.out
    assert out.read_bytes() != (tmp_path / "b.nola").read_bytes()
    shown = run("encode", trained, "-o", out, "-n", "--size", SIZE, *options, "-f")
    assert "\nactivations  0." in shown.out
    assert run("inspect", out, "--json").json["measured"]["activation_error"] == done.json["activation_error"]


def test_a_calibration_that_the_adapter_does_not_fit(
    run: Run, adapter: Path, trained: Path, base: Path, text: Path, tmp_path: Path
) -> None:
    options = ["-o", tmp_path / "a.nola", "--size", SIZE, "--fit", "activations", "--calibration", text]
    done = run("encode", adapter, *options, "--base", base)
    assert done.status == 3
    assert "q_proj: expected linear of shape (64, 48), found Linear (48, 48)" in done.err
    assert "[calibration-module]" in done.err
    missing = run("encode", trained, *options, "--base", tmp_path / "nowhere")
    assert (missing.status, missing.err.split("[")[-1]) == (3, "calibration-model]\n")
    config = tmp_path / "classifier"
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}')
    other = run("encode", trained, *options, "--base", config)
    assert other.status == 3
    assert "expected a causal language model, found BertForSequenceClassification" in other.err
    assert not list(tmp_path.glob("*.nola"))


def test_a_taken_output_is_noticed_before_the_model_is_loaded(run: Run, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.nola"
    out.write_bytes(b"mine")
    done = run("encode", adapter, "-o", out, "--fit", "activations", "--base", "/nowhere", "--calibration", "/nowhere")
    assert done.status == 2
    assert "-f overwrites it" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "activations"], "--fit activations needs --base and --calibration"),
        (["--fit", "activations", "--base", "m"], "--fit activations needs --calibration"),
        (["--base", "m", "--calibration", "t"], "--calibration serves --fit activations"),
        (["--calibration", "t", "--calibration-rows", "3"], "--calibration and --calibration-rows serve --fit"),
        (["--fit", "activations", "--base", "m", "--calibration", "t", "--nmse", ".1"], "leave out nmse"),
    ],
)  # fmt: skip
def test_options_without_their_partners(
    options: list[str], message: str, run: Run, adapter: Path, tmp_path: Path
) -> None:
    done = run("encode", adapter, "-o", tmp_path / "a.nola", *options)
    assert done.status == 2
    assert message in done.err


def test_importance(run: Run, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text('{"*.v_proj": 10}')
    save_file({"nope": np.ones(1, np.float32)}, tmp_path / "i.safetensors")
    out = tmp_path / "a.nola"
    plain = run("encode", adapter, "-o", out, "-n", "--size", "700B", "--json").json
    done = run("encode", adapter, "-o", out, "--size", "700B", "--importance", tmp_path / "i.json", "--json")
    assert done.status == 0, done.err
    for before, after in zip(plain["tensors"], done.json["tensors"], strict=True):
        assert (after["nmse"] < before["nmse"]) == before["name"].endswith("v_proj")
    refused = run("encode", adapter, "-o", out, "-f", "--importance", tmp_path / "i.safetensors")
    assert refused.status == 3
    assert "the adapter does not have: nope [importance]" in refused.err
