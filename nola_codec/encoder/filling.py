"""The last percents of a target: single units nudged to a finer or a coarser precision.

Lambda moves all units; where few strong components carry an adapter, one of them changing its coder is a step wider
than the rate control allows. What is left of a target is then filled by steps of other units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.fit.allocation import RatePlan, coder_class, rate_table, precision_shift
from nola_codec.fit.canonical_form import CanonicalForm

_REACH = 4
"""Precisions that a unit may be moved by."""


@dataclass(frozen=True)
class Moves:
    """What moving one unit does: parallel arrays.

    Attributes:
        unit: int64: index into the form's units.
        nudge: int64: change of its precision.
        bits, error: float64: change of the file's bits and of the objective's error.
    """

    unit: Int64Array
    nudge: Int64Array
    bits: Float64Array
    error: Float64Array


def moves(form: CanonicalForm, plan: RatePlan) -> Moves:
    """All single moves of the units kept by a plan of one rung."""
    total = max(float((form.strength**2).sum()), 1e-300)
    rate = np.zeros((2 * _REACH + 1, len(plan.kept)))
    survival = np.ones((2 * _REACH + 1, len(plan.kept)))
    for side in (0, 1):
        for role, length, own in form.groups(side, plan.kept):
            table = rate_table(plan.objectives, role, coder_class(role, length), plan.steps)
            for place, nudge in enumerate(range(-_REACH, _REACH + 1)):
                where = table.at(np.clip(plan.precision[own] + nudge, 0, 255) + precision_shift(length))
                rate[place, own] += table.rate[-1, where] * length
                survival[place, own] *= table.survival[-1, where]
    bits = rate - rate[_REACH]
    error = (survival[_REACH] - survival) * form.strength[plan.kept] ** 2 / total
    row, position = np.nonzero((bits != 0) & (survival > 0))
    return Moves(plan.kept[position], row - _REACH, bits[row, position], error[row, position])


def fill(form: CanonicalForm, plan: RatePlan, *, bits: float = 0.0, error: float = 0.0) -> Int64Array:
    """Nudges (units,) that use up spare bits for the most error, or spare error for the most bits; 0 where none."""
    possible = moves(form, plan)
    if bits > 0:
        cost, gain, budget = possible.bits, -possible.error, bits
    else:
        cost, gain, budget = possible.error, -possible.bits, error
    nudges = np.zeros(form.units, np.int64)
    usable = np.flatnonzero((cost > 0) & (gain > 0) & (cost <= budget))
    for move in usable[np.argsort(-gain[usable] / cost[usable], kind="stable")].tolist():
        unit = int(possible.unit[move])
        if nudges[unit] == 0 and cost[move] <= budget:
            nudges[unit] = possible.nudge[move]
            budget -= float(cost[move])
    return nudges
