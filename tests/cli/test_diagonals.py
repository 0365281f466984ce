"""A VeRA on the command line: what is said of matrices that take no bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nola_codec.model.tensors import Draw
from nola_codec.prng.draws import draw_tensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.safetensors_writer import dump

Run = Callable[..., Any]


@pytest.fixture
def vera(tmp_path: Path) -> Path:
    """Two layers of 24 outputs and 40 inputs, rank 8, made without PEFT."""
    rng = np.random.default_rng(0)
    bounds = [float(np.float32(np.sqrt(3.0) * (np.sqrt(2) / np.sqrt(n)))) for n in (40, 8)]
    tensors = {
        "base_model.vera_A": draw_tensor(Draw((8, 40), ("F32",), "uniform", 24, 5, 0, 0, -bounds[0], bounds[0])),
        "base_model.vera_B": draw_tensor(Draw((24, 8), ("F32",), "uniform", 24, 5, 320, 0, -bounds[1], bounds[1])),
    }
    for layer in range(2):
        key = f"base_model.model.layers.{layer}.q_proj.vera_lambda_"
        tensors[key + "b"] = from_float32(rng.standard_normal(24).astype(np.float32), "F32")
        tensors[key + "d"] = from_float32(rng.standard_normal(8).astype(np.float32), "F32")
    directory = tmp_path / "vera"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(dump(tensors, {"format": "pt"}))
    config = {"peft_type": "VERA", "r": 8, "projection_prng_key": 5, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def test_exact(run: Run, vera: Path, tmp_path: Path) -> None:
    done = run("encode", vera, "-o", tmp_path / "a.nola")
    assert done.status == 0, done.err
    assert "the diagonals are carried exact" in done.err
    shown = run("inspect", tmp_path / "a.nola", "--tensors").out
    assert "4 carried as they came, 2 drawn again from a seed" in shown
    assert "seed 5" in next(row for row in shown.splitlines() if "vera_A" in row)
    facts = run("inspect", tmp_path / "a.nola", "--tensors", "--json").json
    assert [t["method"] for t in facts["tensors"] if t["record"] == "drawn"] == ["uniform", "uniform"]
    assert "6 tensors" in run("verify", tmp_path / "a.nola").out
    assert run("compare", vera, tmp_path / "a.nola", "--max-nmse", "0").status == 0
    assert run("decode", tmp_path / "a.nola", "-o", tmp_path / "out").status == 0
    out, source = ((path / "adapter_model.safetensors").read_bytes() for path in (tmp_path / "out", vera))
    assert out == source


def test_with_a_rate(run: Run, vera: Path, tmp_path: Path) -> None:
    done = run("encode", vera, "-o", tmp_path / "a.nola", "--nmse", "0.05", "--json")
    assert done.json["nmse"] <= 0.05
    assert run("compare", vera, tmp_path / "a.nola", "--max-nmse", "0.05").status == 0
    assert run("compare", vera, tmp_path / "a.nola", "--max-nmse", "0.000001").status == 1
    shown = run("sweep", vera, "--sizes", "700,1KB")
    assert shown.status == 0, shown.err
    assert run("encode", vera, "-o", tmp_path / "b.nola", "--objective", "effective").status == 2
    assert run("sweep", vera, "--sizes", "1KB", "--objective", "effective").status == 2
