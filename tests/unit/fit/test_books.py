"""Quantizers fitted to levels: points at the centroids, frequencies of the counts, symmetric about 0."""

from __future__ import annotations

import numpy as np
import pytest

from nola_codec.entropy import rans
from nola_codec.fit.books import fit_quantizer, level_statistics, symmetric_frequencies
from nola_codec.fit.coders import Coder, DependentCoder, ScalarCoder, TrellisCoder, coders, find_levels, fit_tables
from nola_codec.model.quantizers import Codebook, Dependent
from nola_codec.quant.codebooks import POINT_SCALE


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def first(kind: type[Coder], rate: float) -> Coder:
    """Return the first coder of a kind that spends at least so many bits."""
    return next(c for c in coders() if isinstance(c, kind) and c.rate >= rate)


@pytest.mark.parametrize("rate", [0.05, 0.5, 2.0, 4.0])
def test_points_of_a_scalar_quantizer_are_the_centroids(rate: float) -> None:
    coder = first(ScalarCoder, rate)
    assert isinstance(coder, ScalarCoder)
    values = gaussian(40, 2000)
    levels = coder.levels(values)
    made = fit_quantizer(coder, level_statistics(coder, levels, values))
    assert isinstance(made.codebook, Codebook)
    points = np.array(made.codebook.points, np.float64)
    assert points.tolist() == (-points[::-1]).tolist()
    assert (np.diff(points) > 0).all()
    top = len(points) // 2
    ideal = coder.quantizer.points[:top]
    found = [np.abs(values[np.abs(levels) == level + 1]) for level in range(top)]
    centroids = [float(own.mean()) if own.size else float(ideal[level]) for level, own in enumerate(found)]
    unit = (ideal[0] if top == 1 else np.median(np.diff(ideal))) / POINT_SCALE
    assert points[top + 1 :] * unit == pytest.approx(centroids, abs=0.51 * unit)


def test_frequencies_follow_the_counts() -> None:
    coder = first(ScalarCoder, 1.0)
    values = gaussian(40, 2000)
    levels = coder.levels(values)  # type: ignore[union-attr, call-arg]
    made = fit_quantizer(coder, level_statistics(coder, levels, values))
    assert made.frequencies is not None
    top = len(made.frequencies) // 2
    share = [(np.abs(levels) == level).mean() / (1 + (level > 0)) for level in range(top + 1)]
    assert np.array(made.frequencies[top:]) / rans.TOTAL == pytest.approx(share, abs=3 / rans.TOTAL)


def test_levels_that_do_not_occur_are_left_out() -> None:
    coder = first(ScalarCoder, 3.0)
    values = gaussian(1, 2000) * np.float32(0.2)
    levels = coder.levels(values)  # type: ignore[union-attr, call-arg]
    made = fit_quantizer(coder, level_statistics(coder, levels, values))
    assert made.codebook.size == 2 * int(np.abs(levels).max()) + 1


def test_nothing_but_zeros_still_makes_a_quantizer() -> None:
    coder = first(ScalarCoder, 0.02)
    values = np.full((1, 50), 1e-3, np.float32)
    made = fit_quantizer(coder, level_statistics(coder, np.zeros((1, 50), np.int8), values))
    assert made.codebook.size == 3
    assert made.frequencies is not None
    assert sum(made.frequencies) == rans.TOTAL
    assert min(made.frequencies) >= 1


def test_a_dependent_quantizer_has_two_codebooks() -> None:
    coder = first(DependentCoder, 2.0)
    assert isinstance(coder, DependentCoder)
    values = gaussian(16, 800)
    (tables,) = fit_tables([(coder, values[:8])])
    (levels,) = find_levels([coder.search(values, tables)])
    made = fit_quantizer(coder, level_statistics(coder, levels, values))
    assert isinstance(made.codebook, Dependent)
    even, odd = made.codebook.even, made.codebook.odd
    assert len(even) == len(odd) == int(np.abs(levels).max())
    assert list(even) == sorted(set(even))
    assert list(odd) == sorted(set(odd))
    assert odd[0] < even[0]  # the levels of the odd codebook lie nearer to 0


def test_a_trellis_has_its_own_points_and_no_frequencies() -> None:
    coder = first(TrellisCoder, 0.1)
    assert isinstance(coder, TrellisCoder)
    values = gaussian(4, 200)
    made = fit_quantizer(coder, level_statistics(coder, np.zeros((4, 200), np.int8), values))
    assert made.codebook == coder.trellis
    assert made.frequencies is None


@pytest.mark.parametrize("counts", [[1, 5, 1], [0, 7, 3], [3, 1, 0, 90, 7, 2, 2], [0.5, 0, 0.5]])
def test_symmetric_frequencies(counts: list[float]) -> None:
    made = symmetric_frequencies(np.array(counts, np.float64))
    assert made == made[::-1]
    assert sum(made) == rans.TOTAL
    assert min(made) >= 1
