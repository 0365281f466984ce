"""Make integer codebooks, and find the points nearest to values.

A codebook is a list of integer points, and the scale of a vector turns points into values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Codebook

if TYPE_CHECKING:
    import numpy.typing as npt

POINT_SCALE = 32
"""Points in one step of a fitted quantizer: rounding centroids to them adds 0.1% to the distortion."""
MAX_POINT = 1 << 15
"""The largest point that a file may hold."""
MOST_POINTS = 256
"""The most points that a file may list. A larger codebook holds all integers of a number of bits."""
SIGNS = Codebook((-1, 1))
"""The codebook of one bit."""
_SQRT2 = math.sqrt(2.0)


@lru_cache
def integer_codebook(num_bits: int) -> Codebook:
    """Make the codebook of -2^(b-1) .. 2^(b-1) - 1; b is 9 to 16."""
    half = 1 << (num_bits - 1)
    return Codebook(tuple(range(-half, half)))


def symmetric_codebook(positive: Sequence[int]) -> Codebook:
    """Make the codebook of zero and of some points with both signs; `positive` ascends, from 1 to MAX_POINT."""
    return Codebook((*(-p for p in reversed(positive)), 0, *positive))


@lru_cache
def lloyd_max_codebook(num_bits: int) -> Codebook:
    """Make the Lloyd-Max codebook for a Gaussian (Max, 1960), of 1 to 8 bits; 4096 is one standard deviation.

    EDEN and TurboQuant quantize a rotated vector with this codebook.
    """
    size = 1 << num_bits
    # The start is the companding of Panter and Dite: from plain quantiles, 8 bits would not converge in 4000 steps.
    points = math.sqrt(3) * np.array([_quantile((i + 0.5) / size) for i in range(size)])
    for _ in range(4000):
        edges = np.concatenate(([-40.0], (points[1:] + points[:-1]) / 2, [40.0]))
        mass = np.diff([_cdf(e) for e in edges])
        moved = -np.diff([_pdf(e) for e in edges]) / mass
        if np.abs(moved - points).max() < 1e-9:
            break
        points = moved
    half = np.rint(4096 * (points[size // 2 :] - points[: size // 2][::-1]) / 2).astype(int)
    return Codebook((*(-int(p) for p in half[::-1]), *(int(p) for p in half)))


def nearest_symbols(values: npt.NDArray[Any], codebook: Codebook) -> npt.NDArray[np.uint16]:
    """Return the symbols of the points nearest to some values, uint16 of their shape; a tie goes to the upper point."""
    points = np.array(codebook.points, np.float64)
    if codebook.size > MOST_POINTS:  # all integers
        symbols = np.floor(values + 0.5) - points[0]
        return np.asarray(np.clip(symbols, 0, codebook.size - 1), np.uint16)
    return np.searchsorted((points[1:] + points[:-1]) / 2, values, side="right").astype(np.uint16)


def mse_scale(values: npt.NDArray[np.float64], codebook: Codebook) -> float:
    """Return the scale s that minimises |values - s * point(values / s)|^2, to within about 0.1%.

    The search is a grid, then a golden section.

    Args:
        values: float64 (n,), finite and not all zero.
        codebook: The points to use.
    """
    points = np.array(codebook.points, np.float64)

    def error(log_scale: float) -> float:
        scale = math.exp(log_scale)
        return float(((values - scale * points[nearest_symbols(values / scale, codebook)]) ** 2).sum())

    top = math.log(float(np.abs(values).max()) / codebook.peak)
    rms = math.log(float(np.sqrt((values**2).mean())) / codebook.peak)
    grid = np.linspace(min(rms, top) - 0.7, top + 0.1, 24)
    best = int(np.argmin([error(g) for g in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(12):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if error(left) < error(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _pdf(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / _SQRT2))


def _quantile(p: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        if _cdf(middle) < p:
            low = middle
        else:
            high = middle
    return low
