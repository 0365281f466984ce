"""Calls that a type checker must accept, and calls that it must refuse; `test_typing.py` runs mypy on this file.

A line that must be refused ends in a `type: ignore` with the error's code. mypy warns of one that silences nothing, so
a mistake that is no longer noticed fails the test.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import nola_codec


def calls_that_are_right(lora_config: Any) -> None:
    """Every kind of option, source and target."""
    report = nola_codec.encode("lora", "a.nola", size="50KB", progressive=True, rungs=["10KB", 30_000])
    size: int = report.bytes
    nola_codec.encode(b"", BytesIO(), config={"r": 4}, nmse=0.1, seed=size, block_size="24KiB")
    nola_codec.encode(BytesIO(), config=lora_config, num_basis=50, bits=4, basis="rademacher", shared_basis=True)
    nola_codec.encode("lora", ratio=100, objective="effective", rank=4, thorough=True, importance={"*": 1.0})
    data, _ = nola_codec.encode_bytes("lora", error=0.02, fit="weights", entropy=("raw", "rans"))
    nola_codec.encode_delta("tuned", "base", "d.nola", ratio=32, rank=8, residue=False, include=["mlp"])
    points = nola_codec.sweep("lora", sizes=["5KB", 10_000], rank=4).points
    with nola_codec.load("a.nola", "numpy") as arrays, nola_codec.load("a.nola", "cuda") as tensors:
        names: list[str] = [arrays.digest, arrays.state_dict()["a"].dtype.name, tensors.factors("a")[0].device.type]
    with nola_codec.safe_open("a.nola", framework="np") as one, nola_codec.safe_open("a.nola") as other:
        names += [one.get_tensor("a").dtype.name, other.get_slice("a")[0].device.type]
    nola_codec.encode({"a": tensors.factors("a")[0]}, config=lora_config, size=len(names))
    shown: str = str(nola_codec.inspect(data)) + str(points[0].nmse)
    assert shown


def calls_that_are_wrong() -> None:
    """Misspelt names, and values of a wrong type."""
    nola_codec.encode("lora", nsme=0.1)  # type: ignore[call-arg]
    nola_codec.encode("lora", nmse="small")  # type: ignore[arg-type]
    nola_codec.encode("lora", size=[1])  # type: ignore[arg-type]
    nola_codec.encode("lora", objective="mse")  # type: ignore[arg-type]
    nola_codec.encode("lora", generator="mt19937")  # type: ignore[call-arg]
    nola_codec.encode(3.5)  # type: ignore[arg-type]
    print(nola_codec.load("a.nola", "numpy").state_dict()["a"].requires_grad)  # type: ignore[attr-defined]
    nola_codec.encode_bytes("lora", passthrough=True)  # type: ignore[call-arg]
    nola_codec.encode_delta("tuned", "base", num_basis=9)  # type: ignore[call-arg]
    nola_codec.encode_delta("tuned", "base", rank="all")  # type: ignore[arg-type]
    nola_codec.sweep("lora", size=1000)  # type: ignore[call-arg]
    nola_codec.sweep("lora", peers=False)  # type: ignore[call-arg]
    nola_codec.inspect("a.nola")["bytes"]  # type: ignore[index]
    print(nola_codec.inspect("a.nola").factors_sha256)  # type: ignore[attr-defined]
