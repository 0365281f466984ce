"""The frontier agrees with the rate-distortion function of a Gaussian, and with sampled Gaussians."""

from __future__ import annotations

import numpy as np
import pytest

from nola_codec.fit.ecsq import Ecsq, frontier, thresholds_for


def above_shannon(member: Ecsq) -> float:
    """Return the bits a sample above 1/2 log2(1 / D)."""
    return member.rate + 0.5 * np.log2(1 - member.cosine2)


def test_rate_rises_with_quality_and_gains_diminish() -> None:
    rates = np.array([m.rate for m in frontier()])
    quality = np.array([m.cosine2 for m in frontier()])
    assert (np.diff(rates) > 0).all()
    assert (np.diff(quality) > 0).all()
    slopes = np.diff(quality) / np.diff(rates)
    assert (np.diff(slopes) < 1e-9).all()  # concave: a Lagrangian reaches every member


def test_range_of_rates() -> None:
    rates = [m.rate for m in frontier()]
    assert rates[0] < 0.02
    assert rates[-1] > 6


def test_no_member_beats_shannon_or_is_far_from_it() -> None:
    gaps = [above_shannon(m) for m in frontier() if m.rate <= 6.5]  # above it 127 levels are too few
    assert min(gaps) > 0
    assert max(gaps) < 0.26  # 1/2 log2(pi e / 6) = 0.2546 for fine uniform quantizers


def test_high_rates_lose_a_quarter_bit() -> None:
    fine = [above_shannon(m) for m in frontier() if 3 < m.rate < 6]
    assert fine
    assert np.allclose(fine, 0.2546, atol=0.01)


@pytest.mark.parametrize(("rate", "gap"), [(0.1, 0.04), (0.5, 0.18), (1.0, 0.24)])
def test_low_rates_lose_less(rate: float, gap: float) -> None:
    """The best known scalar quantizer at one bit has D = 0.343 (Noll and Zelinski, 1978), 0.23 bit over the bound."""
    nearest = min(frontier(), key=lambda m: abs(m.rate - rate))
    assert nearest.rate == pytest.approx(rate, abs=0.1)
    assert above_shannon(nearest) < gap


def test_thresholds_and_points_interleave() -> None:
    for member in frontier():
        assert (member.points > member.thresholds).all()
        assert (member.points[:-1] < member.thresholds[1:]).all()


def test_rate_and_quality_are_those_of_samples() -> None:
    samples = np.random.default_rng(0).standard_normal(200_000)
    for member in frontier()[::12]:
        level = np.searchsorted(member.thresholds, np.abs(samples), side="right")
        symbols = np.where(samples < 0, -level, level)
        _, counts = np.unique(symbols, return_counts=True)
        share = counts / len(samples)
        assert -(share * np.log2(share)).sum() == pytest.approx(member.rate, rel=0.03, abs=2e-3)
        decoded = np.where(level > 0, np.concatenate(([0.0], member.points))[level], 0.0) * np.sign(samples)
        cosine2 = (samples @ decoded) ** 2 / ((samples @ samples) * (decoded @ decoded))
        assert cosine2 == pytest.approx(member.cosine2, rel=0.02, abs=2e-3)


def test_thresholds_minimise_the_cost() -> None:
    points, bits, slope = np.array([1.0, 2.0, 3.2]), np.array([0.5, 3.0, 5.0, 8.0]), 0.1
    cuts = thresholds_for(points, bits, slope)
    values = np.linspace(0, 4, 4001)
    levels = np.concatenate(([0.0], points))
    best = ((values[:, None] - levels) ** 2 + slope * bits).argmin(axis=1)
    assert (np.searchsorted(cuts, values, side="right") == best).mean() > 0.999
