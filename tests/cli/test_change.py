"""`encode-delta`: the change of a whole model, from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Run = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """(tuned, base): four matrices, norms, embeddings; one matrix is left as it was."""
    rng = np.random.default_rng(0)
    base = {"model.embed_tokens.weight": rng.standard_normal((50, 64))}
    for layer in range(2):
        base[f"model.layers.{layer}.up.weight"] = rng.standard_normal((96, 64))
        base[f"model.layers.{layer}.down.weight"] = rng.standard_normal((64, 96))
        base[f"model.layers.{layer}.norm.weight"] = np.ones(64)
    base = {name: value.astype(np.float32) for name, value in base.items()}
    tuned = {n: v + rng.standard_normal(v.shape).astype(np.float32) * np.float32(0.01) for n, v in base.items()}
    tuned["model.layers.1.down.weight"] = base["model.layers.1.down.weight"]
    paths = tmp_path / "tuned", tmp_path / "base"
    for path, tensors in zip(paths, (tuned, base), strict=True):
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return paths


def test_there_and_back(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    tuned, base = models
    done = run("encode-delta", tuned, "--base", base, "-o", tmp_path / "c.nola", "--nmse", "0.1", "--rank", 4, "--json")
    assert done.status == 0, done.err
    assert done.json["nmse"] <= 0.1
    assert done.json["parameters"] == 3 * 96 * 64 + 2 * 64
    assert any("embed_tokens.weight is left out" in note for note in done.json["notes"])
    shown = run("inspect", tmp_path / "c.nola", "--tensors")
    assert "dialect         delta" in shown.out
    assert "3 deltas, 5 vectors" in shown.out
    assert re.search(r"64 +vector +1 +64  (model\.layers\.)?0\.norm\.weight\.diff", shown.out)
    assert run("verify", tmp_path / "c.nola").status == 0
    assert run("decode", tmp_path / "c.nola", "--base", base, "-o", tmp_path / "merged").status == 0
    assert run("decode", tmp_path / "c.nola", "-o", tmp_path / "d.safetensors").status == 0
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    deltas = load_file(tmp_path / "d.safetensors")
    assert len(deltas) == 5
    for name, value in before.items():
        if name + ".diff" in deltas:
            assert np.allclose(after[name], value + deltas[name + ".diff"], atol=1e-6)
        else:
            assert np.array_equal(after[name], value)


def test_options_reach_the_encoder(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    tuned, base = models

    def names(*options: object) -> set[str]:
        file = tmp_path / "c.nola"
        done = run("encode-delta", tuned, "--base", base, "-o", file, "-f", "--nmse", "0.2", *options)
        assert done.status == 0, done.err
        return {t["name"] for t in run("inspect", file, "--tensors", "--json").json["tensors"]}

    assert names("--no-residue", "--include", "layers.0") == {
        "model.layers.0.up.weight", "model.layers.0.down.weight", "model.layers.0.norm.weight.diff",
    }  # fmt: skip
    assert names("--rank", 0, "--exclude", "norm|layers.1") == {
        "model.layers.0.up.weight.diff", "model.layers.0.down.weight.diff",
    }  # fmt: skip
    assert "model.embed_tokens.weight.diff" in names("--embeddings")


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("encode", ["--embeddings"], "No such option '--embeddings'"),
        ("encode-delta", ["--base", "b", "--num-basis", "9"], "No such option '--num-basis'"),
        ("encode-delta", [], "Missing option '--base'"),
        ("encode-delta", ["--base", "b", "--nmse", "0.1", "--ratio", "9"], "Give only one of --ratio, --nmse"),
    ],
)
def test_senseless_mixtures(
    run: Run, adapter: Path, tmp_path: Path, command: str, options: list[str], message: str
) -> None:
    done = run(command, adapter, "-o", tmp_path / "c.nola", *options)
    assert done.status == 2
    assert message in done.err


def test_an_adapter_is_no_model(run: Run, adapter: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("encode-delta", adapter, "--base", models[1], "-o", tmp_path / "c.nola")
    assert done.status == 3
    assert "this is an adapter" in done.err
