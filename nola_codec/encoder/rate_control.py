"""Rate control: find the lambda whose file has the wanted size or error.

Plans give expected sizes and errors. A draft, which is quantized but not yet entropy-coded, corrects them. Two or three
drafts reach the target. The finished file is then measured, and if it misses its target, `correct_target` returns the
next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nola_codec.decoder.carried_forms import CODED
from nola_codec.encoder.carried_notes import LARGE_SHARE, carried_advice
from nola_codec.encoder.drafts import COARSEST, FINEST, Draft, Drafter
from nola_codec.encoder.filling import fill_budget
from nola_codec.encoder.job import EncodeJob
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import PRECISION_STEPS, Grain, Objective, RatePlan
from nola_codec.fit.noise_limit import QUIETER_OBJECTIVES, noise_limit
from nola_codec.rendering import render_largest

_DRAFTS = 7
"""Greatest number of drafts of a search."""
_SLACK = 0.004
"""The share of a target that may stay unused without a further draft."""
_SEARCHED_BYTES = 1_000_000
"""Bytes of coefficients beyond which quantizers with memory are left out, unless the option `thorough` is on."""
_FINE_BYTES = 40_000
"""Bytes of coefficients from which all quantizers are offered."""
_BISECTED = (4, 6)
"""The drafts at which a search halves its bracket, since its guesses have not come close."""
_NARROW = 2e-3
"""The width of the bracket of log2 lambda at which the search ends."""
_UNDER = 0.9985
"""The share of a target that guesses aim at, since estimates scatter."""
_TRAINED_SHARE, _TRAINED_BYTES = 0.995, 40
"""The limit of a task-trained file is multiplied by the first and lowered by the second: amplitudes may grow."""
RUNGS = 4
"""The greatest number of rungs of a progressive file whose sizes are not given."""
SMALLEST_RUNG = 5000
"""The least size in bytes of a rung whose size is not given."""


@dataclass(frozen=True)
class RateTarget:
    """The size or the error that a file is to reach.

    Attributes:
        aim: The bytes or the error that drafts are made for. It is corrected if the finished file misses the target.
        is_size: True if the target is a size, False if it is an error in the objective.
        limit: The bytes that the file may take, or 0 if the target is an error.
        misses: The number of finished files that missed the target.
        margin: The bytes by which the draft of trained vectors has to stay below the limit. It grows if the finished
            file misses the target.
        correction: The `correction_of` the draft of the attempt before, with which a search begins; None if there is
            none.
    """

    aim: float
    is_size: bool
    limit: int = 0
    misses: int = 0
    margin: int = 0
    correction: float | None = None

    @property
    def draft_aim(self) -> float:
        """The aim of one draft: a whole number of bytes, or the error."""
        return int(self.aim) if self.is_size else self.aim

    def value(self, draft: Draft) -> float:
        """Return the size or the error of a draft."""
        return draft.bytes if self.is_size else draft.error

    def fits(self, draft: Draft) -> bool:
        """Return True if a draft meets the target."""
        return self.value(draft) <= self.draft_aim

    def is_close(self, draft: Draft) -> bool:
        """Return True if a draft that fits comes within 0.3% of a size or 0.5% of an error."""
        return self.value(draft) >= (0.997 if self.is_size else 0.995) * self.draft_aim

    def slack(self, draft: Draft) -> float:
        """Return the share of the target that a draft leaves unused."""
        return 1 - self.value(draft) / self.draft_aim


def first_target(job: EncodeJob) -> RateTarget:
    """Return the target that the options ask for."""
    options = job.options
    if options.error_target is not None:
        return RateTarget(options.error_target * job.dilution, is_size=False)
    limit = options.size if options.size is not None else int(2 * job.parameters / (options.ratio or 1))
    aim = limit * _TRAINED_SHARE - _TRAINED_BYTES if options.tuner is not None else limit
    return RateTarget(aim, is_size=True, limit=limit)


def correct_target(job: EncodeJob, target: RateTarget, size: int, reached: float | None) -> RateTarget | None:
    """Return the target of the next attempt, or None if the file meets the options.

    Estimates of sizes are right to a few bytes, and those of errors to the rounding to int16, so misses are rare and
    small. Estimates for deltas of several parts are worse, and another aim may give the same draft if there are few
    units: each miss of an error after the second lowers the aim by more.

    Args:
        job: The encode.
        target: The target of this attempt.
        size: The bytes of the finished file.
        reached: Its measured error in the objective; None if the estimate of the draft is exact.
    """
    if target.is_size:
        over = size - target.limit
        if over <= 0:
            return None
        if job.options.tuner is not None:
            return replace(target, margin=target.margin + over + 8)
        return replace(target, aim=target.aim - (1.2 * over + 8))
    wanted = job.options.error_target
    if wanted is None or reached is None or reached <= wanted:
        return None
    finer = 1.0 if target.misses < 2 else max(0.5, 1 - 0.01 * 3 ** (target.misses - 2))
    return replace(target, aim=target.aim * finer * (0.999 * wanted / reached), misses=target.misses + 1)


def reach_target(drafter: Drafter, target: RateTarget) -> Draft:
    """Make the draft that meets a target: the smallest for an error, or the best for a size.

    Args:
        drafter: A maker of drafts of one rung, in the objective that was asked for.
        target: The target of the file, or of its last rung if the options ask for rungs.

    Raises:
        EncodeError: ``unreachable``: No draft meets the target.
    """
    options = drafter.job.options
    drafter = with_noise_limit(drafter, target)
    if options.has_rungs:
        drafter = with_rungs(drafter, options.rungs, plan_target(drafter, target))
    return draft_for_size(drafter, target) if target.is_size else draft_for_error(drafter, target)


def with_noise_limit(
    drafter: Drafter,
    target: RateTarget,
    objectives: Sequence[Objective] = QUIETER_OBJECTIVES,
    limit: float | None = None,
) -> Drafter:
    """Return the drafter with the first objective whose plan for the target lets in no more noise than the limit.

    The size of the plan then decides the set of coders. If the drafter's objective is the NMSE, it stays.

    Args:
        drafter: A maker of drafts of one rung.
        target: The target.
        objectives: The objectives to choose from, each quieter than the one before; the last one if none fits.
        limit: The greatest noise over ||delta_W||^2 of the file; None stands for the `noise_limit` of the form.
    """
    chosen = drafter.objectives[-1]
    if chosen.name != "nmse" and drafter.form.whole is None:  # with a reference, the pipeline sees to it
        limit = noise_limit(drafter.form) if limit is None else limit
        low, high = 0, len(objectives) - 1
        while low < high:
            middle = (low + high) // 2
            plan = plan_target(replace(drafter, objectives=(objectives[middle],)), target)
            if plan.noise[-1] <= limit:
                high = middle
            else:
                low = middle + 1
        chosen = objectives[low]
    coded = float(plan_target(replace(drafter, objectives=(chosen,)), target).bits.sum()) / 8
    grain: Grain = "fine" if coded > _FINE_BYTES else "coarse"
    if coded > _SEARCHED_BYTES and not drafter.job.options.thorough:
        grain = "scalar"
    return replace(drafter, objectives=(replace(chosen, grain=grain),))


def with_rungs(drafter: Drafter, sizes: Sequence[int] | None, last: RatePlan) -> Drafter:
    """Return the drafter of a progressive file whose last rung is about `last`.

    Args:
        drafter: A maker of drafts of one rung.
        sizes: The bytes of the coarser rungs. None makes each rung a quarter of the next, down to SMALLEST_RUNG, and
            at most RUNGS rungs in all.
        last: A plan of one rung.
    """
    empty = drafter.empty_bytes
    whole = float(last.bits.sum() / 8 + empty)
    if sizes is None:
        quarters = [whole / 4**k for k in range(RUNGS - 1, 0, -1)]
        sizes = [int(size) for size in quarters if size >= max(SMALLEST_RUNG, 2 * empty)]
    steps = {0: last.objectives[-1]}
    for size in sizes:
        target = RateTarget(size, is_size=True)
        alone = with_noise_limit(drafter, target)
        coarser = plan_target(alone, target)
        beside = alone.draft(coarser.lagrangian).bytes - float(coarser.bits.sum()) / 8 - empty
        coarser = plan_target(alone, RateTarget(max(1.0, size - beside), is_size=True))
        step = round(PRECISION_STEPS / 2 * float(np.log2(last.lagrangian / coarser.lagrangian)))
        if step < 0:
            steps.setdefault(step, coarser.objectives[-1])
    return replace(drafter, steps=tuple(sorted(steps)), objectives=tuple(steps[step] for step in sorted(steps)))


def plan_target(drafter: Drafter, target: RateTarget) -> RatePlan:
    """Return the plan that meets a target in theory, without a draft."""
    if target.is_size:
        lagrangian = _solve(drafter, _coded_bytes, max(1.0, target.aim - drafter.empty_bytes))
    else:
        lagrangian = _solve(drafter, lambda plan: 1 - drafter.expected_error(plan), 1 - target.aim)
    return drafter.plan(lagrangian)


def draft_for_size(drafter: Drafter, target: RateTarget) -> Draft:
    """Make the best draft of at most the wanted size, within 0.3% of it if the adapter allows it.

    Raises:
        EncodeError: ``unreachable``: The file is larger even with no unit.
    """
    limit = int(target.aim)
    empty = drafter.draft_empty().bytes
    if empty > limit:
        raise EncodeError(_too_small_message(drafter.job, max(limit, target.limit), empty), code="unreachable")
    finest = drafter.finest_plan()
    if _coded_bytes(finest) + empty <= limit:
        found = drafter.draft(finest.lagrangian)
        if target.fits(found):  # a plan does not count the tables of its quantizers
            return found
    best = _search(drafter, target, empty)
    return drafter.draft_empty() if best is None else _fill(drafter, target, best)


def _too_small_message(job: EncodeJob, limit: int, empty: int) -> str:
    """Return the message for a size that is smaller than a file with no unit; it names the largest carried tensors."""
    ratio = job.options.ratio
    wanted = f"size {limit} bytes" if ratio is None else f"ratio {ratio:g}, which is {limit} bytes,"
    message = f"{wanted} cannot be reached: names, configuration and carried tensors alone take {empty} bytes"
    if limit >= empty:
        return f"{message}, and a trained file needs {_TRAINED_BYTES} more for its amplitudes"
    sizes = {name: len(data) for name, (_, data) in zip(job.envelope.raw, job.raw_sections, strict=True)}
    coded = {item.name.removesuffix(CODED): item.vector_lengths[0] for item in job.items if item.is_carried}
    left = empty - sum(sizes.values())  # coded carried tensors take nearly all of it
    sizes |= {name: round(left * length / sum(coded.values())) for name, length in coded.items()}
    if sum(sizes.values()) <= LARGE_SHARE * empty:
        return message
    advice = carried_advice(job.carried)
    return f"{message}, most of them {render_largest(sizes)}{f'; {advice}' if advice else ''}"


def draft_for_error(drafter: Drafter, target: RateTarget) -> Draft:
    """Make the smallest draft whose error is at most the wanted one, within 0.5% of it if the adapter allows it.

    Raises:
        EncodeError: ``unreachable``: The finest quantizers lose more, and no delta of several parts will be measured.
    """
    if drafter.form.whole is not None:  # the reference alone may be near enough
        empty = drafter.draft_empty()
        if target.fits(empty):
            return empty
    best = _search(drafter, target, drafter.empty_bytes)
    if best is not None:
        return _fill(drafter, target, best)
    finest = drafter.draft(drafter.finest_plan().lagrangian)
    if target.fits(finest) or not drafter.job.shared_deltas.is_empty:
        return finest
    raise too_fine(drafter.job.options.error_target or target.aim, finest.error / drafter.job.dilution)


def too_fine(wanted: float, left: float) -> EncodeError:
    """Return the refusal of an error that is smaller than what the finest quantizers leave."""
    message = f"error {wanted:g} cannot be reached: the finest quantizers leave {left:.3g}"
    return EncodeError(message, code="unreachable")


def _search(drafter: Drafter, target: RateTarget, empty: int) -> Draft | None:
    """Make drafts at guessed lambdas, inside a bracket that becomes narrower, until one is close to the target.

    Args:
        drafter: The maker of drafts.
        target: The target that they have to meet.
        empty: The bytes of a file with no unit.

    Returns:
        The closest draft that fits, or None if none was found.
    """
    first = target.correction
    if first is None:
        first = float(empty) if target.is_size else 1.0
    inside: _Try | None = None  # the best draft that fits
    outside: _Try | None = None
    found: Draft | None = None
    fits = False  # True if `found` is the best draft; an older one is made again, not kept in memory
    step = 5 * _NARROW  # of a guess that does not move
    for attempt in range(_DRAFTS):
        tries = sorted(each for each in (inside, outside) if each is not None)
        at = _guess(drafter, target, tries or [_Try(0.0, first)])
        if len(tries) == 2:
            low, high = tries[0].at, tries[1].at
            if high - low < _NARROW:
                break
            margin = (high - low) / 16
            if attempt in _BISECTED or not low < at < high:
                at = (low + high) / 2
            at = min(max(at, low + margin), high - margin)
        elif tries and abs(at - tries[0].at) < _NARROW:
            # Small lambdas meet an error, and large ones a size. The next step goes away from the known side.
            finer = target.is_size == (outside is None)
            at += (-1.0 if finer else 1.0) * step
            step *= 8
        found = None  # frees the last draft before the next one is made
        found = drafter.draft(2.0**at)
        fits = target.fits(found)
        made = _Try(at, correction_of(drafter, target, found))
        if not fits:
            outside = made
            continue
        inside = made
        if target.is_close(found):
            break
    if inside is None:
        return None
    return found if fits else drafter.draft(2.0**inside.at)


class _Try(NamedTuple):
    """A lambda of a search, and what its draft has beyond its plan.

    Attributes:
        at: log2 lambda.
        correction: The `correction_of` the draft.
    """

    at: float
    correction: float


def correction_of(drafter: Drafter, target: RateTarget, draft: Draft) -> float:
    """Return what a draft has beyond its plan: bytes for a size, and for an error the factor between the two errors."""
    if target.is_size:
        return draft.bytes - _coded_bytes(draft.plan)
    return draft.error / max(drafter.expected_error(draft.plan), 1e-12) if draft.error > 0 else 1.0


def _guess(drafter: Drafter, target: RateTarget, tries: Sequence[_Try]) -> float:
    """Return log2 of the lambda that meets a target in theory, corrected by what one or two drafts had beyond theirs.

    Between two drafts the correction changes evenly with log2 lambda.
    """

    def correction(plan: RatePlan) -> float:
        return float(
            np.interp(np.log2(plan.lagrangian), [each.at for each in tries], [each.correction for each in tries])
        )

    def size(plan: RatePlan) -> float:
        return _coded_bytes(plan) + correction(plan)

    def exactness(plan: RatePlan) -> float:  # the error rises with lambda, so 1 - error falls
        return 1 - drafter.expected_error(plan) * correction(plan)

    if target.is_size:
        return float(np.log2(_solve(drafter, size, _UNDER * target.draft_aim)))
    return float(np.log2(_solve(drafter, exactness, 1 - _UNDER * target.aim)))


def _fill(drafter: Drafter, target: RateTarget, draft: Draft) -> Draft:
    """Improve a draft that fits by changes of single units."""
    left = target.slack(draft)
    if left < _SLACK or len(drafter.steps) > 1:
        return draft
    plan = draft.plan
    bits, error = (8.0 * target.draft_aim, 0.0) if target.is_size else (0.0, target.aim)
    for part in (0.95, 0.7, 0.4):
        nudges = fill_budget(drafter.form, plan, bits=part * left * bits, error=part * left * error)
        improved = drafter.draft(plan.lagrangian, nudges)
        if target.fits(improved):
            return improved
    return drafter.draft(plan.lagrangian)


def _coded_bytes(plan: RatePlan) -> float:
    """Return the expected bytes of a plan's units."""
    return float(plan.bits.sum() / 8)


def _solve(drafter: Drafter, falling: Callable[[RatePlan], float], wanted: float) -> float:
    """Return the lambda at which a quantity that falls with lambda reaches `wanted`, by bisection."""
    low, high = FINEST + drafter.log2_unit, COARSEST + drafter.log2_unit
    for _ in range(26):
        middle = (low + high) / 2
        if falling(drafter.plan(2.0**middle)) > wanted:
            low = middle
        else:
            high = middle
    return float(2.0 ** ((low + high) / 2))
