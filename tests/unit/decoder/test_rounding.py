"""Rows added fast: the bits of one float64 sum and one rounding, for every kind of number there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nola_codec.adapters.dtypes import from_float64, to_float64
from nola_codec.arrays import NUMPY
from nola_codec.decoder import rounding
from nola_codec.decoder.deltas import FactorDelta, Negative, WeightedSum, factor_delta
from nola_codec.decoder.factors import Factors
from nola_codec.decoder.rounding import add_rows
from nola_codec.errors import AdapterError
from nola_codec.model import LowRankKind, RawTensor

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


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_most_elements_take_the_fast_way(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    raw = from_float64(rng.standard_normal((64, 1024)) * 0.02, dtype)
    delta = rng.standard_normal((64, 1024)) * 0.0004
    slow: list[int] = []
    real = rounding._exact

    def counted(values: Any, *more: Any) -> Any:
        slow.append(values.size)
        return real(values, *more)

    monkeypatch.setattr(rounding, "_exact", counted)
    assert added(raw, Dense(delta)) == wanted(raw, delta)
    assert 0 < sum(slow) < delta.size / 20


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
        kind = LowRankKind("#", layout, (50, 7), (7, 90), scaling, transposed, "F32", 1, "component", (50, 90))
        lora_B = rng.integers(-32768, 32768, (50, 7)).astype(np.int16)
        lora_A = rng.integers(-32768, 32768, (7, 90)).astype(np.int16)
        lora_B[:, 3] = 0
        swapped = (layout == "embedding") != transposed
        shape = (90, 50) if swapped else (50, 90)
        delta = factor_delta(Factors(lora_B, lora_A, (-20, -21)), kind, NUMPY, shape, transposed=transposed)
        exact = (lora_B.astype(np.int64) @ lora_A.astype(np.int64)).astype(np.float64) * 2.0**-41 * scaling
        exact = exact.T if swapped else exact
        assert np.array_equal(delta.rows(0, shape[0]), exact)
        for start, stop in ((0, 1), (3, 11), (49, 50)):
            assert np.array_equal(delta.rows(start, stop), exact[start:stop])
        assert np.abs(exact).max() <= delta.bound
        both = WeightedSum([(delta, 0.7), (Negative(delta), 0.1)])
        assert np.array_equal(both.rows(2, 9), exact[2:9] * 0.7 + -exact[2:9] * 0.1)
        assert np.abs(both.rows(0, 50)).max() <= both.bound


def test_a_delta_of_nothing_changes_no_bit_but_a_negative_zero() -> None:
    delta = FactorDelta(np.zeros((4, 0), np.int16), np.zeros((0, 6)), 1.0, 1.0, (4, 6), 0.0)
    raw = from_float64(np.arange(24.0).reshape(4, 6) * 1e-3, "BF16")
    assert added(raw, delta) == raw.data
