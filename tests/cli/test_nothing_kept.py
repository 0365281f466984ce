"""What a user is told of files that are too small to hold any part of an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Run = Callable[..., Any]


def smallest(run: Run, adapter: Path) -> int:
    """Return the bytes of the names and the configuration of the adapter."""
    refusal = run("encode", adapter, "-n", "--size", "20B").err
    found = re.search(r"alone take (\d+) bytes; allow more \[unreachable\]", refusal)
    assert found is not None, refusal
    return int(found[1])


def test_encode_refuses_and_names_a_sensible_size(run: Run, adapter: Path, tmp_path: Path) -> None:
    size, out = smallest(run, adapter) + 5, tmp_path / "x.nola"
    for target in (("--size", f"{size}B"), ("--ratio", 2 * 1544 / size)):
        refused = run("encode", adapter, "-o", out, *target)
        assert refused.status == 3
        assert re.search(r"nothing of the deltas; the smallest sensible size is about [\d,]+ bytes", refused.err)
        assert not out.exists()
    (sensible,) = re.findall(r"about ([\d,]+) bytes", refused.err)
    report = run("encode", adapter, "-o", out, "--size", f"{sensible.replace(',', '')}B", "--json").json
    assert any(tensor["kept"] for tensor in report["tensors"])
    assert report["effective_error"] < 0.5


def test_a_file_by_the_nmse_is_compared_with_no_task(run: Run, adapter: Path) -> None:
    refused = run("encode", adapter, "-n", "--size", f"{smallest(run, adapter) + 5}B", "--objective", "nmse")
    assert re.search(r"about [\d,]+ bytes, with which a file has an NMSE of 0\.\d\d; allow more", refused.err)
    assert "measured on all tasks" not in refused.err


def test_sweep_and_encode_many_say_so_too(run: Run, adapter: Path, tmp_path: Path) -> None:
    size = f"{smallest(run, adapter) + 5}B"
    swept = run("sweep", adapter, "--sizes", f"{size},1500B")
    assert swept.out.splitlines()[1].endswith("none")
    assert "none: size" in swept.out
    assert "nothing of the deltas" in swept.out
    many = run("encode-many", adapter, "-o", tmp_path / "files", "--size", size, "--workers", 1, "-q")
    assert many.status == 1
    assert "nothing of the deltas" in many.out


def test_a_file_with_carried_tensors_alone_has_a_verdict(run: Run, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    head = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    save_file({**load_file(path), "base_model.model.score.weight": head}, path)
    refusal = run("encode", adapter, "-n", "--size", "20B", "--carry-unknown").err
    (least,) = re.findall(r"alone take (\d+) bytes", refusal)
    done = run("encode", adapter, "-n", "--size", f"{int(least) + 3}B", "--carry-unknown")
    assert done.status == 0
    assert done.out.splitlines()[0].endswith("it holds carried tensors alone, and nothing of the adapter's deltas")
    assert "large loss" not in done.out
