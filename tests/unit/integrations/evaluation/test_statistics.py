"""The errors of ratios over rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nola_codec.integrations.evaluation.statistics import estimate_ratio, student_quantile


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (191, 1.97246)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, wanted: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(wanted, rel=2e-3)


def test_with_equal_denominators_it_is_the_interval_of_a_mean() -> None:
    x = np.array([1.0, 2.0, 4.0, 9.0])
    found = estimate_ratio(x, np.ones(4))
    assert found.value == 4
    assert found.margin == pytest.approx(3.18245 * np.std(x, ddof=1) / 2, rel=2e-3)
    assert found.interval == (found.value - found.margin, found.value + found.margin)
    assert not found.is_positive
    assert estimate_ratio(x + 9, np.ones(4)).is_positive


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """Rows differ in length, and the tokens of one row are alike."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        tokens = rng.integers(5, 60, 40).astype(np.float64)
        losses = tokens * (0.3 + 0.2 * rng.standard_normal(40))
        low, high = estimate_ratio(losses, tokens).interval
        hits += low <= 0.3 <= high
    assert 0.93 < hits / 2000 < 0.965


def test_what_cannot_be_said() -> None:
    assert estimate_ratio(np.ones(1), np.ones(1)).margin == math.inf
    assert math.isnan(estimate_ratio(np.ones(2), np.zeros(2)).value)
