"""Single units are nudged only as far as the budget goes, and each step does what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nola_codec.encoder.filling import fill_budget, unit_steps
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.pipeline import canonical_form
from nola_codec.fit.allocation import NMSE, RatePlan, make_plan
from nola_codec.fit.canonical_form import CanonicalForm

LAMBDA = 2.0**-9


@pytest.fixture
def form(make_job: Callable[..., EncodeJob]) -> CanonicalForm:
    return canonical_form(make_job())


def error_of(form: CanonicalForm, plan: RatePlan) -> float:
    return 1 - float((form.strength[plan.kept] ** 2 * plan.survival[-1]).sum() / (form.strength**2).sum())


def test_a_step_changes_bits_and_error_as_it_says(form: CanonicalForm) -> None:
    plan = make_plan(form, (NMSE,), LAMBDA)
    steps = unit_steps(form, plan)
    assert len(steps.unit) > len(plan.kept)
    for step in range(0, len(steps.unit), 7):
        nudges = np.zeros(form.units, np.int64)
        nudges[steps.unit[step]] = steps.nudge[step]
        changed = make_plan(form, (NMSE,), LAMBDA, nudges=nudges)
        if changed.kept.tolist() != plan.kept.tolist():  # a coarser unit may no longer pay for itself
            continue
        assert changed.bits[0] - plan.bits[0] == pytest.approx(steps.bits[step], abs=1e-6)
        assert error_of(form, changed) - error_of(form, plan) == pytest.approx(steps.error[step], abs=1e-9)


@pytest.mark.parametrize("spare", [40.0, 400.0, 4000.0])
def test_spare_bits_lower_the_error(spare: float, form: CanonicalForm) -> None:
    plan = make_plan(form, (NMSE,), LAMBDA)
    nudges = fill_budget(form, plan, bits=spare)
    filled = make_plan(form, (NMSE,), LAMBDA, nudges=nudges)
    assert 0 < filled.bits[0] - plan.bits[0] <= spare
    assert error_of(form, filled) < error_of(form, plan)
    assert (nudges >= 0).all()


def test_spare_error_saves_bits(form: CanonicalForm) -> None:
    plan = make_plan(form, (NMSE,), LAMBDA)
    spare = 0.2 * error_of(form, plan)
    nudges = fill_budget(form, plan, error=spare)
    filled = make_plan(form, (NMSE,), LAMBDA, nudges=nudges)
    assert filled.bits[0] < plan.bits[0]
    assert (nudges <= 0).all()
    if filled.kept.tolist() == plan.kept.tolist():
        assert 0 < error_of(form, filled) - error_of(form, plan) <= spare


def test_no_budget_moves_nothing(form: CanonicalForm) -> None:
    plan = make_plan(form, (NMSE,), LAMBDA)
    assert not fill_budget(form, plan, bits=1e-9).any()
    assert not fill_budget(form, plan).any()
