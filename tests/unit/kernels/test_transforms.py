"""The compiled kernels and NumPy give the same integers, and wrong arguments never reach C."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_paths import COMPILED

from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, Hadamard
from nola_codec.basis.hadamard import block_and_passes
from nola_codec.kernels.loading import load
from nola_codec.kernels.transforms import (
    SideForm,
    VectorPools,
    synthesize_hadamard,
    synthesize_hadamard_sides,
)
from nola_codec.prng import PHILOX, SIGNS, SIGNS_SECOND, packed_signs, subset
from nola_codec.quant.scales import scale_to_int16

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
LENGTHS = [*range(1, 131), 576, 1000, 1536, 4096, 11008, 12288, 40960, 50257, 3 * (1 << 16)]


def by_numpy(q: Any, n: int, key: BasisKey, scales: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The integers of the NumPy path: int64 (vectors, n)."""
    monkeypatch.setenv("NOLA_KERNELS", "off")
    made = Hadamard().synthesize(q[None], n, (key,), int(np.abs(q.astype(np.int64)).max(initial=1)), NUMPY)[0]
    monkeypatch.undo()
    if scales is None:
        return made.astype(np.int64)
    return scale_to_int16(made, scales[0][:, None], scales[1][:, None], NUMPY)


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_hadamard_and_scaling_are_those_of_numpy(variant: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(3)
    for n in LENGTHS:
        k, vectors = max(1, round(share * n)), int(rng.integers(1, 4))
        dtype, peak = [("int8", 127), ("int16", 30_000), ("int32", 100_000)][n % 3]
        key = BasisKey(PHILOX, int(rng.integers(1 << 62)), int(rng.integers(1 << 31)))
        q = rng.integers(-peak, peak + 1, (vectors, k)).astype(dtype)
        plan = block_and_passes(n)
        own = {"seed": key.seed, "stream": key.stream}
        signs = tuple(packed_signs(key.generator, **own, purpose=SIGNS + i, count=n) for i in range(plan[1]))
        places = None if k == n else subset(key.generator, **own, population=n, size=k, xp=NUMPY)
        for scales in (None, (rng.integers(1, 1 << 16, vectors), rng.integers(1, 63, vectors))):
            made = synthesize_hadamard(lib, q, n, plan, signs, places, scales)
            assert made.dtype == (np.int32 if scales is None else np.int16)
            assert np.array_equal(made, by_numpy(q, n, key, scales, monkeypatch)), (n, k, scales)


def random_sides(rng: np.random.Generator, n: int) -> tuple[VectorPools, list[SideForm], Any]:
    """Five sides of vectors of n elements from two pools, as rows or as columns, and the form of each."""
    pools = [rng.integers(-127, 128, (9, n)).astype(np.int8), rng.integers(-30_000, 30_000, (9, n)).astype(np.int16)]
    forms = [SideForm(n, block_and_passes(n), 1, True), SideForm(n, block_and_passes(n), 3, True),
             SideForm(n, block_and_passes(n), 3, False)]  # fmt: skip
    numbers = np.array([1, 2, 0, 1, 2])
    counts = np.array([3, 2, 1, 0, rng.integers(0, 4)])
    return VectorPools(pools, np.array([0, 1, 0, 1, 1]), np.array([0, 0, 3, 2, 2]), counts), forms, numbers


@pytest.mark.parametrize("variant", COMPILED)
def test_sides_of_several_bases_are_those_of_numpy(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(4)
    for n in LENGTHS:
        given, forms, numbers = random_sides(rng, n)
        seed, streams = (1 << 64) - 1 - n, (1 << 31) + np.arange(5)
        total = int(given.counts.sum())
        scales = (rng.integers(1, 1 << 16, total), rng.integers(1, 63, total))
        sizes = np.array([forms[number].components * n for number in numbers.tolist()])
        places = sizes.cumsum() - sizes + 1  # the array has an element before the sides
        out = np.full(int(sizes.sum()) + 1, 7, np.int16)
        synthesize_hadamard_sides(lib, given, forms, numbers, seed, streams, (SIGNS, SIGNS_SECOND), scales, places, out)
        assert out[0] == 7
        done = 0
        for side, number in enumerate(numbers.tolist()):
            count, row = int(given.counts[side]), int(given.rows[side])
            wanted = np.zeros((forms[number].components, n), np.int16)
            own = given.pools[int(given.numbers[side])][row : row + count]
            part = slice(done, done + count)
            if count:
                key = BasisKey(PHILOX, seed, int(streams[side]))
                wanted[:count] = by_numpy(own, n, key, (scales[0][part], scales[1][part]), monkeypatch)
            done += count
            if forms[number].is_columns:
                wanted = wanted.T
            made = out[places[side] : places[side] + sizes[side]].reshape(wanted.shape)
            assert np.array_equal(made, wanted), (n, side)


@pytest.mark.parametrize(
    "change",
    [
        {"pools": [np.ones((2, 64), np.int64)]},
        {"pools": [np.ones((2, 63), np.int8)]},
        {"owners": np.array([1])},
        {"rows": np.array([1])},
        {"counts": np.array([3])},
        {"numbers": np.array([1])},
        {"plan": (48, 1)},
        {"seed": 1 << 64},
        {"streams": np.array([1 << 32])},
        {"places": np.array([1])},
        {"scales": (np.ones(1, np.int64), np.ones(1, np.int64))},
        {"out": np.zeros(128, np.int32)},
    ],
)
def test_wrong_arguments_of_sides_are_refused(change: dict[str, Any]) -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    two = np.array([2])
    right: dict[str, Any] = {"pools": [np.ones((2, 64), np.int8)], "owners": two - 2, "rows": two - 2, "counts": two,
                             "numbers": two - 2, "plan": (64, 1), "seed": 0, "streams": two, "places": two - 2,
                             "scales": (np.ones(2, np.int64), np.ones(2, np.int64)),
                             "out": np.zeros(128, np.int16)}  # fmt: skip

    def call(a: dict[str, Any]) -> None:
        pools = VectorPools(a["pools"], a["owners"], a["rows"], a["counts"])
        form = SideForm(64, a["plan"], 2, False)
        synthesize_hadamard_sides(
            lib, pools, [form], a["numbers"], a["seed"], a["streams"], (SIGNS, SIGNS_SECOND), a["scales"], a["places"],
            a["out"],
        )  # fmt: skip

    call(right)
    assert abs(right["out"]).reshape(2, 64).tolist() == [[32, *[0] * 63]] * 2
    with pytest.raises(ValueError, match="a kernel was given"):
        call({**right, **change})


@pytest.mark.parametrize("variant", COMPILED)
@given(y=st.lists(st.integers(-(1 << 31) + 1, (1 << 31) - 1), min_size=1, max_size=40), mantissa=st.integers(1, 65535),
       shift=st.integers(1, 62))  # fmt: skip
def test_scaling_is_exact_over_the_whole_range(variant: str, y: list[int], mantissa: int, shift: int) -> None:
    """With blocks of one element and no sign bits the kernel only scales."""
    lib = load(variant).library
    assert lib is not None
    q = np.array([y], np.int32)
    none = np.zeros(len(y) // 32 + 2, np.uint32)
    scales = (np.array([mantissa]), np.array([shift]))
    made = synthesize_hadamard(lib, q, len(y), (1, 1), (none,), None, scales)[0]
    wanted = [min(32767, max(-32768, (v * mantissa + (1 << (shift - 1))) >> shift)) for v in y]
    assert made.tolist() == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"coefficients": np.zeros((2, 64), np.int64)},
        {"coefficients": np.zeros((2, 63), np.int8)},
        {"coefficients": np.zeros(64, np.int8)},
        {"plan": (0, 1)},
        {"plan": (48, 1)},
        {"plan": (64, 3)},
        {"plan": (128, 2)},
        {"signs": ()},
        {"signs": (np.zeros(3, np.uint32),)},
        {"signs": (np.zeros(4, np.int32),)},
        {"places": np.arange(63)},
        {"places": np.arange(1, 65)},
        {"places": np.arange(-1, 63)},
        {"scales": (np.ones(1, np.int64), np.ones(2, np.int64))},
        {"scales": (np.zeros(2, np.int64), np.ones(2, np.int64))},
        {"scales": (np.full(2, 1 << 16), np.ones(2, np.int64))},
        {"scales": (np.ones(2, np.int64), np.full(2, 63))},
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any]) -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    right: dict[str, Any] = {"coefficients": np.ones((2, 64), np.int8), "n": 64, "plan": (64, 1),
                             "signs": (np.zeros(4, np.uint32),)}  # fmt: skip
    assert synthesize_hadamard(lib, **right).tolist() == [[64, *[0] * 63]] * 2
    with pytest.raises(ValueError, match="a kernel was given"):
        synthesize_hadamard(lib, **{**right, **change})
