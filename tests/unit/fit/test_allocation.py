"""Gains, survival and the Lagrangian have the values that their definitions give."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from nola_codec.fit.allocation import EFFECTIVE, NMSE, Objective, make_plan, precision_shift, rate_table
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.coders import TrellisCoder, coders, stride_limit

SHAPES = [(96, 256, 12), (256, 256, 12), (97, 64, 10)]
LAMBDAS = 2.0 ** np.arange(-16, 1, 1.0)


@pytest.mark.parametrize("objective", [NMSE, EFFECTIVE])
@pytest.mark.parametrize("side", [0, 1])
def test_gain_and_survival_minimise_the_effective_error(objective: Objective, side: int) -> None:
    gains = np.linspace(0, 25, 400_001)
    for cosine2 in (0.05, 0.3, 0.8, 0.99):
        error = (1 - gains * cosine2) ** 2 + gains**2 * cosine2 * (1 - cosine2) / objective.gamma[side]
        value = np.array([cosine2])
        assert objective.gain(value, side)[0] == pytest.approx(gains[error.argmin()], abs=1e-3)
        assert 1 - objective.survival(value, side)[0] == pytest.approx(error.min(), abs=1e-6)


@pytest.mark.parametrize("objective", [NMSE, EFFECTIVE])
@pytest.mark.parametrize("side", [0, 1])
def test_rates_rise_with_precision(objective: Objective, side: int) -> None:
    for stride in (0, 3, 24):
        steps = rate_table((objective,), side, stride)
        assert (np.diff(steps.rate[0]) >= 0).all()
        assert (np.diff(steps.cosine2[0]) >= 0).all()
        assert (np.diff(steps.survival[0]) >= 0).all()
        assert steps.coder[0, 0] == -1  # weak vectors are not coded
        assert steps.coder[0, -1] == len(coders()) - 1
        trellises = [coders()[c].trellis for c in set(steps.coder[0]) if isinstance(coders()[c], TrellisCoder)]
        assert max((t.stride for t in trellises), default=0) == stride


def test_several_rungs_end_near_the_result_of_one() -> None:
    """The distortions of rungs multiply, and their rates add up to little more than a single coder takes."""
    alone = rate_table((NMSE,), 1, 24)
    steps = rate_table((NMSE,) * 3, 1, 24, (-24, -12, 0))
    assert (np.diff(steps.cosine2, axis=0) >= 0).all()
    busy = (alone.rate[0] > 0.2) & (alone.rate[0] < 2.5)
    assert (1 - steps.cosine2[-1][busy]).mean() == pytest.approx((1 - alone.cosine2[0][busy]).mean(), rel=0.15)
    assert steps.rate.sum(axis=0)[busy].mean() < 1.08 * alone.rate[0][busy].mean()


@pytest.mark.parametrize("objective", [NMSE, EFFECTIVE])
def test_what_is_kept_shrinks_as_bits_get_dear(objective: Objective, make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    plans = [make_plan(form, (objective,), value) for value in LAMBDAS]
    for cheap, dear in pairwise(plans):
        assert set(dear.kept) <= set(cheap.kept)
        assert dear.bits[0] <= cheap.bits[0]
    assert len(plans[0].kept) > len(plans[-1].kept)


def test_nmse_is_reverse_water_filling(make_form: Callable[..., CanonicalForm]) -> None:
    """Strong components all end at one distortion, the water level. Components below it vanish."""
    form = make_form([(256, 256, 24)], decay=0.75)
    plan = make_plan(form, (NMSE,), 2.0**-13)
    rates = np.array([[coders()[c].rate for c in side] for side in plan.coder[0]])
    left = []
    for side in (0, 1):
        steps = rate_table((NMSE,), side, stride_limit(256))
        at = steps.positions(plan.precision + precision_shift(256))
        left.append(form.strength[plan.kept] ** 2 * (1 - steps.survival[0, at]))
    distortion = np.stack(left)
    fine = distortion[rates > 1.5]
    assert fine.size >= 10
    assert fine.max() / fine.min() < 1.35
    level = np.median(fine)
    dropped = np.setdiff1d(np.arange(form.units), plan.kept)
    assert len(dropped)
    # A component of two vectors is worth coding only well above the level, and always when far above it.
    assert (form.strength[dropped] ** 2).max() < 6 * level
    assert (form.strength[plan.kept] ** 2).min() > level


def test_equal_strength_gets_equal_bits(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form([(128, 128, 6)], decay=1.0)
    plan = make_plan(form, (NMSE,), 2.0**-10)
    assert len(plan.kept) == 6
    assert np.ptp(plan.coder[0], axis=1).tolist() == [0, 0]
    assert np.ptp(plan.precision) == 0


def test_effective_keeps_more_components_for_the_same_bits(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form([(256, 256, 24)], decay=0.8)

    def kept_at(objective: Objective, bits: float) -> int:
        plans = [make_plan(form, (objective,), value) for value in 2.0 ** np.arange(-18, 2, 0.1)]
        return len(min(plans, key=lambda plan: abs(plan.bits[0] - bits)).kept)

    assert kept_at(EFFECTIVE, 4000) > kept_at(NMSE, 4000)


def test_at_most_so_many_components_are_kept(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES, most=3)
    plan = make_plan(form, (NMSE,), 2.0**-16)
    assert sorted(set(form.component[plan.kept])) == [0, 1, 2]


def test_nothing_kept_of_nothing(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form([(32, 32, 3)], decay=0.0)
    plan = make_plan(form, (EFFECTIVE,), 2.0**-16)
    assert plan.kept.tolist() == [0]  # 0 ** 0 = 1: one component is not zero
    assert make_plan(form, (EFFECTIVE,), 2.0**20).bits.tolist() == [0]


def test_nudges_move_single_units(make_form: Callable[..., CanonicalForm]) -> None:
    form = make_form(SHAPES)
    plain = make_plan(form, (NMSE,), 2.0**-12)
    nudges = np.zeros(form.units, np.int64)
    nudges[plain.kept[2]] = -3
    moved = make_plan(form, (NMSE,), 2.0**-12, nudges=nudges)
    assert (moved.precision - plain.precision).tolist() == [0, 0, -3, *[0] * (len(plain.kept) - 3)]
    assert moved.bits[0] <= plain.bits[0]


def test_a_form_without_units_has_an_empty_plan(make_form: Callable[..., CanonicalForm]) -> None:
    """An adapter whose tensors are all carried has such a form."""
    for objectives, steps in (((NMSE,), (0,)), ((EFFECTIVE, EFFECTIVE), (-16, 0))):
        plan = make_plan(make_form([]), objectives, 1.0, steps)
        assert plan.coder.shape == (len(steps), 2, 0)
        assert plan.bits.tolist() == plan.noise.tolist() == [0] * len(steps)
