"""Codebooks have the points that they promise, and values find the nearest ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.model.quantizers import Codebook
from nola_codec.quant.codebooks import (
    SIGNS,
    integer_codebook,
    lloyd_max_codebook,
    mse_scale,
    nearest_symbols,
    symmetric_codebook,
)

# The distortions of the optimal quantizers of a unit Gaussian (Max, 1960).
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def gaussian_distortion(points: list[float]) -> float:
    """Return the mean squared error of a unit Gaussian at its nearest points, by closed-form integrals."""

    def parts(x: float) -> tuple[float, float]:
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0
        return 0.5 * (1 + math.erf(x / math.sqrt(2))), density

    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(points)), math.inf]
    total = 0.0
    for point, low, high in zip(points, edges, edges[1:], strict=False):
        (mass_low, density_low), (mass_high, density_high) = parts(low), parts(high)
        mass, first = mass_high - mass_low, density_low - density_high
        second = mass + (low * density_low if density_low else 0.0) - (high * density_high if density_high else 0.0)
        total += second - 2 * point * first + point * point * mass
    return total


@pytest.mark.parametrize("bits", MAX_1960)
def test_lloyd_max_reaches_the_published_distortion(bits: int) -> None:
    book = lloyd_max_codebook(bits)
    assert book.size == 1 << bits
    assert book.points == tuple(-p for p in reversed(book.points))
    assert gaussian_distortion([p / 4096 for p in book.points]) == pytest.approx(MAX_1960[bits], rel=2e-3)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_lloyd_max_gains_six_decibels_a_bit(bits: int) -> None:
    coarse, fine = (gaussian_distortion([p / 4096 for p in lloyd_max_codebook(b).points]) for b in (bits - 1, bits))
    assert 3.3 < coarse / fine < 4.0


def test_forms() -> None:
    assert integer_codebook(9).points == tuple(range(-256, 256))
    assert SIGNS.points == (-1, 1)
    assert symmetric_codebook([3, 8]).points == (-8, -3, 0, 3, 8)
    books = integer_codebook(9), SIGNS, symmetric_codebook([5])
    assert [(book.size, book.peak, book.run(9)) for book in books] == [(512, 256, 9), (2, 1, 9), (3, 5, 9)]


@given(
    book=st.sampled_from(
        [
            integer_codebook(9),
            SIGNS,
            Codebook((-7, 1, 2)),
            lloyd_max_codebook(4),
            symmetric_codebook([29, 61, 93]),
        ]
    ),
    values=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30),
)
def test_nearest_is_nearest(book: Codebook, values: list[float]) -> None:
    points = np.array(book.points, np.float64)
    symbols = nearest_symbols(np.array(values), book)
    distance = np.abs(np.array(values)[:, None] - points)
    assert np.allclose(distance[np.arange(len(values)), symbols], distance.min(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "book",
    [Codebook(tuple(range(-8, 8))), SIGNS, lloyd_max_codebook(3), lloyd_max_codebook(4)],
)
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0])
def test_scale_is_as_good_as_a_fine_search(book: Codebook, size: float) -> None:
    values = np.random.default_rng(5).standard_normal(400) * size
    points = np.array(book.points, np.float64)

    def error(scale: float) -> float:
        return float(((values - scale * points[nearest_symbols(values / scale, book)]) ** 2).sum())

    rms = float(np.sqrt((values**2).mean()))
    best = min(error(rms / book.peak * factor) for factor in np.geomspace(0.3, 12, 3000))
    assert error(mse_scale(values, book)) <= 1.002 * best
