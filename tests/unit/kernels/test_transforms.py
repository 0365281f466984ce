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
from nola_codec.kernels.transforms import synthesize_hadamard, synthesize_hadamard_bases
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


@pytest.mark.parametrize("variant", COMPILED)
def test_several_bases_at_once_are_those_of_numpy(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(4)
    for n in LENGTHS:
        counts = rng.integers(0, 4, 5).tolist()
        peaks = {"int8": 127, "int16": 30_000, "int32": 100_000}
        q = [rng.integers(-peaks[d], peaks[d] + 1, (count, n)).astype(d)
             for d, count in zip(rng.choice(list(peaks), len(counts)), counts, strict=True)]  # fmt: skip
        keys = [((1 << 64) - 1 - i, (1 << 31) + i) for i in range(len(counts))]
        ends = np.cumsum(counts)
        for scales in (None, (rng.integers(1, 1 << 16, ends[-1]), rng.integers(1, 63, ends[-1]))):
            made = synthesize_hadamard_bases(lib, q, n, block_and_passes(n), keys, (SIGNS, SIGNS_SECOND), scales)
            assert made.dtype == (np.int32 if scales is None else np.int16)
            for own, key, end in zip(q, keys, ends.tolist(), strict=True):
                part = slice(end - len(own), end)
                scale = None if scales is None else (scales[0][part], scales[1][part])
                wanted = by_numpy(own, n, BasisKey(PHILOX, *key), scale, monkeypatch) if len(own) else own
                assert np.array_equal(made[part], wanted), (n, key, scales)


@pytest.mark.parametrize(
    "change",
    [
        {"coefficients": [np.ones((2, 64), np.int64)]},
        {"coefficients": [np.ones((2, 63), np.int8)]},
        {"coefficients": [np.ones((2, 64), np.int8)] * 2},
        {"plan": (48, 1)},
        {"keys": [(1 << 64, 0)]},
        {"keys": [(0, 1 << 32)]},
        {"scales": (np.ones(1, np.int64), np.ones(1, np.int64))},
    ],
)
def test_wrong_arguments_of_several_bases_are_refused(change: dict[str, Any]) -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    right: dict[str, Any] = {"coefficients": [np.ones((2, 64), np.int8)], "n": 64, "plan": (64, 1),
                             "keys": [(0, 0)], "purposes": (SIGNS, SIGNS_SECOND)}  # fmt: skip
    assert abs(synthesize_hadamard_bases(lib, **right)).tolist() == [[64, *[0] * 63]] * 2
    with pytest.raises(ValueError, match="a kernel was given"):
        synthesize_hadamard_bases(lib, **{**right, **change})


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
