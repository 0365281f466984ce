"""Which coder each vector gets: the Lagrangian of an objective over coders, for one rung or a ladder of them.

For a unit vector coded with squared cosine c, decoded with its best gain t = 1 / (c + (1 - c) / gamma), the share of it
that survives is A = c / (c + (1 - c) / gamma); a component of strength s costs s^2 (1 - A_u A_v), and both factors'
bits (design, section 5). gamma = 1 is plain least squares, where A = c and the cost is the squared error.

On a ladder a later rung codes what the rungs before left: distortions 1 - c multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.fit.bank import DENSE, Bank
from nola_codec.fit.coders import SCALAR_ONLY, DependentCoder, ScalarCoder, coders, serves, stride_limit
from nola_codec.fit.weighted_plan import best_precisions, survival_of

Grain = Literal["fine", "coarse", "scalar"]

PRECISION_STEPS = 8
"""Precisions an octave of strength."""
_BIAS = 64
P_LOW, P_HIGH = -96, 128
_SEARCHED = 1 << 14
"""Elements of a tensor up to which quantizers with memory serve it."""
SIDE_BITS = 6.0
"""What a kept component costs beside its coefficients, at every rung that touches it."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: gamma of lora_B's side (u) and of lora_A's side (v); both 1 for the NMSE.

    Attributes:
        name: ``nmse`` or ``effective``.
        gamma: As above, by role (`fit.bank`): of lora_B, of lora_A, of dense tensors, of norms and biases. The noise of
            a dense tensor is random on both sides; that of a norm's or a bias's is hidden by nothing.
        grain: Which coders there are. ``fine``: all. ``coarse``: every second dependent one, since each takes 20 bytes
            or more of a header. ``scalar``: none with memory, which take long to search.
    """

    name: str
    gamma: tuple[float, float, float, float]
    grain: Grain = "fine"

    def survival(
        self, cosine2: Float64Array, role: int | Int64Array, tolerance: Float64Array | float = 1.0
    ) -> Float64Array:
        """A of the module's docstring; `tolerance` is a factor on gamma."""
        return survival_of(cosine2, np.array(self.gamma)[role] * tolerance)

    def gain(
        self, cosine2: Float64Array, role: int | Int64Array, tolerance: Float64Array | float = 1.0
    ) -> Float64Array:
        """t of the module's docstring."""
        return np.asarray(1 / (cosine2 + (1 - cosine2) / (np.array(self.gamma)[role] * tolerance)))


_DENSE_GAMMA = 60.0
NMSE = Objective("nmse", (1.0, 1.0, 1.0, 1.0))
EFFECTIVE = Objective("effective", (20.0, 60.0, _DENSE_GAMMA, 1.0))
OBJECTIVES = {o.name: o for o in (NMSE, EFFECTIVE)}
TAMER = tuple(
    Objective("effective", (20 * t, 60 * t, _DENSE_GAMMA * t, 1.0)) for t in (2 ** (-k / 4) for k in range(18))
)
"""`EFFECTIVE` and, step by step, objectives that let through less noise, down to gamma 1.05."""
NOISE_CAP = 3.0
"""Noise, in units of ||delta_W||^2 over the file, above which models were seen to break (see `Search.tamed`)."""
BOOST = 0.5
"""Exponent with which amplitudes make up for lost signal: what was lost is much like what was kept."""


@dataclass(frozen=True)
class Ladder:
    """For each rung and each integer precision from P_LOW.

    Attributes:
        coder: int64 (rungs, precisions): index into `coders()` of the layer that the rung adds, -1 for none.
        cosine2: float64 (rungs, precisions): of the sum of the layers so far.
        survival: float64 (rungs, precisions): A of that.
        rate: float64 (rungs, precisions): bits a coefficient of the layer.
    """

    coder: Int64Array
    cosine2: Float64Array
    survival: Float64Array
    rate: Float64Array

    def at(self, precision: Int64Array) -> Int64Array:
        """Positions in the arrays of integer precisions."""
        return np.clip(precision - P_LOW, 0, self.coder.shape[1] - 1)


