"""Compute a low-rank delta as a float32 product with a bound of its error, and single elements of the delta exactly.

A float64 product costs about twice a float32 one. Where the delta D only decides a rounding to 16 bits, the cheap
product is enough for nearly all elements (`rounding`), provided that its error has a proven bound. Let

    u      2^-24, half the spacing of float32 at 1
    R      the number of terms in each sum, the rank
    left   the left factor times all that scales it: a power of two, the scaling, a file's weight
    left'  left, rounded to float32
    bound  an upper bound of sum_k |left_ik| |right_kj|, by the inequality of Cauchy and Schwarz

int16 factors are exact in float32, so left' has a relative error of at most u. A sum of R products, in any order,
with or without fused multiply-add, is off by at most gamma_R = R u / (1 - R u), relative to the sum of the magnitudes
of its terms (Higham, "Accuracy and stability of numerical algorithms", section 3.1). Together

    |float32 product - D| <= ((1 + u)(1 + gamma_R) - 1) bound <= (R + 1) u / (1 - (R + 1) u) bound

The code uses R + 2 for R + 1, which pays for the roundings of the float64 D itself, 2^-53 each. Nothing underflows: an
element of left' is zero or at least `_LEAST`, so its last bit, and that of every sum, is a multiple of 2^-124. The sum
of several deltas is one product as well, if their factors are put side by side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array
from nola_codec.merger.arithmetic.deltas import FactorDelta, NegativeDelta, RowDelta, WeightedSum

_LEAST, _MOST = 2.0**-100, 2.0**60  # the range of the scale of the integers, far from both ends of float32
_LARGEST = 2.0**100
_HIGHEST_RANK = 1 << 16
_AT_ONCE = 1024


@dataclass(frozen=True)
class Float32Product:
    """Rows of a delta D as a product in float32.

    Attributes:
        left: float32 (rows, R).
        right: float32 (R, columns).
        error: The upper bound of |fl32(left @ right) - D| in every element.
    """

    left: Float32Array
    right: Float32Array
    error: float


def float32_product(delta: RowDelta, start: int, stop: int) -> Float32Product | None:
    """Return rows start..stop of a delta as a float32 product.

    Returns:
        None if the delta is not a sum of low-rank ones, if its scale lies outside the range of the proof, or if this
        machine's float32 products are less exact than IEEE ones.
    """
    terms = _low_rank_terms(delta, 1.0)
    if terms is None or not _has_ieee_products():
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
        return Float32Product(lefts[0], terms[0][0].right_float32, error)
    return Float32Product(
        np.concatenate(lefts, axis=1), np.concatenate([term.right_float32 for term, _ in terms]), error
    )


def elements(delta: RowDelta, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Float64Array:
    """Return single float64 elements of a delta, with the bits of `RowDelta.rows`.

    Args:
        delta: A delta that `float32_product` takes: a sum of low-rank ones.
        rows: The row of each element, (n,).
        columns: The column of each element, (n,), in the weight as a matrix, all dimensions but the first taken as one.

    Returns:
        float64 (n,).
    """
    if isinstance(delta, NegativeDelta):
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
        right = delta.columns_first.take(columns[part], axis=0).astype(np.float64)
        # Integers with sums below 2^53: exact in any order.
        found[part] = np.einsum("ij,ij->i", left, right)
    found *= delta.factor
    if delta.scaling != 1:
        found *= delta.scaling
    return found


def _low_rank_terms(delta: RowDelta, weight: float) -> list[tuple[FactorDelta, float]] | None:
    """Return the low-rank deltas that a delta is the sum of, each with its weight; None if it is no such sum."""
    if isinstance(delta, FactorDelta):
        return [(delta, weight)]
    if isinstance(delta, NegativeDelta):
        return _low_rank_terms(delta.delta, -weight)
    if not isinstance(delta, WeightedSum):
        return None
    found = []
    for term, factor in delta.terms:
        inner = _low_rank_terms(term, weight * factor)
        if inner is None:
            return None
        found += inner
    return found


@functools.cache
def _has_ieee_products() -> bool:
    """Return True if this machine computes float32 products in the full precision of float32.

    Some libraries can be set to use TF32 or bfloat16 inside, which would break the bound.
    """
    for rows, rank, columns in ((64, 16, 512), (1, 7, 33), (256, 64, 256), (21, 1, 300)):
        left = np.arange(rows * rank).reshape(rows, rank) * 40503 % 65521 - 32760
        right = np.arange(rank * columns).reshape(rank, columns) * 30011 % 65519 - 32759
        product = left.astype(np.float32) @ right.astype(np.float32)
        error = np.abs(product - left @ right)
        if not (error <= (rank + 2) * 2.0**-24 * (np.abs(left) @ np.abs(right))).all():
            return False
    return True
