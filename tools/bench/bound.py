"""Compute how few bytes a Gaussian source with the same singular values needs, by reverse water-filling.

A component is two unit vectors of n_u and n_v independent Gaussians, coded at distortions d_u and d_v with
``n / 2 * log2(1 / d)`` bits each. Side information, entropy coding and headers are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from common import Floats
from svd_codecs.columns import Component


def gaussian_bound(components: Sequence[Component], nmse: float) -> float:
    """Return the bytes at an NMSE, with the exact error of a component: ``s^2 (1 - (1 - d_u)(1 - d_v))``, or s^2.

    This is the optimum of the Lagrangian. Where a component costs the same dropped or coded, the bytes are
    interpolated, which no code beats by more than that one component.
    """
    s2, n_u, n_v = _stack(components)

    def allocate(slope: float) -> tuple[float, float]:
        price = slope * s2
        g_u = g_v = np.ones_like(s2)
        for _ in range(60):
            g_u = 1 - np.minimum(1, n_u / (2 * np.log(2) * price * np.maximum(g_v, 1e-12)))
            g_v = 1 - np.minimum(1, n_v / (2 * np.log(2) * price * np.maximum(g_u, 1e-12)))
        coded = (g_u > 0) & (g_v > 0)
        safe_u, safe_v = np.where(coded, g_u, 0), np.where(coded, g_v, 0)
        bits = -0.5 * (n_u * np.log2(1 - safe_u) + n_v * np.log2(1 - safe_v))
        coded &= bits + price * (1 - safe_u * safe_v) < price
        lost = np.where(coded, 1 - safe_u * safe_v, 1.0)
        return float((s2 * lost).sum() / s2.sum()), float(bits[coded].sum() / 8)

    return _at(allocate, nmse)


def first_order_bound(components: Sequence[Component], nmse: float) -> float:
    """Return the bytes at an NMSE with the first-order error of a coded component, ``s^2 (d_u + d_v)``.

    This is right for small errors. For large ones it counts a dropped component twice and lies above the true bound.
    """
    s2, n_u, n_v = _stack(components)

    def allocate(slope: float) -> tuple[float, float]:
        d_u, d_v = (np.minimum(1, n / (2 * np.log(2) * slope * s2)) for n in (n_u, n_v))
        bits = -0.5 * (n_u * np.log2(d_u) + n_v * np.log2(d_v))
        return float((s2 * np.minimum(d_u + d_v, 1)).sum() / s2.sum()), float(bits.sum() / 8)

    return _at(allocate, nmse)


def _stack(components: Sequence[Component]) -> tuple[Floats, Floats, Floats]:
    s2 = np.concatenate([c.s**2 for c in components])
    n_u = np.concatenate([np.full(len(c.s), len(c.u), float) for c in components])
    n_v = np.concatenate([np.full(len(c.s), len(c.v), float) for c in components])
    alive = s2 > s2.max() * 1e-14
    return s2[alive], n_u[alive], n_v[alive]


def _at(allocate: Callable[[float], tuple[float, float]], nmse: float) -> float:
    """Return the bytes at which `allocate(slope) -> (nmse, bytes)` meets the error, linear between two slopes."""
    low, high = -60.0, 120.0  # log2 of the slope
    for _ in range(80):
        middle = (low + high) / 2
        if allocate(2.0**middle)[0] > nmse:
            low = middle
        else:
            high = middle
    (worse, fewer), (better, more) = allocate(2.0**low), allocate(2.0**high)
    return more if worse <= better else fewer + (more - fewer) * (worse - nmse) / (worse - better)
