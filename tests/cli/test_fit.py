"""`encode --fit` and `--importance`: what is refused before any work, and the bytes that an importance moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Run = Callable[..., Any]


@pytest.mark.parametrize(
    "options",
    [
        ["--fit", "activations"],
        ["--fit", "activations", "--base", "m", "--calibration", "t"],
        ["--base", "m", "--calibration-rows", "3"],
    ],
)
def test_the_fit_that_is_gone_names_the_one_to_take(
    options: list[str], run: Run, adapter: Path, tmp_path: Path
) -> None:
    done = run("encode", adapter, "-o", tmp_path / "a.nola", *options)
    assert done.status == 2
    assert "--fit activations and its --calibration are gone" in done.err
    assert "Give --fit task --data self" in done.err


def test_an_unknown_fit(run: Run, adapter: Path, tmp_path: Path) -> None:
    done = run("encode", adapter, "-o", tmp_path / "a.nola", "--fit", "gradients")
    assert done.status == 2
    assert "'gradients' is not one of 'weights', 'task'" in done.err


def test_a_taken_output_is_noticed_before_the_model_is_loaded(run: Run, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.nola"
    out.write_bytes(b"mine")
    done = run("encode", adapter, "-o", out, "--fit", "task", "--base", "/nowhere", "--data", "/nowhere")
    assert done.status == 2
    assert "-f overwrites it" in done.err


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
