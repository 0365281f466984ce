"""Rate control: targets are reached and not exceeded, in the size and in the error, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest

from nola_codec.encoder.drafts import Drafter, make_drafter
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.pipeline import canonical_form
from nola_codec.encoder.rate_control import (
    RateTarget,
    correct_target,
    draft_for_error,
    draft_for_size,
    first_target,
    plan_target,
    reach_target,
    with_noise_limit,
    with_rungs,
)
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import NMSE, OBJECTIVES
from nola_codec.fit.noise_limit import QUIETER_OBJECTIVES, noise_limit


def drafter_for(job: EncodeJob) -> Drafter:
    return make_drafter(job, canonical_form(job), OBJECTIVES[job.options.objective_name])


@pytest.mark.parametrize("objective", ["nmse", "effective"])
def test_sizes_are_reached_and_errors_fall_with_them(objective: str, make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job(objective=objective))
    errors = []
    for size in (1200, 1800, 2600, 4000):
        draft = reach_target(drafter, RateTarget(size, is_size=True, limit=size))
        assert 0.95 * size <= draft.bytes <= size
        errors.append(draft.error)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("objective", ["nmse", "effective"])
def test_errors_are_reached_and_sizes_fall_with_them(objective: str, make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job(objective=objective))
    sizes = []
    for error in (0.02, 0.1, 0.3, 0.6):
        draft = reach_target(drafter, RateTarget(error, is_size=False))
        assert 0.93 * error <= draft.error <= error
        sizes.append(draft.bytes)
    assert sizes == sorted(sizes, reverse=True)


def test_unreachable_targets_are_refused(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job(nmse=0.1))
    with pytest.raises(EncodeError, match=f"take {drafter.empty_bytes} bytes") as caught:
        draft_for_size(drafter, RateTarget(drafter.empty_bytes - 1, is_size=True))
    assert caught.value.code == "unreachable"
    with pytest.raises(EncodeError, match="the finest quantizers leave") as caught:
        draft_for_error(drafter, RateTarget(1e-9, is_size=False))
    assert caught.value.code == "unreachable"


def test_the_least_and_the_largest_size(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    least = draft_for_size(drafter, RateTarget(drafter.empty_bytes, is_size=True))
    assert least.bytes == drafter.empty_bytes
    assert len(least.plan.kept) == 0
    finest = drafter.draft(drafter.finest_plan().lagrangian)
    assert draft_for_size(drafter, RateTarget(10**9, is_size=True)).bytes == finest.bytes


def test_a_plan_of_theory_is_near_its_target(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    plan = plan_target(drafter, RateTarget(3000, is_size=True))
    assert plan.bits.sum() / 8 + drafter.empty_bytes == pytest.approx(3000, rel=0.05)
    plan = plan_target(drafter, RateTarget(0.2, is_size=False))
    assert drafter.expected_error(plan) == pytest.approx(0.2, rel=0.05)


def test_the_noise_limit_takes_the_loudest_objective_below_it(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    tight, loose = (RateTarget(size, is_size=True) for size in (500, 800))
    quiet = with_noise_limit(drafter, tight, limit=3.0)
    place = [o.gamma for o in QUIETER_OBJECTIVES].index(quiet.objectives[0].gamma)
    assert place > 0
    assert plan_target(quiet, tight).noise[-1] <= 3.0
    louder = replace(quiet, objectives=(QUIETER_OBJECTIVES[place - 1],))
    assert plan_target(louder, tight).noise[-1] > 3.0
    assert with_noise_limit(drafter, loose, limit=3.0).objectives[0].gamma[0] > quiet.objectives[0].gamma[0]
    assert with_noise_limit(replace(drafter, objectives=(NMSE,)), tight).objectives[0].gamma == NMSE.gamma


def test_the_noise_limit_is_that_of_the_form(make_job: Callable[..., EncodeJob]) -> None:
    drafter = drafter_for(make_job())
    target = RateTarget(500, is_size=True)
    own = with_noise_limit(drafter, target)
    assert own.objectives == with_noise_limit(drafter, target, limit=noise_limit(drafter.form)).objectives
    faint = replace(drafter, form=replace(drafter.form, strength=drafter.form.strength / 1000))
    assert noise_limit(faint.form) > noise_limit(drafter.form)


def test_rungs_come_below_the_last_and_in_order(make_job: Callable[..., EncodeJob]) -> None:
    drafter = with_noise_limit(drafter_for(make_job()), RateTarget(5000, is_size=True))
    last = plan_target(drafter, RateTarget(5000, is_size=True))
    made = with_rungs(drafter, (1400, 2500), last)
    assert len(made.steps) == len(made.objectives) == 3
    assert list(made.steps) == sorted(made.steps)
    assert made.steps[-1] == 0
    draft = made.draft(last.lagrangian)
    assert draft.quantized.rungs == 3
    ends = np.cumsum(draft.plan.bits / 8) + drafter.empty_bytes
    assert 0.7 * 1400 <= ends[0] <= 1400  # the header of several rungs is not counted
    assert 0.7 * 2500 <= ends[1] <= 2500
    assert with_rungs(drafter, None, last).steps == (0,)  # too small a file for rungs of its own


def test_the_first_target_is_what_the_options_ask_for(make_job: Callable[..., EncodeJob]) -> None:
    assert first_target(make_job(size=5000)) == RateTarget(5000, is_size=True, limit=5000)
    assert first_target(make_job(nmse=0.1)) == RateTarget(0.1, is_size=False)
    job = make_job(ratio=10)
    assert first_target(job).limit == 2 * job.parameters // 10


def test_a_miss_of_a_trained_file_leaves_its_limit(make_job: Callable[..., EncodeJob]) -> None:
    """The drafts have to be smaller; a file that keeps the limit is taken, however small they had to be."""
    job = make_job(size=5000)
    job = replace(job, options=replace(job.options, fit="task", tuner=cast(Any, object())))  # nothing is trained here
    missed = correct_target(job, first_target(job), 5010, None)
    assert missed is not None
    assert (missed.limit, missed.margin) == (5000, 18)
    again = correct_target(job, missed, 5001, None)
    assert again is not None
    assert (again.limit, again.margin) == (5000, 27)
    assert correct_target(job, again, 4999, None) is None


def test_a_miss_corrects_the_aim(make_job: Callable[..., EncodeJob]) -> None:
    job = make_job(size=5000)
    target = first_target(job)
    assert correct_target(job, target, 5000, None) is None
    missed = correct_target(job, target, 5010, None)
    assert missed == RateTarget(5000 - 20, is_size=True, limit=5000)
    job = make_job(nmse=0.1)
    target = first_target(job)
    assert correct_target(job, target, 1, 0.1) is None
    assert correct_target(job, target, 1, None) is None
    missed = correct_target(job, target, 1, 0.11)
    assert missed is not None
    assert missed.aim == pytest.approx(0.999 * 0.1 * 0.1 / 0.11)


def test_misses_that_go_on_lower_the_aim_by_more(make_job: Callable[..., EncodeJob]) -> None:
    """Another aim may give the same draft, whose error is a little too large each time."""
    job = make_job(nmse=0.1)
    target = first_target(job)
    aims = [target.aim]
    for _ in range(8):
        missed = correct_target(job, target, 1, 0.1001)
        assert missed is not None
        target = missed
        aims.append(target.aim)
    shares = [after / before for before, after in pairwise(aims)]
    assert shares[0] == shares[1] == pytest.approx(0.998, abs=1e-4)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.499, abs=1e-3)
