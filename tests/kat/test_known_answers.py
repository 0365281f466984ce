"""Known answers of Random123, of PyTorch, and of the reference decoder for long bases, in NumPy and in PyTorch.

Those of the conformance kit are in `test_answers_of_the_kit.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.model.tensors import Draw, DrawMethod
from nola_codec.prng import PHILOX
from nola_codec.prng.draws import draw_tensor
from nola_codec.prng.philox import philox4x32
from nola_codec.stores.dtypes import to_float64

HERE = Path(__file__).parent
LENGTHS = {1, 2, 3, 7, 36, 97, 576, 11008, 50257}


@pytest.fixture(scope="module", params=["numpy", "torch"])
def xp(request: pytest.FixtureRequest) -> Arrays:
    """Each array library."""
    return NUMPY if request.param == "numpy" else TorchArrays()


def answers(name: str) -> list[dict[str, Any]]:
    """A known-answer file."""
    made: list[dict[str, Any]] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return made


def check(found: npt.NDArray[Any], wanted: dict[str, Any]) -> None:
    """Compare whole, or by the SHA-256 of little-endian int64."""
    if "values" in wanted:
        assert found.tolist() == wanted["values"]
    else:
        assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == wanted["sha256"]


def published() -> list[list[int]]:
    """The 32-bit words of each line of Random123's file: a counter, a key, and what philox4x32-10 makes of them."""
    lines = (HERE / "random123.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[:2] for row in rows] == [["philox4x32", "10"]] * 3
    return [[int(word, 16) for word in row[2:]] for row in rows]


@pytest.mark.parametrize("numbers", published())
def test_random123(xp: Arrays, numbers: list[int]) -> None:
    counter = tuple(xp.asarray(np.array([n, n, 0])) for n in numbers[:4])
    made = philox4x32(counter, (numbers[4], numbers[5]))  # type: ignore[arg-type]
    for position in (0, 1):
        assert [int(xp.numpy(word)[position]) for word in made] == numbers[6:]


@pytest.mark.parametrize("wanted", answers("bases.json"), ids=lambda w: f"{w['basis']}-{w['n']}-{w['k']}")
def test_bases(xp: Arrays, wanted: dict[str, Any]) -> None:
    n, k = wanted["n"], wanted["k"]
    key = BasisKey(PHILOX, wanted["seed"], wanted["stream"])
    last = (np.arange(k) == k - 1).astype(np.int32)
    mixed = (np.arange(k) * 7919 % 15 - 7).astype(np.int32)
    made = basis_by_id(wanted["basis"]).synthesize(xp.asarray(np.stack([last, mixed])[None]), n, (key,), 7, xp)
    row, synthesis = xp.numpy(made)[0]
    check(row, wanted["last_row"])
    check(synthesis, wanted["synthesis"])


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_draws_of_pytorch(kernels: str) -> None:
    """Drawn once by PyTorch without and with fused multiply-add; both are made here on any machine."""
    wanted = answers(f"torch-{kernels}.json")
    method: DrawMethod = "uniform" if kernels == "plain" else "uniform-fused"
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    assert {a["dtype"] for a in wanted} == set(names)
    for a in wanted:
        bounds = [float(np.float32(a[end])) for end in ("low", "high")]
        draw = Draw((a["count"],), (names[a["dtype"]],), method, 24, a["seed"] & 0xFFFFFFFF, a["start"], 0, *bounds)
        made = draw_tensor(draw)
        assert to_float64(made)[:3].tolist() == a["first"], a
        assert hashlib.sha256(made.data).hexdigest() == a["sha256"], a


def test_long_bases_are_there() -> None:
    bases = answers("bases.json")
    assert {(w["basis"], w["n"]) for w in bases} == {(basis, n) for basis in (1, 2, 3) for n in LENGTHS}
    assert any(w["k"] < w["n"] for w in bases if w["basis"] == 1)


def test_the_two_kinds_of_kernels_differ() -> None:
    pairs = list(zip(answers("torch-plain.json"), answers("torch-fused.json"), strict=True))
    assert {(a["kernels"], b["kernels"]) for a, b in pairs} == {("DEFAULT", "AVX512")}
    differing = [a["dtype"] for a, b in pairs if a["sha256"] != b["sha256"]]
    assert "float32" in differing
