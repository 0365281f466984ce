"""Design entropy-constrained scalar quantizers of a unit Gaussian: the frontier of rate against distortion.

There is one quantizer for each slope. Its thresholds, centroids and code lengths are a fixed point of Lloyd's iteration
with a rate term (Chou, Lookabaugh and Gray, 1989). Quantizers of low rate have three levels and a wide deadzone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nola_codec.array_types import Float64Array

_TOP = 8.0
_X: Float64Array = np.linspace(0.0, _TOP, 32769)
_PDF: Float64Array = np.exp(-(_X**2) / 2) / np.sqrt(2 * np.pi)
_H = _X[1]
# These are the integrals from 0 to x of the density (by trapezoids) and of x times the density (in closed form).
_MASS: Float64Array = np.concatenate(([0.0], np.cumsum((_PDF[1:] + _PDF[:-1]) / 2 * _H)))
_MOMENT: Float64Array = _PDF[0] - _PDF


@dataclass(frozen=True)
class Ecsq:
    """A symmetric quantizer of a unit Gaussian.

    Attributes:
        slope: The distortion that a bit is worth, which is the lambda of the Lagrangian.
        thresholds: float64 (L,), ascending and positive: |x| at or above thresholds[l - 1] has level l or more.
        points: float64 (L,): the centroids of the positive levels.
        rate: The entropy in bits a sample.
        cosine2: The squared cosine between x and its reconstruction, which is 1 - distortion.
    """

    slope: float
    thresholds: Float64Array
    points: Float64Array
    rate: float
    cosine2: float


def _evaluate(slope: float, thresholds: Float64Array) -> tuple[Ecsq, Float64Array]:
    """Return the quantizer with these thresholds, and the bits of each level 0 to L, (L + 1,), with its sign."""
    edges = np.append(np.minimum(thresholds, _TOP), _TOP)
    mass_at = np.interp(edges, _X, _MASS)
    mass = np.maximum(np.diff(mass_at), 1e-300)
    moment = np.diff(np.interp(edges, _X, _MOMENT))
    zero = 2 * mass_at[0]
    points = moment / mass
    bits = np.concatenate(([-np.log2(max(zero, 1e-300))], -np.log2(mass)))
    rate = float(zero * bits[0] + 2 * (mass * bits[1:]).sum())
    return Ecsq(slope, thresholds, points, rate, float(2 * (mass * points**2).sum())), bits


def thresholds_for(points: Float64Array, bits: Float64Array, slope: float) -> Float64Array:
    """Return the decision thresholds (L,) that minimise (x - point)^2 + slope * bits between neighbouring levels.

    Args:
        points: (L,): the points of the positive levels.
        bits: (L + 1,): the code length of level 0 and of each positive level.
        slope: The lambda of the Lagrangian.
    """
    lower = np.concatenate(([0.0], points[:-1]))
    cut = (points + lower) / 2 + slope * np.diff(bits) / (2 * (points - lower))
    return np.maximum.accumulate(np.maximum(cut, 1e-6))


def design(slope: float, max_levels: int) -> Ecsq:
    """Return the quantizer for a slope, starting from uniform thresholds."""
    step = np.sqrt(6 * slope / np.log(2))
    count = int(min(max_levels, max(1, np.ceil(5.5 / step))))
    thresholds = (np.arange(count) + 0.6) * step
    for _ in range(40):
        quantizer, bits = _evaluate(slope, thresholds)
        moved = thresholds_for(quantizer.points, bits, slope)
        if np.abs(moved - thresholds).max() < 1e-4:
            break
        thresholds = moved[moved < 6.5] if (moved < 6.5).any() else moved[:1]
    return _evaluate(slope, thresholds)[0]


@lru_cache(maxsize=4)
def frontier(max_levels: int = 127) -> tuple[Ecsq, ...]:
    """Return quantizers of about 0.02 to 6.5 bits, by rate, on the lower convex hull of (rate, distortion)."""
    members = [design(float(slope), max_levels) for slope in np.geomspace(0.55, 2e-5, 64)]
    members += [_evaluate(0.0, np.array([t]))[0] for t in np.linspace(3.4, 1.3, 43)]
    members.sort(key=lambda m: (m.rate, -m.cosine2))
    hull: list[Ecsq] = []
    for member in members:
        while hull and (
            (member.cosine2 <= hull[-1].cosine2 + 1e-12 and member.rate <= hull[-1].rate + 1e-12)
            or (
                len(hull) >= 2
                and (hull[-1].cosine2 - hull[-2].cosine2) * (member.rate - hull[-2].rate)
                <= (member.cosine2 - hull[-2].cosine2) * (hull[-1].rate - hull[-2].rate)
            )
        ):
            hull.pop()
        if not hull or member.cosine2 > hull[-1].cosine2:
            hull.append(member)
    slopes = np.gradient([m.cosine2 for m in hull], [m.rate for m in hull])
    return tuple(Ecsq(float(s), m.thresholds, m.points, m.rate, m.cosine2) for m, s in zip(hull, slopes, strict=True))
