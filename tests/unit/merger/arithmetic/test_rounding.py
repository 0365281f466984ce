"""Rows added fast: the bits of one float64 sum and one rounding, for every kind of number there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic import rounding
from nola_codec.merger.arithmetic.deltas import FactorDelta, NegativeDelta, WeightedSum, factor_delta
from nola_codec.merger.arithmetic.float32 import elements, float32_product
from nola_codec.merger.arithmetic.rounding import add_rows
from nola_codec.model.records import CodedKind, coded_sides
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dense:
    """A delta that is simply there."""

    values: Float64
    bound: float = np.inf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Float64:
        return self.values[start:stop].copy()


def wanted(raw: RawTensor, delta: Float64) -> bytes:
    """The definition, by scalar-free float64 and `from_float64`, which test_dtypes checks against exact fractions."""
    with np.errstate(all="ignore"):
        return from_float64(to_float64(raw) + (delta + 0.0), raw.dtype).data


def added(raw: RawTensor, delta: Any) -> bytes:
    data = bytearray(raw.data)
    add_rows(memoryview(data), raw.dtype, delta, 0, raw.shape[0] if raw.shape else 1)
    return bytes(data)


def patterns(dtype: str) -> Float64:
    """Every finite 16-bit number."""
    bits = np.arange(1 << 16, dtype="<u2")
    values = to_float64(RawTensor(dtype, bits.shape, bits.tobytes()))
    return values[np.isfinite(values)]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_number_and_what_lies_around_its_midpoints(dtype: str) -> None:
    """For every number, deltas that bring the sum to a midpoint, a hair beside one, or far away."""
    values = patterns(dtype)
    above = np.nextafter(values.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    ordered = np.sort(values)
    following = ordered[np.minimum(np.searchsorted(ordered, values, "right"), len(ordered) - 1)]
    middle = (values + following) / 2
    tiny = np.abs(values) * 2.0**-52 + 2.0**-1000
    deltas = [
        middle - values, middle - values + tiny, middle - values - tiny, above - values, -values, -values + 2.0**-149,
        np.zeros_like(values), -np.zeros_like(values), np.full_like(values, 1e-3), np.full_like(values, -(2.0**-140)),
        0.3 * values, -1.001 * values,
    ]  # fmt: skip
    for delta in deltas:
        keep = np.abs(values + delta) < np.abs(values).max()
        part = from_float64(values[keep], dtype)
        assert added(part, Dense(delta[keep])) == wanted(part, delta[keep])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 0.02, 1.0, 300.0])
def test_random_numbers_of_every_size(dtype: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "TILE", 1 << 12)
    rng = np.random.default_rng(5)
    for ratio in (1e-12, 1e-4, 0.02, 1.0, 50.0, 1e6):
        weights = rng.standard_normal((40, 999)) * scale / (ratio if ratio > 1 else 1)
        raw = from_float64(weights, dtype)
        delta = rng.standard_normal((40, 999)) * scale * min(ratio, 1.0)
        assert added(raw, Dense(delta)) == wanted(raw, delta)
        assert added(raw, Dense(delta, bound=float(np.abs(delta).max()))) == wanted(raw, delta)


def count_exact(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements each call of the exact way takes, from now on."""
    slow: list[int] = []
    real = rounding._exact_sum

    def counted(values: Any, *more: Any) -> Any:
        slow.append(values.size)
        return real(values, *more)

    monkeypatch.setattr(rounding, "_exact_sum", counted)
    return slow


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_most_elements_take_the_fast_way(dtype: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    raw = from_float64(rng.standard_normal((64, 1024)) * 0.02, dtype)
    delta = rng.standard_normal((64, 1024)) * 0.0004
    slow = count_exact(monkeypatch)
    assert added(raw, Dense(delta)) == wanted(raw, delta)
    assert 0 < sum(slow) < delta.size / 20 if path == "off" else not slow


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("delta", [1e39, 3.4e38, 65520.0, 1e300])
def test_an_overflow_is_refused(dtype: str, delta: float) -> None:
    top = {"BF16": 3.3895e38, "F16": 65504.0, "F32": 3.4028e38}[dtype]
    raw = from_float64(np.array([[1.0, top]]), dtype)
    total = to_float64(raw) + delta
    with np.errstate(over="ignore"):
        fits = np.isfinite(total.astype(np.float16 if dtype == "F16" else np.float32)).all() and dtype != "BF16"
    if fits or (dtype == "BF16" and delta == 65520.0):
        assert added(raw, Dense(np.full((1, 2), delta))) == wanted(raw, np.full((1, 2), delta))
        return
    with pytest.raises(AdapterError) as e:
        added(raw, Dense(np.full((1, 2), delta)))
    assert e.value.code == "overflow"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_infinities_and_nan_stay(dtype: str) -> None:
    raw = from_float64(np.array([np.inf, -np.inf, np.nan, 1.0, -0.0, 0.0]), dtype)
    delta = np.array([1.0, -1.0, 2.0, 0.5, -0.0, -0.0])
    assert added(raw, Dense(delta)) == wanted(raw, delta)
    assert added(raw, Dense(delta))[-2 * (len(raw.data) // 6) :] == bytes(2 * (len(raw.data) // 6))  # -0 + 0 = +0


def test_factors_are_exact_whatever_the_rows() -> None:
    rng = np.random.default_rng(7)
    for layout, transposed, scaling in itertools.product(("linear", "embedding"), (False, True), (2.0, 0.3, -0.5)):
        sides = coded_sides([(50, 7), (7, 90)])
        kind = CodedKind("#", "F32", 1, sides, layout=layout, scaling=scaling, fan_in_fan_out=transposed)
        lora_B = rng.integers(-32768, 32768, (50, 7)).astype(np.int16)
        lora_A = rng.integers(-32768, 32768, (7, 90)).astype(np.int16)
        lora_B[:, 3] = 0
        swapped = (layout == "embedding") != transposed
        shape = (90, 50) if swapped else (50, 90)
        delta = factor_delta(DecodedRecord((lora_B, lora_A), (-20, -21)), kind, NUMPY, shape, transposed=transposed)
        exact = (lora_B.astype(np.int64) @ lora_A.astype(np.int64)).astype(np.float64) * 2.0**-41 * scaling
        exact = exact.T if swapped else exact
        assert np.array_equal(delta.rows(0, shape[0]), exact)
        for start, stop in ((0, 1), (3, 11), (49, 50)):
            assert np.array_equal(delta.rows(start, stop), exact[start:stop])
        assert np.abs(exact).max() <= delta.bound
        both = WeightedSum([(delta, 0.7), (NegativeDelta(delta), 0.1)])
        assert np.array_equal(both.rows(2, 9), exact[2:9] * 0.7 + -exact[2:9] * 0.1)
        assert np.abs(both.rows(0, 50)).max() <= both.bound


def test_a_delta_of_nothing_changes_no_bit_but_a_negative_zero() -> None:
    delta = FactorDelta(np.zeros((4, 0), np.int16), np.zeros((0, 6), np.int16), 1.0, 1.0, (4, 6), 0.0)
    raw = from_float64(np.arange(24.0).reshape(4, 6) * 1e-3, "BF16")
    assert added(raw, delta) == raw.data


def low_rank(
    left: npt.NDArray[Any], right: npt.NDArray[Any], exponent: int = 0, scaling: float = 1.0
) -> tuple[FactorDelta, Float64]:
    """A delta, and what it is by integers."""
    rows, rank, columns = left.shape[0], left.shape[1], right.shape[1]
    kind = CodedKind("#", "F32", 1, coded_sides([(rows, rank), (rank, columns)]), scaling=scaling)
    lora_B, lora_A = left.astype(np.int16), right.astype(np.int16)
    factors = DecodedRecord((lora_B, lora_A), (exponent // 2, exponent - exponent // 2))
    product = (lora_B.astype(np.int64) @ lora_A.astype(np.int64)).astype(np.float64)
    return (
        factor_delta(factors, kind, NUMPY, (rows, columns), transposed=False),
        product * 2.0**exponent * scaling,
    )


def random_factors(rng: np.random.Generator, rows: int, rank: int, columns: int, kind: str) -> tuple[Any, Any]:
    """int16 factors: Gaussian, all near the ends, or of terms that cancel but for a little."""
    if kind == "gaussian":
        left, right = (rng.standard_normal(shape) * 7000 for shape in ((rows, rank), (rank, columns)))
        return np.clip(left, -32767, 32767), np.clip(right, -32767, 32767)
    left = rng.integers(32000, 32768, (rows, rank))
    right = rng.integers(32000, 32768, (rank, columns))
    if kind == "cancelling":
        left[:, 1::2] = -left[:, 0 : rank - rank % 2 : 2]
        right[1::2] = right[0 : rank - rank % 2 : 2] + rng.integers(-1, 2, right[1::2].shape)
    return left, right


def neighbours(raw: RawTensor, step: int) -> RawTensor:
    """The numbers whose patterns are `step` away."""
    patterns = np.frombuffer(raw.data, "<u2").astype(np.int64)
    magnitudes = np.clip((patterns & 0x7FFF) + step, 0, 0x7B00 if raw.dtype == "F16" else 0x7E00)
    return RawTensor(raw.dtype, raw.shape, (magnitudes | patterns & 0x8000).astype("<u2").tobytes())


def adversaries(exact: Float64, dtype: str, rng: np.random.Generator) -> list[RawTensor]:
    """Weights that cancel a delta, nearly or wholly, that bring it near midpoints, and of several sizes."""
    typical = float(np.abs(exact).mean())
    with np.errstate(all="ignore"):
        rounded = to_float64(from_float64(exact, dtype))
        following = to_float64(neighbours(from_float64(exact, dtype), 1))
        found = [from_float64(-exact * k, dtype) for k in (1, 1 + 2.0**-9, 0.5, 2)]
        found += [neighbours(found[0], step) for step in (-1, 1)]
        found += [from_float64((rounded + following) / 2 - exact, dtype), from_float64(np.zeros_like(exact), dtype)]
        for size in (1e-3, 0.3, 1.0, 30.0, 1e4):
            found.append(from_float64(np.clip(rng.standard_normal(exact.shape) * size * typical, -3e4, 3e4), dtype))
    return found


@pytest.mark.parametrize("rank", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("kind", ["gaussian", "extreme", "cancelling"])
def test_products_in_float32_give_the_same_bits(
    rank: int, dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "TILE", 1 << 12)
    rng = np.random.default_rng(rank)
    left, right = random_factors(rng, 12, rank, 600, kind)
    slow = count_exact(monkeypatch)
    sizes = [-24, -36, -48] if dtype == "F16" else [-24, -38, -90, 20]
    for exponent, scaling in itertools.product(sizes, (1.0, -0.3)):
        delta, exact = low_rank(left, right, exponent, scaling)
        for raw in adversaries(exact, dtype, rng):
            try:
                expected = wanted(raw, exact)
            except AdapterError:
                with pytest.raises(AdapterError):
                    added(raw, delta)
                continue
            slow.clear()
            assert added(raw, delta) == expected
        if kind == "gaussian" and exponent == sizes[1]:
            assert sum(slow) < exact.size / 20  # weights far above the delta: hardly any in doubt


@pytest.mark.parametrize("rank", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("kind", ["gaussian", "extreme", "cancelling"])
def test_a_float32_product_is_within_its_bound(rank: int, kind: str) -> None:
    rng = np.random.default_rng(rank + 1)
    left, right = random_factors(rng, 40, rank, 300, kind)
    other_left, other_right = random_factors(rng, 40, 5, 300, "gaussian")
    for exponent, scaling in itertools.product((-80, -30, 0, 50), (1.0, 0.3, 1e-3)):
        delta, exact = low_rank(left, right, exponent, scaling)
        other, other_exact = low_rank(other_left, other_right, exponent, -0.7)
        both = WeightedSum(
            [(delta, 0.6), (NegativeDelta(other), 1.0), (NegativeDelta(WeightedSum([(other, 1.7)])), 0.9)]
        )
        total = exact * 0.6 + -other_exact + -(other_exact * 1.7) * 0.9
        rows, columns = rng.integers(0, 40, 3000), rng.integers(0, 300, 3000)
        for each, values in ((delta, exact), (NegativeDelta(delta), -exact), (both, total)):
            product = float32_product(each, 3, 31)
            assert product is not None
            error = np.abs((product.left @ product.right).astype(np.float64) - values[3:31])
            assert 0 < product.error < (rank + 12) * 2.0**-24 * each.bound * 1.01
            assert error.max() <= product.error
            assert np.array_equal(elements(each, rows, columns), values[rows, columns])
            assert np.array_equal(elements(each, rows, columns), each.rows(0, 40)[rows, columns])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("rank", [1, 9, 17, 65])
def test_ties_of_products(dtype: str, rank: int) -> None:
    """Sums exactly on a midpoint and one unit of the product beside it, among terms that cancel."""
    rng = np.random.default_rng(8)
    bits = {"BF16": 7, "F16": 10}[dtype]
    weights = np.arange(1 << bits, 2 << bits, dtype=np.float64)[: 1 << bits]  # every significand, spacing 1
    columns = weights.size
    left, right = np.zeros((3, rank), np.int64), np.zeros((rank, columns), np.int64)
    left[:, 0] = 1
    right[0] = (2 * rng.integers(-12, 13, columns) + 1) << 9  # odd halves, in units of 2^-10
    left[:, 1::2] = rng.integers(-32767, 32768, (3, rank // 2))
    left[:, 2::2] = -left[:, 1::2]
    right[1::2] = rng.integers(-32767, 32768, (rank // 2, columns))
    right[2::2] = right[1::2]
    for beside, sign, exponent in itertools.product((-1, 0, 1), (-1, 1), (0, -6, 3)):
        near = right.copy()
        near[0] += beside
        delta, exact = low_rank(left, near, exponent - 10)
        raw = from_float64(np.broadcast_to(sign * weights, (3, columns)) * 2.0**exponent, dtype)
        assert np.array_equal(exact, np.broadcast_to(near[0] * 2.0 ** (exponent - 10), (3, columns)))
        assert added(raw, delta) == wanted(raw, exact)


@pytest.mark.parametrize(("exponent", "scaling"), [(-170, 1.0), (-150, 0.3), (-250, 1e-30), (90, 1.0), (60, 1e-300)])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_deltas_near_the_ends_of_float32(exponent: int, scaling: float, dtype: str) -> None:
    rng = np.random.default_rng(9)
    delta, exact = low_rank(*random_factors(rng, 12, 16, 500, "gaussian"), exponent, scaling)
    assert float32_product(delta, 0, 12) is None
    smallest = 2.0**-133 if dtype == "BF16" else 2.0**-24
    for size in (smallest, 1000 * smallest, 1.0):
        raw = from_float64(rng.standard_normal(exact.shape) * size, dtype)
        try:
            expected = wanted(raw, exact)
        except AdapterError:
            with pytest.raises(AdapterError):
                added(raw, delta)
        else:
            assert added(raw, delta) == expected


def test_subnormal_weights_and_ends_of_the_range_with_products() -> None:
    """Every finite 16-bit number, beside infinities and NaN in other tiles."""
    rng = np.random.default_rng(10)
    for dtype in ("BF16", "F16"):
        values = np.tile(patterns(dtype), 8).reshape(8, -1)
        ratio = 1e-4 if dtype == "F16" else 1e-38
        for exponent in (-34, -50) if dtype == "F16" else (-34, -99, -115):
            left, right = random_factors(rng, 8, 8, values.shape[1], "gaussian")
            delta, exact = low_rank(left, right, exponent)
            small = values * (np.abs(values) < 60000 if dtype == "F16" else 1)
            raw = from_float64(small, dtype)
            assert added(raw, delta) == wanted(raw, exact)
            raw = from_float64(np.where(np.abs(values) < ratio, values, 0), dtype)
            assert added(raw, delta) == wanted(raw, exact)
            special = to_float64(raw)
            special[2, 5], special[3, 9], special[7, -1] = np.inf, np.nan, -np.inf
            raw = from_float64(special, dtype)
            assert added(raw, delta) == wanted(raw, exact)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["BF16", "F16"]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 1200)),
    kind=st.sampled_from(["gaussian", "extreme", "cancelling"]),
    exponent=st.integers(-60, -30),
    scaling=st.floats(0.01, 100),
    weights=st.lists(st.floats(-3, 3), max_size=2),
    ratio=st.floats(-9, 9),
    seed=st.integers(0, 1 << 32),
)
def test_any_low_rank_sum_gives_the_bits_of_the_definition(
    dtype: str,
    shape: tuple[int, int, int],
    kind: str,
    exponent: int,
    scaling: float,
    weights: list[float],
    ratio: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    rows, rank, columns = shape
    delta, exact = low_rank(*random_factors(rng, rows, rank, columns, kind), exponent, scaling)
    total: Any = delta
    if weights:
        terms = [(NegativeDelta(delta) if weight < -1 else delta, weight) for weight in weights]
        total = WeightedSum([(delta, 1.0), *terms])
        for term, weight in terms:
            exact = exact + (-delta.rows(0, rows) if isinstance(term, NegativeDelta) else delta.rows(0, rows)) * weight
    size = 10.0**ratio * float(np.abs(exact).mean())
    raw = from_float64(np.clip(rng.standard_normal(exact.shape) * size, -3e4, 3e4), dtype)
    limit = np.abs(exact).max()
    if limit < 3e4:
        assert added(raw, total) == wanted(raw, exact)
        first = int(rng.integers(0, rows))
        part = bytearray(raw.data[first * columns * 2 :])
        add_rows(memoryview(part), dtype, total, first, rows)
        assert bytes(part) == wanted(raw, exact)[first * columns * 2 :]
