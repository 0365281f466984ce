"""Deltas of weights, a few rows at a time: the same bits everywhere, and never whole in memory.

A merge needs only the shape of a delta and its rows in float64. `RowDelta` says so. The other classes are its kinds:

    FactorDelta      left @ right * 2^exponent * scaling      a LoRA pair
    VectorDelta      values * 2^exponent                      a vector record
    OrderedProduct   left @ right * scaling, in order         VeRA, FourierFT and their like
    ComputedDelta    whatever a function returns              LoHa, LoKr
    StackedDelta     [delta_0, delta_1, ...]                  the experts of one tensor
    WeightedSum      w_0 delta_0 + w_1 delta_1 + ...          several files
    NegativeDelta    -delta                                   undoing a merge
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.arrays import Arrays
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.kernels import library
from nola_codec.kernels.merges import PackedFactors, multiply_factors
from nola_codec.model.records import CodedKind


class RowDelta(Protocol):
    """The change of one stored weight, D, of any shape.

    `rows` gives the same bits for a row on every machine and in whatever range it is asked for. So an implementation
    may use integers below 2^53 in float64, whose sums are exact in any order, and elementwise IEEE operations in a
    fixed order. It is called from several threads at once. The array that it returns belongs to the caller, who
    overwrites it. The sign of a zero does not matter.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as stored."""

    @property
    def bound(self) -> float:
        """An upper bound of max |D|, or infinity if none is known. It serves speed alone."""

    def rows(self, start: int, stop: int) -> Float64Array:
        """Return rows start..stop of the first dimension, float64 (stop - start, *shape[1:]).

        A scalar has one row, which is returned in the shape ().
        """


_PANEL = 1 << 15
"""Elements that are summed at once; they and their terms fit into the cache of a core."""


@dataclass(frozen=True)
class FactorDelta:
    """A LoRA pair: fl((left @ right) * factor * scaling), where left @ right is a product of integers and exact.

    Attributes:
        left: int16 (rows, r).
        right: int16 (r, columns).
        factor: 2^exponent, times the scaling if that is a power of two too. Multiplying by it is exact.
        scaling: The scaling that is not a power of two, applied with one rounding; 1 if there is none.
        shape: The shape of the weight; its rows are those of `left`.
        peak: An upper bound of sum_k |left_ik| |right_kj|.
    """

    left: npt.NDArray[np.int16]
    right: npt.NDArray[np.int16]
    factor: float
    scaling: float
    shape: tuple[int, ...]
    peak: float

    @property
    def bound(self) -> float:
        """See `RowDelta`. It is one of sum_k |left_ik| |right_kj| |factor scaling| too."""
        return 1.0001 * abs(self.factor * self.scaling) * self.peak  # a little more for the roundings

    @functools.cached_property
    def packed(self) -> PackedFactors:
        """The factors as the compiled kernels read them."""
        return PackedFactors(self.left, self.right, self.peak)

    @functools.cached_property
    def right_float64(self) -> Float64Array:
        """The right factor in float64 (r, columns)."""
        return self.right.astype(np.float64)

    @functools.cached_property
    def right_float32(self) -> npt.NDArray[np.float32]:
        """The right factor in float32 (r, columns), exact."""
        return self.right.astype(np.float32)

    @functools.cached_property
    def columns_first(self) -> npt.NDArray[np.int16]:
        """The right factor transposed, int16 (columns, r)."""
        return np.ascontiguousarray(self.right.T)

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        lib = library()
        if lib is not None:
            rows = multiply_factors(lib, self.packed, start, stop, self.factor, self.scaling)
            return rows.reshape(stop - start, *self.shape[1:])
        left = self.left[start:stop].astype(np.float64)
        # Exact here as well as after the product: the sums are integers below 2^53 times one power of two.
        left *= self.factor
        product: Float64Array = left @ self.right_float64
        if self.scaling != 1:
            product *= self.scaling
        return product.reshape(stop - start, *self.shape[1:])


def factor_delta(
    factors: DecodedRecord, kind: CodedKind, xp: Arrays, shape: tuple[int, ...], *, transposed: bool
) -> FactorDelta:
    """Return the delta of a decoded record.

    Args:
        factors: lora_B (out, r) and lora_A (r, in), arrays of `xp`.
        kind: The kind of the record.
        xp: The arrays that the factors are made of.
        shape: The shape of the stored weight.
        transposed: True if the weight is stored (in, out).
    """
    lora_B, lora_A = (xp.numpy(side) for side in factors.sides)
    if (kind.layout == "embedding") != transposed:
        lora_B, lora_A = lora_A.T, lora_B.T
    # A component that was not kept is a column of zeros, so there is nothing to multiply.
    kept = np.flatnonzero(lora_B.any(axis=0) & lora_A.any(axis=1))
    left, right = np.ascontiguousarray(lora_B[:, kept]), np.ascontiguousarray(lora_A[kept])
    factor, scaling = 2.0 ** sum(factors.exponents), kind.scaling
    mantissa, exponent = math.frexp(scaling)
    if mantissa == 0.5 and abs(exponent) < 256:  # far from both ends of float64, so that the products stay exact
        factor, scaling = factor * scaling, 1.0
    # The inequality of Cauchy and Schwarz, and a little more for the roundings of float32.
    left_float32, right_float32 = left.astype(np.float32), right.astype(np.float32)
    norms = [np.einsum("ik,ik->i", left_float32, left_float32), np.einsum("kj,kj->j", right_float32, right_float32)]
    peak = (1.0001 + 1e-6 * len(right)) * math.sqrt(float(norms[0].max(initial=0)) * float(norms[1].max(initial=0)))
    return FactorDelta(left, right, factor, scaling, shape, peak)


@dataclass(frozen=True)
class VectorDelta:
    """A decoded vector: values * 2^exponent, exact.

    Attributes:
        values: int16, in the shape of the weight.
        exponent: The exponent of the power of two.
        shape: The shape of the weight.
    """

    values: npt.NDArray[np.int16]
    exponent: int
    shape: tuple[int, ...]

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return 32768 * 2.0**self.exponent

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        rows: Float64Array = (self.values[start:stop] if self.shape else self.values).astype(np.float64)
        rows *= 2.0**self.exponent
        return rows


@dataclass(frozen=True)
class OrderedProduct:
    """The delta of VeRA, FourierFT and their like: left @ right * scaling of float64 factors, summed over K in order.

    Unlike a product of integers, this product is not exact. So the order of its sums is part of the format. Each
    element is

        s_0 = +0,   s_(k+1) = fl(s_k + fl(left_ik right_kj)),   D_ij = fl(s_K scaling)

    Attributes:
        left: float64 (rows, K).
        right: float64 (K, columns).
        scaling: The factor on the sum; if it is 1, nothing is multiplied.
        shape: The shape of the stored weight, (rows, columns).
    """

    left: Float64Array
    right: Float64Array
    scaling: float
    shape: tuple[int, ...]

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return float("inf")

    @functools.cached_property
    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.right).all())

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        columns = self.right.shape[1]
        total = np.zeros((stop - start, columns))
        panel = max(1, _PANEL // max(1, columns))
        for first in range(0, stop - start, panel):
            part = total[first : first + panel]
            left = self.left[start + first : start + first + len(part)]
            term = np.empty_like(part)
            # A term of zeros changes no sum. Most are zero in WaveFT, where each row has a few components.
            for k in np.flatnonzero(left.any(axis=0)) if self._is_finite else range(len(self.right)):
                np.multiply(left[:, k : k + 1], self.right[k], out=term)
                part += term
        if self.scaling != 1:
            total *= self.scaling
        return total


@dataclass(frozen=True)
class StackedDelta:
    """The deltas of the slices of one tensor, such as its experts: shape (n, *slice), each slice a delta of that shape.

    Attributes:
        slices: The n deltas, in order, all of one shape.
    """

    slices: Sequence[RowDelta]

    @property
    def shape(self) -> tuple[int, ...]:
        """See `RowDelta`."""
        return (len(self.slices), *self.slices[0].shape)

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return max(each.bound for each in self.slices)

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        return np.stack([each.rows(0, each.shape[0]) for each in self.slices[start:stop]])


class ComputedDelta:
    """A delta of several parts (LoHa, LoKr) that is made whole, once, when its first row is asked for.

    Attributes:
        shape: The shape of the weight.
    """

    def __init__(self, make: Callable[[], Float64Array], shape: tuple[int, ...]) -> None:
        """Make a delta that is not computed yet.

        Args:
            make: A function that returns the delta in float64, with the same bits on every machine. The elements are in
                the weight's order, in any shape.
            shape: The shape of the weight.
        """
        self._make, self.shape = make, shape
        self._made: Float64Array | None = None
        self._lock = threading.Lock()

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return float("inf")

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        with self._lock:
            if self._made is None:
                self._made = np.ascontiguousarray(self._make()).reshape(self.shape)
        return (self._made[start:stop] if self.shape else self._made).copy()


@dataclass(frozen=True)
class WeightedSum:
    """The deltas of several files: fl(... fl(fl(w_0 D_0) + fl(w_1 D_1)) ... + fl(w_n D_n)), all of one shape.

    Attributes:
        terms: Deltas and their weights, in the order of the sum. Nothing is multiplied for a weight of 1.
    """

    terms: Sequence[tuple[RowDelta, float]]

    @property
    def shape(self) -> tuple[int, ...]:
        """See `RowDelta`."""
        return self.terms[0][0].shape

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return 1.0001 * sum(abs(weight) * delta.bound for delta, weight in self.terms)

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        total: Any = None
        for delta, weight in self.terms:
            rows = delta.rows(start, stop)
            if weight != 1:
                rows *= weight
            total = rows if total is None else np.add(total, rows, out=total)
        result: Float64Array = total
        return result


@dataclass(frozen=True)
class NegativeDelta:
    """The negative of a delta, exact. Adding it undoes a merge.

    Attributes:
        delta: The delta whose sign is changed.
    """

    delta: RowDelta

    @property
    def shape(self) -> tuple[int, ...]:
        """See `RowDelta`."""
        return self.delta.shape

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return self.delta.bound

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        rows = self.delta.rows(start, stop)
        return np.negative(rows, out=rows)
