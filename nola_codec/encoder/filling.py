"""Use the last percents of a target: single units get a finer or a coarser precision.

Lambda moves all units at once. If a few strong components carry an adapter, a change of coder of one of them may be a
wider step than rate control allows. Steps of other units then use what is left of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.fit.allocation import RatePlan, coder_class, precision_shift, rate_table
from nola_codec.fit.canonical_form import CanonicalForm

_REACH = 4
"""The greatest change of the precision of a unit."""


@dataclass(frozen=True)
class UnitSteps:
    """The possible changes of the precision of one unit, and their effects: arrays with one element for each change.

    Attributes:
        unit: int64: the index into the form's units.
        nudge: int64: the change of the unit's precision.
        bits, error: float64: the changes of the file's bits and of the error in the objective.
    """

    unit: Int64Array
    nudge: Int64Array
    bits: Float64Array
    error: Float64Array


def unit_steps(form: CanonicalForm, plan: RatePlan) -> UnitSteps:
    """Return all possible changes of the units that a plan of one rung keeps."""
    total = max(float((form.strength**2).sum()), 1e-300)
    rate = np.zeros((2 * _REACH + 1, len(plan.kept)))
    survival = np.ones((2 * _REACH + 1, len(plan.kept)))
    for side in (0, 1):
        for role, length, own in form.groups(side, plan.kept):
            table = rate_table(plan.objectives, role, coder_class(role, length), plan.steps)
            for place, nudge in enumerate(range(-_REACH, _REACH + 1)):
                where = table.positions(np.clip(plan.precision[own] + nudge, 0, 255) + precision_shift(length))
                rate[place, own] += table.rate[-1, where] * length
                survival[place, own] *= table.survival[-1, where]
    bits = rate - rate[_REACH]
    error = (survival[_REACH] - survival) * form.strength[plan.kept] ** 2 / total
    row, position = np.nonzero((bits != 0) & (survival > 0))
    return UnitSteps(plan.kept[position], row - _REACH, bits[row, position], error[row, position])


def fill_budget(form: CanonicalForm, plan: RatePlan, *, bits: float = 0.0, error: float = 0.0) -> Int64Array:
    """Choose nudges that use spare bits for the least error, or spare error for the fewest bits.

    Args:
        form: The units.
        plan: A plan of one rung.
        bits: The number of spare bits, or 0 if there is spare error.
        error: The spare error, or 0 if there are spare bits.

    Returns:
        int64 (units,): the change of each unit's precision, 0 for a unit that stays as it is.
    """
    possible = unit_steps(form, plan)
    if bits > 0:
        cost, gain, budget = possible.bits, -possible.error, bits
    else:
        cost, gain, budget = possible.error, -possible.bits, error
    nudges = np.zeros(form.units, np.int64)
    usable = np.flatnonzero((cost > 0) & (gain > 0) & (cost <= budget))
    for step in usable[np.argsort(-gain[usable] / cost[usable], kind="stable")].tolist():
        unit = int(possible.unit[step])
        if nudges[unit] == 0 and cost[step] <= budget:
            nudges[unit] = possible.nudge[step]
            budget -= float(cost[step])
    return nudges
