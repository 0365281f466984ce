"""Find the precisions of components that tolerate noise unequally.

A file gives each component one precision, and allocation tables turn it into quantizers. The tables are made for the
gammas of the objective. If the gammas of a component differ from those, its best precision does not follow from its
strength, and all precisions are tried.
"""

from __future__ import annotations

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array

_CHUNK = 1 << 10


def survival_of(cosine2: Float64Array, gamma: Float64Array | float) -> Float64Array:
    """Return the share c / (c + (1 - c) / gamma) of a vector that survives with its best gain."""
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
        weight: float64 (units,): the weight of each component in the objective.
        gamma: float64 (2, units): the gamma of each side.
        cosine2: float64 (2, precisions): the squared cosine of the quantizer that each precision gives to each side; 0
            for none.
        rate: float64 (2, precisions): the bits that this quantizer spends on a coefficient.
        lengths: The lengths of u and of v.
        lagrangian: The weight that one bit is worth.

    Returns:
        int64 (units,): the positions of the chosen precisions.
    """
    bits = rate[0] * lengths[0] + rate[1] * lengths[1]
    # Neighbouring precisions often give the same quantizers, so only those at which one changes are tried.
    steps = np.flatnonzero(np.concatenate(([True], np.abs(np.diff(cosine2, axis=1)).sum(axis=0) > 0)))
    best = np.empty(len(weight), np.int64)
    for start in range(0, len(weight), _CHUNK):
        own = slice(start, start + _CHUNK)
        kept = np.ones((len(weight[own]), len(steps)))
        for side in (0, 1):
            kept *= survival_of(cosine2[side][None, steps], gamma[side, own, None])
        best[own] = steps[(weight[own, None] * kept - lagrangian * bits[None, steps]).argmax(axis=1)]
    return best
