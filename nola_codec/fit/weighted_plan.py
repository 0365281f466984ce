"""Precisions of components that tolerate noise unequally.

A file gives a component one precision, and each side a table from precision to quantizer made for the objective's own
gammas. If a component's gammas differ from those, its best precision no longer follows from its strength, and is
searched for.
"""

from __future__ import annotations

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array

_CHUNK = 1 << 10


def survival_of(cosine2: Float64Array, gamma: Float64Array | float) -> Float64Array:
    """Return the share of a vector that survives at its best gain, c / (c + (1 - c) / gamma)."""
    return np.asarray(cosine2 / (cosine2 + (1 - cosine2) / gamma))


def best_precisions(
    weight: Float64Array,
    gamma: Float64Array,
    cosine2: Float64Array,
    rate: Float64Array,
    lengths: tuple[int, int],
    lagrangian: float,
) -> Int64Array:
    """Return the precision of least cost for components whose vectors have the same two lengths.

    Args:
        weight: float64 (units,).
        gamma: float64 (2, units).
        cosine2: float64 (2, precisions): squared cosine of the quantizers that each precision gives the two sides; 0
            for none.
        rate: float64 (2, precisions): bits of a coefficient.
        lengths: Lengths of u and of v.
        lagrangian: Weight that one bit is worth.

    Returns:
        int64 (units,): positions among the precisions.
    """
    bits = rate[0] * lengths[0] + rate[1] * lengths[1]
    # Neighbouring precisions often share both quantizers: only where one changes is there a choice.
    steps = np.flatnonzero(np.concatenate(([True], np.abs(np.diff(cosine2, axis=1)).sum(axis=0) > 0)))
    best = np.empty(len(weight), np.int64)
    for start in range(0, len(weight), _CHUNK):
        own = slice(start, start + _CHUNK)
        kept = np.ones((len(weight[own]), len(steps)))
        for side in (0, 1):
            kept *= survival_of(cosine2[side][None, steps], gamma[side, own, None])
        best[own] = steps[(weight[own, None] * kept - lagrangian * bits[None, steps]).argmax(axis=1)]
    return best
