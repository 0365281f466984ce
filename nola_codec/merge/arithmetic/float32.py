"""Low-rank deltas as float32 products with a bound of their error, and single elements of them exactly.

int16 factors are exact in float32. With u = 2^-24, R terms and left' the left factor times everything that scales it,
rounded to float32 once, the float32 product is off by at most

    ((1 + u)(1 + gamma_R) - 1) sum |left||right| <= (R + 1) u / (1 - (R + 1) u) * D,   gamma_R = R u / (1 - R u)

in any order of summation, with or without fused multiply-add (Higham, "Accuracy and stability of numerical algorithms",
section 3.1), D being the bound of the delta by Cauchy and Schwarz. Nothing underflows: elements of left' are zero or
at least `_LEAST`, their last bits and with them every sum multiples of 2^-124. Several deltas are one product of their
factors side by side. The few roundings of the float64 delta itself, 2^-53 each, are in the (R + 2) that is used.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.merge.arithmetic.deltas import FactorDelta, Negative, RowDelta, WeightedSum

Float32 = npt.NDArray[np.float32]

_LEAST, _MOST = 2.0**-100, 2.0**60  # of what scales the integers: far from both ends of float32
_LARGEST = 2.0**100
_HIGHEST_RANK = 1 << 16
_AT_ONCE = 1024


@dataclass(frozen=True)
class Singles:
    """left @ right, in float32, is nearly the delta.

    Attributes:
        left: float32 (rows asked for, R).
        right: float32 (R, columns).
        error: No element of the product is further from the delta's float64 value.
    """

    left: Float32
    right: Float32
    error: float


def singles(delta: RowDelta, start: int, stop: int) -> Singles | None:
    """Rows start..stop as a float32 product; None where they cannot be had so, or not within a proven error."""
    terms = _terms(delta, 1.0)
    if terms is None or not _ieee_products():
        return None
    lefts, bound = [], 0.0
    for term, weight in terms:
        scale = term.factor * term.scaling * weight
        if scale != 0 and not _LEAST <= abs(scale) <= _MOST:  # or NaN
            return None
        lefts.append(np.multiply(term.left[start:stop], scale, dtype=np.float64).astype(np.float32))
        bound += abs(weight) * term.bound
    rank = sum(left.shape[1] for left in lefts)
    if not bound <= _LARGEST or rank > _HIGHEST_RANK:
        return None
    error = (rank + 2) * 2.0**-24 / (1 - (rank + 2) * 2.0**-24) * bound
    if len(terms) == 1:
        return Singles(lefts[0], terms[0][0].right_single, error)
    return Singles(np.concatenate(lefts, axis=1), np.concatenate([term.right_single for term, _ in terms]), error)


def elements(delta: RowDelta, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Float64Array:
    """The float64 elements (rows[i], columns[i]) of a delta that `singles` takes: the bits of `RowDelta.rows`.

    Args:
        delta: Of low-rank terms only.
        rows: (n,).
        columns: (n,), of the weight as a matrix, its other dimensions one.
    """
    if isinstance(delta, Negative):
        return -elements(delta.delta, rows, columns)
    if isinstance(delta, WeightedSum):
        total = np.zeros(rows.size)
        for term, weight in delta.terms:
            values = elements(term, rows, columns)
            total += values * weight if weight != 1 else values
        return total
    if not isinstance(delta, FactorDelta):
        raise TypeError(f"not a low-rank delta: {type(delta).__name__}")
    found = np.empty(rows.size)
    for first in range(0, rows.size, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        left = delta.left.take(rows[part], axis=0).astype(np.float64)
        right = delta.columns_single.take(columns[part], axis=0).astype(np.float64)
        # Integers, and sums below 2^53: exact in any order.
        found[part] = np.einsum("ij,ij->i", left, right)
    found *= delta.factor
    if delta.scaling != 1:
        found *= delta.scaling
    return found


def _terms(delta: RowDelta, weight: float) -> list[tuple[FactorDelta, float]] | None:
    """The delta as a sum of low-rank ones, each with its weight; None when it is not."""
    if isinstance(delta, FactorDelta):
        return [(delta, weight)]
    if isinstance(delta, Negative):
        return _terms(delta.delta, -weight)
    if not isinstance(delta, WeightedSum):
        return None
    found = []
    for term, factor in delta.terms:
        inner = _terms(term, weight * factor)
        if inner is None:
            return None
        found += inner
    return found


@functools.cache
def _ieee_products() -> bool:
    """Whether float32 products here are that: not TF32 or bfloat16 inside, as some libraries may be told to."""
    for rows, rank, columns in ((64, 16, 512), (1, 7, 33), (256, 64, 256), (21, 1, 300)):
        left = np.arange(rows * rank).reshape(rows, rank) * 40503 % 65521 - 32760
        right = np.arange(rank * columns).reshape(rank, columns) * 30011 % 65519 - 32759
        product = left.astype(np.float32) @ right.astype(np.float32)
        error = np.abs(product - left @ right)
        if not (error <= (rank + 2) * 2.0**-24 * (np.abs(left) @ np.abs(right))).all():
            return False
    return True
