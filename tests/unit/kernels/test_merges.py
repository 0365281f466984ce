"""The merge kernels against a formula of another kind, and wrong arguments, which never reach C."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import COMPILED

from nola_codec.kernels import Library
from nola_codec.kernels.loading import load
from nola_codec.kernels.merges import DTYPES, PackedFactors, add_deltas, add_factors, multiply_factors, word_sums

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
FORMS = {"BF16": (8, -133, 2.0**128), "F16": (11, -24, 65536.0), "F32": (24, -149, 2.0**128)}
"""Bits of the significand, exponent of the smallest number, and the number where infinity begins."""


@pytest.fixture(params=COMPILED)
def lib(request: pytest.FixtureRequest) -> Library:
    library = load(request.param).library
    assert library is not None
    return library


def values_of(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64)


def stored_as(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    """Values that the dtype has, as it stores them."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(DTYPES[dtype])


def rounded(value: float, dtype: str) -> float:
    """The nearest number of a dtype, ties to even, by exact fractions; infinity if there is none."""
    if dtype == "F64" or value == 0:
        return value
    bits, least, limit = FORMS[dtype]
    exact = Fraction(abs(value))
    unit = Fraction(2) ** max(math.frexp(abs(value))[1] - bits, least)
    nearest = float(round(exact / unit) * unit)  # round() of a fraction takes ties to even
    return float(np.copysign(nearest if nearest < limit else np.inf, value))


def random_weights(rng: np.random.Generator, dtype: str, shape: tuple[int, int], kind: str) -> npt.NDArray[Any]:
    if kind == "patterns":
        width = np.dtype(DTYPES[dtype]).itemsize
        return rng.integers(0, 256, (*shape, width), dtype=np.uint8).view(DTYPES[dtype]).reshape(shape)
    sizes = np.exp2(rng.integers(-30, 10, shape)) if kind == "sizes" else 0.02
    return stored_as(rng.standard_normal(shape) * sizes, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["patterns", "sizes", "plain"])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 200),
    rank=st.integers(0, 9),
    peak=st.sampled_from([3, 2000, 32768]),
    exponent=st.integers(-60, -10),
    sign=st.sampled_from([1.0, -1.0]),
    scaling=st.sampled_from([1.0, 0.3, -1.7]),
    seed=st.integers(0, 1 << 32),
)
@pytest.mark.parametrize("variant", COMPILED)
def test_sums_are_rounded_once(
    variant: str, dtype: str, kind: str, rows: int, columns: int, rank: int, peak: int, exponent: int, sign: float,
    scaling: float, seed: int,
) -> None:  # fmt: skip
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(seed)
    left, right = (rng.integers(-peak, peak, shape).astype(np.int16) for shape in ((rows, rank), (rank, columns)))
    weights = random_weights(rng, dtype, (rows, columns), kind)
    factor = sign * 2.0**exponent
    delta = (left.astype(np.int64) @ right.astype(np.int64)).astype(np.float64) * factor * scaling
    bound = float((np.abs(left.astype(np.int64)) @ np.abs(right.astype(np.int64))).max(initial=0))
    packed = PackedFactors(left, right, bound)
    assert packed.is_wide == (bound >= 2**31 - 1)
    assert np.array_equal(multiply_factors(lib, packed, 0, rows, factor, scaling), delta)
    with np.errstate(all="ignore"):
        sums = values_of(weights, dtype) + (delta + 0.0)
    wanted = np.array([rounded(s, dtype) if np.isfinite(s) else np.nan for s in sums.reshape(-1).tolist()])
    finite = np.isfinite(wanted)
    for each in ("factors", "wide factors", "deltas"):
        added = weights.copy()
        if each == "deltas":
            left_alone = add_deltas(lib, added, delta)
        else:
            packed.is_wide = packed.is_wide or each == "wide factors"
            left_alone = add_factors(lib, added, packed, 0, factor, scaling)
        assert sorted(left_alone) == np.flatnonzero(~finite).tolist()
        assert added.reshape(-1)[left_alone].tobytes() == weights.reshape(-1)[left_alone].tobytes()
        assert added.reshape(-1)[finite].tobytes() == stored_as(wanted[finite], dtype).tobytes()


def test_rows_in_the_middle(lib: Library) -> None:
    rng = np.random.default_rng(1)
    left, right = rng.integers(-99, 99, (9, 3)).astype(np.int16), rng.integers(-99, 99, (3, 70)).astype(np.int16)
    packed = PackedFactors(left, right, 30_000.0)
    weights = np.zeros((4, 70), np.float32)
    assert not add_factors(lib, weights, packed, 2, 0.5, 1.0).size
    assert np.array_equal(weights, left[2:6].astype(np.float32) @ right.astype(np.float32) / 2)


def test_the_largest_products_of_int32_and_beyond(lib: Library) -> None:
    for left_value, right_value, rank in (
        (-32768, 32767, 2),
        (32767, 32767, 2),
        (-32768, -32768, 2),
        (-32768, -32768, 99),
    ):
        left, right = np.full((3, rank), left_value, np.int16), np.full((rank, 65), right_value, np.int16)
        exact = left_value * right_value * rank
        found = multiply_factors(lib, PackedFactors(left, right, float(abs(exact))), 0, 3, 1.0, 1.0)
        assert (found == exact).all()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 4097])
def test_sums_of_words(lib: Library, count: int) -> None:
    words = np.random.default_rng(count).integers(0, 1 << 64, count, dtype=np.uint64)
    exact = [int(word) for word in words]
    assert word_sums(lib, words) == (
        sum(exact) % (1 << 64),
        sum((i + 1) * word for i, word in enumerate(exact)) % (1 << 64),
    )


def test_wrong_arguments_are_refused(lib: Library) -> None:
    left, right = np.ones((4, 2), np.int16), np.ones((2, 8), np.int16)
    packed = PackedFactors(left, right, 2.0)
    for wrong in (
        (left.astype(np.int32), right, 2.0),
        (left, right[:1], 2.0),
        (left, right, 2.0**53),
        (left[0], right, 2.0),
    ):
        with pytest.raises(ValueError, match="kernel"):
            PackedFactors(*wrong)
    for weights, start in (
        (np.zeros((4, 8), np.int32), 0), (np.zeros((4, 9), np.float32), 0), (np.zeros((4, 8), np.float32), 1),
        (np.zeros((4, 8), np.float32), -1), (np.zeros((8, 4), np.float32).T, 0), (np.zeros(8, np.float32), 0),
        (np.zeros((4, 8), ">f4"), 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="kernel"):
            add_factors(lib, weights, packed, start, 1.0, 1.0)
    locked = np.zeros((4, 8), np.float32)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="kernel"):
        add_factors(lib, locked, packed, 0, 1.0, 1.0)
    with pytest.raises(ValueError, match="kernel"):
        multiply_factors(lib, packed, 2, 5, 1.0, 1.0)
    for weights, deltas in ((np.zeros((4, 8)), np.zeros((4, 7))), (np.zeros((4, 8)), np.zeros((4, 8), np.float32))):
        with pytest.raises(ValueError, match="kernel"):
            add_deltas(lib, weights, deltas)
    with pytest.raises(ValueError, match="kernel"):
        word_sums(lib, np.zeros(4, np.int64))  # type: ignore[arg-type]
