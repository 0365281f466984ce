"""What is added to a weight, a few rows at a time: exact, and never whole in memory.

A merge needs of a delta only its shape and its rows in float64. Low-rank pairs are `FactorDelta`; what they make
together, and other forms, are objects of their own with the same members.
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
from nola_codec.model.records import CodedKind


class RowDelta(Protocol):
    """The change of one stored weight.

    `rows` must give the same bits for a row whatever range it is asked in, on every machine: integers below 2^53 in
    float64, and elementwise IEEE operations in a fixed order. It is called from several threads at once. The array it
    returns belongs to the caller, who overwrites it; the sign of a zero does not matter.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as stored."""

    @property
    def bound(self) -> float:
        """No element is larger in magnitude; infinity where that is not known, and is then measured. For speed only."""

    def rows(self, start: int, stop: int) -> Float64Array:
        """Rows start..stop of the first dimension: (stop - start, *shape[1:]); of a scalar, the whole as ()."""


_PANEL = 1 << 15
"""Elements summed at once: with their terms they stay in a core's cache."""


@dataclass(frozen=True)
class FactorDelta:
    """(left @ right) * 2^exponent * scaling, the product being one of integers.

    Attributes:
        left: int16 (rows, r), as float64 when its rows are asked for.
        right: float64 (r, columns), integers below 2^15.
        factor: 2^exponent, times scaling where that is a power of two too: multiplying by it is exact.
        scaling: What is left, one rounding; or 1.
        shape: Of the weight.
        bound: See `RowDelta`; nor is the sum of the magnitudes of its products larger (of `singles` this is the proof).
    """

    left: npt.NDArray[np.int16]
    right: Float64Array
    factor: float
    scaling: float
    shape: tuple[int, ...]
    bound: float

    @functools.cached_property
    def right_single(self) -> npt.NDArray[np.float32]:
        """The right factor in float32, exact."""
        return self.right.astype(np.float32)

    @functools.cached_property
    def columns_single(self) -> npt.NDArray[np.float32]:
        """The right factor transposed: (columns, r)."""
        return np.ascontiguousarray(self.right_single.T)

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        left = self.left[start:stop].astype(np.float64)
        # Exact here as well as after the product: integers times one power of two, sums below 2^53 of it.
        left *= self.factor
        product: Float64Array = left @ self.right
        if self.scaling != 1:
            product *= self.scaling
        return product.reshape(stop - start, *self.shape[1:])


def factor_delta(
    factors: DecodedRecord, kind: CodedKind, xp: Arrays, shape: tuple[int, ...], *, transposed: bool
) -> FactorDelta:
    """The delta of a decoded record.

    Args:
        factors: On `xp`.
        kind: Of the record.
        xp: Where the factors are.
        shape: Of the stored weight.
        transposed: The weight is stored (in, out).
    """
    lora_B, lora_A = (xp.numpy(side) for side in factors.sides)
    if (kind.layout == "embedding") != transposed:
        lora_B, lora_A = lora_A.T, lora_B.T
    # Components that were not kept are columns of zeros: nothing to multiply.
    kept = np.flatnonzero(lora_B.any(axis=0) & lora_A.any(axis=1))
    left, right = np.ascontiguousarray(lora_B[:, kept]), np.ascontiguousarray(lora_A[kept], dtype=np.float64)
    factor, scaling = 2.0 ** sum(factors.exponents), kind.scaling
    mantissa, exponent = math.frexp(scaling)
    if mantissa == 0.5 and abs(exponent) < 256:  # far from both ends of float64: the products stay exact
        factor, scaling = factor * scaling, 1.0
    # By Cauchy and Schwarz; a little more, for the roundings.
    squares = [np.square(left, dtype=np.float64).sum(axis=1), np.square(right).sum(axis=0)]
    bound = 1.0001 * abs(factor * scaling) * math.sqrt(squares[0].max(initial=0) * squares[1].max(initial=0))
    return FactorDelta(left, right, factor, scaling, shape, bound)


@dataclass(frozen=True)
class VectorDelta:
    """A decoded vector: values * 2^exponent, exact.

    Attributes:
        values: int16, in the shape of the weight.
        exponent: Power of two.
        shape: Of the weight.
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
    """left @ right * scaling of float64 factors, each element a sum over the rank in order (VeRA, RandLoRA).

    Not exact as a product of integers is, so the order is part of the format: from +0, each term one rounding, each sum
    another; at last the scaling.

    Attributes:
        left: (rows, K).
        right: (K, columns).
        scaling: 1 is no operation.
        shape: Of the stored weight.
    """

    left: Float64Array
    right: Float64Array
    scaling: float
    shape: tuple[int, ...]

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return float("inf")

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        columns = self.right.shape[1]
        total = np.zeros((stop - start, columns))
        panel = max(1, _PANEL // max(1, columns))
        for first in range(0, stop - start, panel):
            part = total[first : first + panel]
            left = self.left[start + first : start + first + len(part)]
            term = np.empty_like(part)
            for k in range(len(self.right)):
                np.multiply(left[:, k : k + 1], self.right[k], out=term)
                part += term
        if self.scaling != 1:
            total *= self.scaling
        return total


@dataclass(frozen=True)
class StackedDelta:
    """Deltas of the slices of one tensor, each of `shape[1:]`."""

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
    """A delta that is made whole, once, when its first row is asked for: those of several parts (LoHa, LoKr)."""

    def __init__(self, make: Callable[[], Float64Array], shape: tuple[int, ...]) -> None:
        """`make` gives the same bits everywhere, in the weight's order of elements."""
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
    """Deltas of several adapters: each times its weight (one rounding), added in order (one rounding each)."""

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
class Negative:
    """A delta with its sign turned: what a merge added, to be taken away."""

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