@lru_cache(maxsize=256)
def ladder(objectives: tuple[Objective, ...], role: int, stride: int, steps: tuple[int, ...] = (0,)) -> Ladder:
    """The coders of one role; precision p is 8 log2(strength / sqrt(lambda n)).

    Args:
        objectives: What each rung minimises.
        role: LORA_B, LORA_A, DENSE or PLAIN.
        stride: `coder_class` of the vectors.
        steps: For each rung, what is added to the precision before it chooses: 0 at the last rung, less before.
    """
    grain = objectives[-1].grain
    if grain == "scalar":
        usable = [i for i, coder in enumerate(coders()) if isinstance(coder, ScalarCoder)]
    else:
        spare = [i for i, coder in enumerate(coders()) if isinstance(coder, DependentCoder)][1::2]
        left_out = set(spare) if grain == "coarse" else set()
        usable = [i for i, coder in enumerate(coders()) if serves(coder, stride) and i not in left_out]
    rates = np.array([0.0, *(coders()[i].rate for i in usable)])
    left = 1 - np.array([0.0, *(coders()[i].cosine2 for i in usable)])
    index = np.array([-1, *usable])
    grid = np.arange(P_LOW, P_HIGH)
    distortion = np.ones(len(grid))
    rows: list[tuple[Int64Array, Float64Array, Float64Array, Float64Array]] = []
    for objective, step in zip(objectives, steps, strict=True):
        reached = 1 - distortion[:, None] * left[None, :]
        value = objective.survival(reached, role) * (2.0 ** ((grid + step) / (PRECISION_STEPS / 2)))[:, None]
        best = (value - rates[None, :]).argmax(axis=1)
        distortion = distortion * left[best]
        rows.append((index[best], 1 - distortion, objective.survival(1 - distortion, role), rates[best]))
    return Ladder(*(np.stack(part) for part in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Plan:
    """A rate allocation for one lambda.

    Attributes:
        objectives: What each rung minimises.
        lagrangian: Lambda, of the last rung.
        steps: As in `ladder`; `objectives` are those of each rung.
        kept: Indices of the bank's units that are coded at the last rung.
        entry: int64 (kept,): rung at which each comes in.
        precision: int64 (kept,), as stored, 0..255.
        coder: int64 (rungs, 2, kept): index into `coders()`, -1 for none.
        survival: float64 (rungs, kept): expected A_u A_v, 0 before the unit comes in.
        noise: (rungs,): expected squared norm of what is not signal, over ||delta_W||^2.
        bits: (rungs,): expected bits that each rung adds, units' side information included.
    """

    objectives: tuple[Objective, ...]
    lagrangian: float
    steps: tuple[int, ...]
    kept: Int64Array
    entry: Int64Array
    precision: Int64Array
    coder: Int64Array
    survival: Float64Array
    noise: Float64Array
    bits: Float64Array


def coder_class(role: int, length: int) -> int:
    """Which coders serve vectors of this role and length: their `stride_limit`, or SCALAR_ONLY for long tensors.

    A search with memory goes through a vector step by step, many vectors side by side; of long ones there are few.
    """
    return SCALAR_ONLY if role >= DENSE and length > _SEARCHED else stride_limit(length)


def precision_shift(length: int) -> int:
    """What a side's length takes off the stored precision: half an octave of strength an octave of length."""
    return int(precision_shifts(np.array([length]))[0])


def precision_shifts(lengths: Int64Array) -> Int64Array:
    """`precision_shift` of many lengths."""
    return -_BIAS - np.rint(PRECISION_STEPS / 2 * np.log2(lengths)).astype(np.int64)


def make_plan(
    bank: Bank,
    objectives: tuple[Objective, ...],
    lagrangian: float,
    steps: tuple[int, ...] = (0,),
    nudges: Int64Array | None = None,
) -> Plan:
    """Choose precision and coders of every unit.

    Args:
        bank: The units.
        objectives: What each rung minimises.
        lagrangian: Squared strength that one bit is worth at the last rung.
        steps: As in `ladder`.
        nudges: int64 (units,): added to the units' precisions.
    """
    with np.errstate(divide="ignore"):
        exact = PRECISION_STEPS * (np.log2(bank.strength) - np.log2(lagrangian) / 2)
    exact = np.clip(exact, -_BIAS, 255 - _BIAS)
    if bank.tolerance is not None:
        exact = np.where(bank.strength > 0, _borne(bank, bank.tolerance, objectives, lagrangian, steps), exact)
    precision = np.rint(exact).astype(np.int64) + _BIAS
    if nudges is not None:
        precision = np.clip(precision + nudges, 0, 255)
    coder = np.full((len(steps), 2, bank.units), -1, np.int64)
    survival = np.ones((len(steps), bank.units))
    bits = np.zeros((len(steps), bank.units))
    cosine2 = np.ones((len(steps), bank.units))
    everything = np.arange(bank.units)
    for side in (0, 1):
        for role, length, own in bank.groups(side, everything):
            table = ladder(objectives, role, coder_class(role, length), steps)
            where = table.at(precision[own] + precision_shift(length))
            coder[:, side, own] = table.coder[:, where]
            share = table.survival[:, where]
            if bank.tolerance is not None:
                gammas = np.array([objective.gamma[role] for objective in objectives])[:, None]
                share = survival_of(table.cosine2[:, where], gammas * bank.tolerance[side, own])
            survival[:, own] *= share
            cosine2[:, own] *= table.cosine2[:, where]
            bits[:, own] += table.rate[:, where] * length
    worth = np.zeros((len(steps), bank.units), bool)
    for rung, step in enumerate(steps):
        price = lagrangian * 2.0 ** (-step / (PRECISION_STEPS / 2))
        spent = bits[: rung + 1].sum(axis=0) + SIDE_BITS
        coded = ((coder[: rung + 1] >= 0).any(axis=0) | (bank.lengths == 0)).all(axis=0)
        worth[rung] = (bank.component < bank.most) & coded & (bank.strength**2 * survival[rung] > price * spent)
    worth = np.logical_or.accumulate(worth, axis=0)
    kept = np.flatnonzero(worth[-1])
    entry = worth[:, kept].argmax(axis=0)
    there = worth[:, kept]
    added = np.zeros((len(steps), len(kept)))
    for rung in range(len(steps)):
        fresh = entry == rung
        side_bits = SIDE_BITS * (fresh | (coder[rung][:, kept] >= 0).any(axis=0))
        added[rung] = there[rung] * (np.where(fresh, bits[: rung + 1, kept].sum(axis=0), bits[rung, kept]) + side_bits)
    energy = bank.strength**2 if bank.energy is None else bank.energy
    total = float(energy.sum())
    shared = np.maximum(cosine2[:, kept], 1e-30)
    noise = there * energy[kept] * survival[:, kept] ** 2 * (1 - shared) / shared
    return Plan(
        objectives=objectives,
        lagrangian=lagrangian,
        steps=steps,
        kept=kept,
        entry=entry,
        precision=precision[kept],
        coder=coder[:, :, kept],
        survival=survival[:, kept] * there,
        noise=noise.sum(axis=1) / total if total else np.zeros(len(steps)),
        bits=added.sum(axis=1),
    )


def _borne(
    bank: Bank, tolerance: Float64Array, objectives: tuple[Objective, ...], lagrangian: float, steps: tuple[int, ...]
) -> Float64Array:
    """Precisions of units that bear noise unequally, best at the last rung, without the bias, float64 (units,)."""
    grid = np.arange(-_BIAS, 256 - _BIAS, dtype=np.int64)
    result = np.empty(bank.units)
    shapes, shape_of = np.unique(np.concatenate((bank.lengths, bank.roles)), axis=1, return_inverse=True)
    gamma = np.array(objectives[-1].gamma)[bank.roles] * tolerance
    for number, (*lengths, u_role, v_role) in enumerate(shapes.T.tolist()):
        own = np.flatnonzero(shape_of.reshape(-1) == number)
        cosine2, rate = [], []
        for role, length in zip((u_role, v_role), lengths, strict=True):
            if not length:  # a vector has no second side
                cosine2.append(np.ones(len(grid)))
                rate.append(np.zeros(len(grid)))
                continue
            table = ladder(objectives, role, coder_class(role, length), steps)
            at = table.at(grid + _BIAS + precision_shift(length))
            cosine2.append(table.cosine2[-1, at])
            rate.append(table.rate[:, at].sum(axis=0))
        best = best_precisions(
            bank.strength[own] ** 2, gamma[:, own], np.stack(cosine2), np.stack(rate),
            (lengths[0], lengths[1]), lagrangian,
        )  # fmt: skip
        result[own] = grid[best]
    return result
