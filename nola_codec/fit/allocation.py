"""Which quantizer each vector gets: the Lagrangian of an objective over the frontier of scalar quantizers.

For a unit vector coded with squared cosine c, decoded with its best gain t = 1 / (c + (1 - c) / gamma), the share of it
that survives is A = c / (c + (1 - c) / gamma); a component of strength s costs s^2 (1 - A_u A_v), and both factors'
bits (design, section 5). gamma = 1 is plain least squares, where A = c and the cost is the squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nola_codec.fit.bank import Bank
from nola_codec.fit.ecsq import Ecsq, frontier
from nola_codec.fit.weighted_plan import best_precisions, cosine2_of, survival_of

Vector = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

PRECISION_STEPS = 8
"""Precisions an octave of strength."""
_BIAS = 64
P_LOW, P_HIGH = -96, 128
SIDE_BITS = 6.0
"""What a kept component costs beside its coefficients."""

# Rates of the quantizers that a file may use; vectors between two of them scale their input (see `Ladder.gain`).
_RUNGS = (
    0.012, 0.02, 0.033, 0.05, 0.075, 0.11, 0.16, 0.22, 0.3, 0.4, 0.52, 0.66, 0.82, 1.0, 1.2, 1.45, 1.7, 2.0, 2.3, 2.6,
    3.0, 3.4, 3.8, 4.2, 4.6, 5.0, 5.5, 6.0, 6.5,
)  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What is minimised: gamma of lora_B's side (u) and of lora_A's side (v); both 1 for the NMSE."""

    name: str
    gamma: tuple[float, float]

    def survival(self, cosine2: Vector, side: int, tolerance: Vector | float = 1.0) -> Vector:
        """A of the module's docstring; `tolerance` is a factor on gamma."""
        return survival_of(cosine2, self.gamma[side] * tolerance)

    def gain(self, cosine2: Vector, side: int, tolerance: Vector | float = 1.0) -> Vector:
        """t of the module's docstring."""
        return np.asarray(1 / (cosine2 + (1 - cosine2) / (self.gamma[side] * tolerance)))


NMSE = Objective("nmse", (1.0, 1.0))
EFFECTIVE = Objective("effective", (20.0, 60.0))
OBJECTIVES = {o.name: o for o in (NMSE, EFFECTIVE)}


@dataclass(frozen=True)
class Ladder:
    """For each integer precision from P_LOW: the quantizer, its input gain, what survives and the rate.

    Attributes:
        rungs: The quantizers, rate ascending.
        rung: int64 (precisions,): index into rungs, -1 where nothing is coded.
        threshold: float64 (precisions,): first threshold of the ideal quantizer at that precision.
        survival, rate: float64 (precisions,).
    """

    rungs: tuple[Ecsq, ...]
    rung: Index
    threshold: Vector
    survival: Vector
    rate: Vector

    def at(self, precision: Index) -> Index:
        """Positions in the arrays of integer precisions."""
        return np.clip(precision - P_LOW, 0, len(self.rung) - 1)

    def gain(self, exact: Vector, rung: Index) -> Vector:
        """Factor on a vector's coefficients before it meets the rung's thresholds, from its exact precision."""
        grid = np.arange(P_LOW, P_HIGH, dtype=np.float64)
        wanted = np.exp(np.interp(exact, grid, np.log(self.threshold)))
        first = np.array([r.thresholds[0] for r in self.rungs])
        return np.asarray(first[np.maximum(rung, 0)] / wanted)


@lru_cache(maxsize=8)
def ladder(objective: Objective, side: int) -> Ladder:
    """The map from precision to quantizer of one side; precision p is 8 log2(strength / sqrt(lambda n))."""
    members = frontier()
    rates = np.array([m.rate for m in members])
    survival = objective.survival(np.array([m.cosine2 for m in members]), side)
    grid = np.arange(P_LOW, P_HIGH)
    value = survival[None, :] * (2.0 ** (grid / (PRECISION_STEPS / 2)))[:, None] - rates[None, :]
    best = value.argmax(axis=1)
    coded = value.max(axis=1) > 0
    nearest = [int(np.abs(rates - rate).argmin()) for rate in _RUNGS]
    chosen = sorted(set(nearest))
    of_member = np.array([int(np.abs(np.log(rates[chosen]) - np.log(r)).argmin()) for r in rates])
    return Ladder(
        rungs=tuple(members[i] for i in chosen),
        rung=np.where(coded, of_member[best], -1),
        threshold=np.array([members[i].thresholds[0] for i in best]),
        survival=np.where(coded, survival[best], 0.0),
        rate=np.where(coded, rates[best], 0.0),
    )


