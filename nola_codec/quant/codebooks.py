"""Integer codebooks and their quantizers.

A codebook is a list of integer points; a vector's scale turns points into values. `POINT_SCALE` points make one step
of a deadzone quantizer, fine enough for fitted centroids (the loss against real-valued ones is 0.1% of the distortion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.model.quantizers import Codebook

POINT_SCALE = 32
MAX_POINT = 1 << 15
_SQRT2 = math.sqrt(2.0)


@lru_cache
def midtread(num_bits: int) -> Codebook:
    """Two's-complement levels -2^(b-1) .. 2^(b-1) - 1, with a zero; 2 to 16 bits."""
    half = 1 << (num_bits - 1)
    return Codebook("midtread", tuple(range(-half, half)))


def midrise(num_bits: int) -> Codebook:
    """Odd levels -(2^b - 1) .. 2^b - 1, no zero; 1 to 8 bits. One bit is a sign."""
    return Codebook("midrise", tuple(range(1 - (1 << num_bits), 1 << num_bits, 2)))


def symmetric(positive: Sequence[int]) -> Codebook:
    """Zero and +-points; `positive` ascending, from 1 to MAX_POINT."""
    return Codebook("symmetric", (*(-p for p in reversed(positive)), 0, *positive))


def deadzone(levels: int, shift: float = 0.0) -> Codebook:
    """Midtread with `levels` steps a side, points drawn towards zero by `shift` of a step (Sullivan, 1996)."""
    return symmetric([round(POINT_SCALE * (level - shift)) for level in range(1, levels + 1)])


@lru_cache
def lloyd_max(num_bits: int) -> Codebook:
    """Lloyd-Max for a Gaussian (Max, 1960), 1 to 8 bits; 4096 points are one standard deviation.

    EDEN and TurboQuant quantize a rotated vector with this codebook.
    """
    size = 1 << num_bits
    # Panter and Dite's companding is the start: from plain quantiles 8 bits would not converge in the steps allowed.
    points = math.sqrt(3) * np.array([_quantile((i + 0.5) / size) for i in range(size)])
    for _ in range(4000):
        edges = np.concatenate(([-40.0], (points[1:] + points[:-1]) / 2, [40.0]))
        mass = np.diff([_cdf(e) for e in edges])
        moved = -np.diff([_pdf(e) for e in edges]) / mass
        if np.abs(moved - points).max() < 1e-9:
            break
        points = moved
    half = np.rint(4096 * (points[size // 2 :] - points[: size // 2][::-1]) / 2).astype(int)
    return Codebook("points", (*(-int(p) for p in half[::-1]), *(int(p) for p in half)))


def nearest(values: npt.NDArray[Any], codebook: Codebook) -> npt.NDArray[np.uint16]:
    """Symbols of the points nearest to values in units of points; ties go to the upper point."""
    points = np.array(codebook.points, np.float64)
    if codebook.form == "midtread":
        symbols = np.floor(values + 0.5) - points[0]
        return np.asarray(np.clip(symbols, 0, codebook.size - 1), np.uint16)
    return np.searchsorted((points[1:] + points[:-1]) / 2, values, side="right").astype(np.uint16)


def mse_scale(values: npt.NDArray[np.float64], codebook: Codebook) -> float:
    """The scale s that minimises |values - s * point(values / s)|^2, to about 0.1%: a grid, then golden section.

    Args:
        values: (n,) finite, not all zero.
        codebook: Whose points are to fit.
    """
    points = np.array(codebook.points, np.float64)

    def error(log_scale: float) -> float:
        scale = math.exp(log_scale)
        return float(((values - scale * points[nearest(values / scale, codebook)]) ** 2).sum())

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