@dataclass(frozen=True)
class Plan:
    """A rate allocation for one lambda.

    Attributes:
        kept: Indices of the bank's units that are coded.
        precision: int64 (kept,), as stored, 0..255.
        rung: int64 (2, kept).
        gain: float64 (2, kept).
        bits: Expected bits of all coefficients and of the units' side information.
    """

    objective: Objective
    lagrangian: float
    kept: Index
    precision: Index
    rung: Index
    gain: Vector
    bits: float


def precision_shift(length: int) -> int:
    """What a side's length takes off the stored precision: half an octave of strength an octave of length."""
    return int(precision_shifts(np.array([length]))[0])


def precision_shifts(lengths: Index) -> Index:
    """`precision_shift` of many lengths."""
    return -_BIAS - np.rint(PRECISION_STEPS / 2 * np.log2(lengths)).astype(np.int64)


def make_plan(bank: Bank, objective: Objective, lagrangian: float) -> Plan:
    """Choose precision and quantizers of every unit.

    Args:
        bank: The units.
        objective: What is minimised.
        lagrangian: Squared strength that one bit is worth.
    """
    with np.errstate(divide="ignore"):
        exact = PRECISION_STEPS * (np.log2(bank.strength) - np.log2(lagrangian) / 2)
    exact = np.clip(exact, -_BIAS, 255 - _BIAS)
    if bank.tolerance is not None:
        exact = np.where(bank.strength > 0, _borne(bank, bank.tolerance, objective, lagrangian), exact)
    precision = np.rint(exact).astype(np.int64) + _BIAS
    sides = []
    for side in (0, 1):
        steps = ladder(objective, side)
        where = steps.at(precision + precision_shifts(bank.lengths[side]))
        ideal = exact - PRECISION_STEPS / 2 * np.log2(bank.lengths[side])
        survival = steps.survival[where]
        if bank.tolerance is not None:
            gamma = objective.gamma[side]
            survival = survival_of(cosine2_of(survival, gamma), gamma * bank.tolerance[side])
        sides.append((steps.rung[where], survival, steps.rate[where], steps.gain(ideal, steps.rung[where])))
    bits = sides[0][2] * bank.lengths[0] + sides[1][2] * bank.lengths[1] + SIDE_BITS
    worth = (bank.component < bank.most) & (bank.strength**2 * sides[0][1] * sides[1][1] > lagrangian * bits)
    kept = np.flatnonzero(worth & (sides[0][0] >= 0) & (sides[1][0] >= 0))
    return Plan(
        objective=objective,
        lagrangian=lagrangian,
        kept=kept,
        precision=precision[kept],
        rung=np.stack([sides[0][0][kept], sides[1][0][kept]]),
        gain=np.stack([sides[0][3][kept], sides[1][3][kept]]),
        bits=float(bits[kept].sum()),
    )


def _borne(bank: Bank, tolerance: Vector, objective: Objective, lagrangian: float) -> Vector:
    """Precisions of units that bear noise unequally, without the bias, float64 (units,)."""
    grid = np.arange(-_BIAS, 256 - _BIAS, dtype=np.int64)
    result = np.empty(bank.units)
    shapes, shape_of = np.unique(bank.lengths, axis=1, return_inverse=True)
    gamma = np.array(objective.gamma)[:, None] * tolerance
    for number, lengths in enumerate(shapes.T):
        own = np.flatnonzero(shape_of.reshape(-1) == number)
        cosine2, rate = [], []
        for side in (0, 1):
            steps = ladder(objective, side)
            at = steps.at(grid + _BIAS + precision_shift(int(lengths[side])))
            cosine2.append(cosine2_of(steps.survival[at], objective.gamma[side]))
            rate.append(steps.rate[at])
        best = best_precisions(
            bank.strength[own] ** 2, gamma[:, own], np.stack(cosine2), np.stack(rate),
            (int(lengths[0]), int(lengths[1])), lagrangian,
        )  # fmt: skip
        result[own] = grid[best]
    return result
