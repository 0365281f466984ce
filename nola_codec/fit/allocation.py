"""Choose the coder of each vector: minimise error + lambda * bits over all coders.

Take a unit vector that is coded with squared cosine c. Decoded with its best gain t = 1 / (c + (1 - c) / gamma), the
share A = c / (c + (1 - c) / gamma) of it survives. A component of strength s then has the error s^2 (1 - A_u A_v), and
takes the bits of both vectors (docs/architecture.md, "The objective"). gamma = 1 is plain least squares: A is c, and
the error is the squared error.

In a progressive file, a later rung codes what the rungs before it have left, so that the distortions 1 - c multiply.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.fit.canonical_form import CARRIED, DENSE, CanonicalForm
from nola_codec.fit.coders import SCALAR_ONLY, DependentCoder, ScalarCoder, coders, serves, stride_limit

Grain = Literal["fine", "coarse", "scalar"]

PRECISION_STEPS = 8
"""Precisions in an octave of strength."""
_BIAS = 64
"""The stored precision of a unit whose squared strength is lambda."""
P_LOW, P_HIGH = -96, 128
"""The range of a `RateTable`: precisions from P_LOW to below P_HIGH."""
_SEARCHED = 1 << 14
"""Greatest number of elements of a tensor that quantizers with memory may code."""
CARRIED_PRECISIONS = range(38, 25, -1)
"""The precisions in a `RateTable` that a coded carried tensor may have, from a relative error of 3% to one of 10%.

A coarser head would not be the head any more: a size that is too small for the last one is refused.
"""
_CARRIED_SHARE = 0.9
"""The share of a size that coded carried tensors may take before they get a lower precision."""
SIDE_BITS = 6.0
"""Bits of precision and amplitude that a kept unit costs at every rung that starts it or adds a layer."""
BOOST = 0.75
"""The `Objective.boost` of the effective error."""


@dataclass(frozen=True)
class Objective:
    """The error that the encoder minimises, given by how little noise counts in it.

    Attributes:
        name: ``nmse`` or ``effective``.
        gamma: One gamma for each role (`fit.canonical_form`): lora_B, lora_A, dense tensors, norms and biases. Noise
            counts 1 / gamma. All are 1 for the NMSE, and those of norms and biases always, since nothing hides their
            noise.
        grain: The set of coders to choose from. ``fine``: all. ``coarse``: every second dependent one, since each
            takes 20 bytes or more of a header. ``scalar``: none with memory, since their search is slow.
        boost: The amplitudes of all units are multiplied by (surviving share of the energy) ** -boost, which makes up
            for lost signal, since lost and kept signal are alike.
    """

    name: str
    gamma: tuple[float, float, float, float]
    grain: Grain = "fine"
    boost: float = 0.0

    @property
    def gammas(self) -> Float64Array:
        """The gamma of every role, float64 (roles,): that of a coded carried tensor is 1."""
        return np.array((*self.gamma, 1.0))

    def survival(
        self, cosine2: Float64Array, role: int | Int64Array, tolerance: Float64Array | float = 1.0
    ) -> Float64Array:
        """Return the share A that survives (see the module's docstring); `tolerance` is a factor on gamma."""
        return cosine2 * self.gain(cosine2, role, tolerance)

    def gain(
        self, cosine2: Float64Array, role: int | Int64Array, tolerance: Float64Array | float = 1.0
    ) -> Float64Array:
        """Return the best gain t (see the module's docstring); `tolerance` is a factor on gamma."""
        return np.asarray(1 / (cosine2 + (1 - cosine2) / (self.gammas[role] * tolerance)))


NMSE = Objective("nmse", (1.0, 1.0, 1.0, 1.0))
EFFECTIVE = Objective("effective", (20.0, 60.0, 60.0, 1.0), boost=BOOST)
OBJECTIVES = {o.name: o for o in (NMSE, EFFECTIVE)}


@dataclass(frozen=True)
class RateTable:
    """The coder that each integer precision selects at each rung.

    The precisions are those from P_LOW on, one for each column of the arrays.

    Attributes:
        coder: int64 (rungs, precisions): the index into `coders()` of the layer that the rung adds, -1 for none.
        cosine2: float64 (rungs, precisions): the squared cosine that the sum of the layers so far reaches.
        survival: float64 (rungs, precisions): the surviving share A at that squared cosine.
        rate: float64 (rungs, precisions): the bits that the layer spends on a coefficient.
    """

    coder: Int64Array
    cosine2: Float64Array
    survival: Float64Array
    rate: Float64Array

    def positions(self, precision: Int64Array) -> Int64Array:
        """Return the columns of some precisions; precisions beyond the ends get the columns at the ends."""
        return np.clip(precision - P_LOW, 0, P_HIGH - P_LOW - 1)


@lru_cache(maxsize=256)
def rate_table(objectives: tuple[Objective, ...], role: int, stride: int, steps: tuple[int, ...] = (0,)) -> RateTable:
    """Return the best coders for each precision p = 8 log2(strength / sqrt(lambda n)) of vectors of one role.

    Args:
        objectives: The objective of each rung.
        role: LORA_B, LORA_A, DENSE, PLAIN or CARRIED.
        stride: The `coder_class` of the vectors.
        steps: For each rung, a number that is added to the precision when the rung chooses its coders. It is 0 at the
            last rung, and negative and rising before.
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
    return RateTable(*(np.stack(part) for part in zip(*rows, strict=True)))


@dataclass(frozen=True)
class RatePlan:
    """The decisions for one lambda: the units that are kept, and the precision and the coders of each.

    Attributes:
        objectives: The objective of each rung.
        lagrangian: The lambda of the last rung.
        steps: The same as in `rate_table`.
        kept: int64 (kept,): the indices of the form's units that the last rung has.
        entry: int64 (kept,): the rung at which each unit starts.
        precision: int64 (kept,): the precision of each unit as stored, 0 to 255.
        coder: int64 (rungs, 2, kept): the index into `coders()` of each layer, -1 for none.
        survival: float64 (rungs, kept): the expected A_u A_v, 0 before the unit starts.
        noise: float64 (rungs,): the expected squared norm of the noise, over ||delta_W||^2.
        bits: float64 (rungs,): the expected bits that each rung adds, with precisions and amplitudes.
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
    """Return the class of coders that serve vectors of this role and length.

    It is their `stride_limit`, or SCALAR_ONLY for long tensors. A search with memory goes through a vector step by
    step, and is only fast with many vectors side by side; there are few long ones.
    """
    alone = role == CARRIED or (role >= DENSE and length > _SEARCHED)
    return SCALAR_ONLY if alone else stride_limit(length)


def precision_shift(length: int) -> int:
    """Return the number that turns a stored precision into a precision for vectors of this length.

    Twice the length lowers the precision by half an octave of strength.
    """
    return int(precision_shifts(np.array([length]))[0])


def precision_shifts(lengths: Int64Array) -> Int64Array:
    """Return `precision_shift` of many lengths."""
    return -_BIAS - np.rint(PRECISION_STEPS / 2 * np.log2(lengths)).astype(np.int64)


def make_plan(
    form: CanonicalForm,
    objectives: tuple[Objective, ...],
    lagrangian: float,
    steps: tuple[int, ...] = (0,),
    nudges: Int64Array | None = None,
) -> RatePlan:
    """Choose the precision and the coders of every unit, and the units to keep.

    Args:
        form: The units.
        objectives: The objective of each rung.
        lagrangian: The squared strength that one bit is worth at the last rung.
        steps: The same as in `rate_table`.
        nudges: int64 (units,): numbers that are added to the units' precisions; None if there are none.
    """
    precision = _precisions(form, objectives, lagrangian, steps)
    if nudges is not None:
        precision = np.clip(precision + nudges, 0, 255)
    choice = _choose_coders(form, objectives, precision, steps)
    worth = np.zeros((len(steps), form.units), bool)  # (rungs, units): True if the unit is worth its bits at the rung
    for rung, step in enumerate(steps):
        price = lagrangian * 2.0 ** (-step / (PRECISION_STEPS / 2))
        spent = choice.bits[: rung + 1].sum(axis=0) + SIDE_BITS
        coded = ((choice.coder[: rung + 1] >= 0).any(axis=0) | (form.lengths == 0)).all(axis=0)
        gained = form.strength**2 * choice.survival[rung]
        worth[rung] = (form.component < form.most) & coded & (gained > price * spent)
        worth[rung] |= (form.roles[0] == CARRIED) & coded
    worth = np.logical_or.accumulate(worth, axis=0)
    kept = np.flatnonzero(worth[-1])
    there = worth[:, kept]
    entry = there.argmax(axis=0)
    energy = form.strength**2 if form.energy is None else form.energy
    total = float(energy.sum())
    shared = np.maximum(choice.cosine2[:, kept], 1e-30)
    noise = there * energy[kept] * choice.survival[:, kept] ** 2 * (1 - shared) / shared
    return RatePlan(
        objectives=objectives,
        lagrangian=lagrangian,
        steps=steps,
        kept=kept,
        entry=entry,
        precision=precision[kept],
        coder=choice.coder[:, :, kept],
        survival=choice.survival[:, kept] * there,
        noise=noise.sum(axis=1) / total if total else np.zeros(len(steps)),
        bits=_added_bits(choice, kept, entry, there).sum(axis=1),
    )


def pin_carried(form: CanonicalForm, limit: float | None) -> CanonicalForm:
    """Return the form with the precision of its coded carried tensors, which is the same in all plans.

    Args:
        form: The units.
        limit: The bytes that are left for all units, or None if the target is no size.
    """
    lengths = form.lengths[0, form.roles[0] == CARRIED].tolist()
    if not lengths:
        return form
    objective = replace(NMSE, grain="coarse")
    chosen = CARRIED_PRECISIONS[0]
    for chosen in CARRIED_PRECISIONS:
        bits = 0.0
        for length in lengths:
            table = rate_table((objective,), CARRIED, coder_class(CARRIED, length))
            bits += float(table.rate[0, table.positions(np.array(chosen))]) * length
        if limit is None or bits / 8 <= _CARRIED_SHARE * limit:
            break
    return replace(form, carried_precision=chosen)


def _precisions(
    form: CanonicalForm, objectives: tuple[Objective, ...], lagrangian: float, steps: tuple[int, ...]
) -> Int64Array:
    """Return the precision of every unit before any nudge, int64 (units,)."""
    with np.errstate(divide="ignore"):
        exact = PRECISION_STEPS * (np.log2(form.strength) - np.log2(lagrangian) / 2)
    exact = np.clip(exact, -_BIAS, 255 - _BIAS)
    tolerant = np.zeros(0, np.int64) if form.tolerance is None else np.flatnonzero(form.tolerance < 1)
    for role, length, own in form.groups(0, tolerant):  # they have one side
        units = tolerant[own]
        exact[units] = _tolerant_precisions(form, units, (role, length), objectives, lagrangian, steps)
    pinned = form.carried_precision + PRECISION_STEPS / 2 * np.log2(np.maximum(form.lengths[0], 1))
    exact = np.where(form.roles[0] == CARRIED, pinned, exact)
    return np.asarray(np.rint(exact).astype(np.int64) + _BIAS)


@dataclass(frozen=True)
class _Choice:
    """The coders that the precisions of all units select.

    Attributes:
        coder: int64 (rungs, 2, units): the index into `coders()` of each layer, -1 for none.
        survival: float64 (rungs, units): A_u A_v.
        cosine2: float64 (rungs, units): the product of both sides' squared cosines.
        bits: float64 (rungs, units): the bits that each rung spends on the coefficients of both sides.
    """

    coder: Int64Array
    survival: Float64Array
    cosine2: Float64Array
    bits: Float64Array


def _choose_coders(
    form: CanonicalForm, objectives: tuple[Objective, ...], precision: Int64Array, steps: tuple[int, ...]
) -> _Choice:
    """Look up the coders of every unit by its precision, int64 (units,)."""
    kinds, kind_of = form.kinds
    shifts, tables = _tables_of_kinds(kinds, objectives, steps)
    where = kind_of * (P_HIGH - P_LOW) + tables.positions(precision + shifts[kind_of])  # (2, units)
    cosine2, survival = tables.cosine2[:, where], tables.survival[:, where]
    if form.tolerance is not None:
        tolerance = np.stack([form.tolerance, np.ones(form.units)])
        exact = form.lengths == 0
        survival = np.stack(
            [
                np.where(exact, 1.0, each.survival(part, form.roles, tolerance))
                for each, part in zip(objectives, cosine2, strict=True)
            ]
        )
    bits = tables.rate[:, where] * form.lengths
    return _Choice(tables.coder[:, where], survival.prod(axis=1), cosine2.prod(axis=1), bits.sum(axis=1))


@lru_cache(maxsize=64)
def _tables_of_kinds(
    kinds: tuple[tuple[int, int], ...], objectives: tuple[Objective, ...], steps: tuple[int, ...]
) -> tuple[Int64Array, RateTable]:
    """Return the `precision_shift` of each (role, length), and their tables one after the other."""
    found = []
    for role, length in kinds or ((DENSE, 0),):  # an adapter without units has no kinds
        table = rate_table(objectives, role, coder_class(role, length), steps)
        if not length:  # a vector has no second side, which counts as exact and takes no bits
            one = np.ones(table.cosine2.shape)
            table = RateTable(np.full(table.coder.shape, -1), one, one, 0 * one)
        found.append(table)
    joined = (np.concatenate([getattr(t, name) for t in found], axis=1) for name in RateTable.__annotations__)
    return precision_shifts(np.maximum([length for _, length in kinds], 1)), RateTable(*joined)


def _added_bits(choice: _Choice, kept: Int64Array, entry: Int64Array, there: npt.NDArray[np.bool_]) -> Float64Array:
    """Return the bits that each rung adds for each kept unit, float64 (rungs, kept).

    A unit that starts at a rung codes all layers so far there.

    Args:
        choice: The coders of all units.
        kept: int64 (kept,): the indices of the kept units.
        entry: int64 (kept,): the rung at which each of them starts.
        there: bool (rungs, kept): True if the rung has the unit.
    """
    added = np.zeros(there.shape)
    for rung in range(len(there)):
        fresh = entry == rung
        side_bits = SIDE_BITS * (fresh | (choice.coder[rung][:, kept] >= 0).any(axis=0))
        layers = np.where(fresh, choice.bits[: rung + 1, kept].sum(axis=0), choice.bits[rung, kept])
        added[rung] = there[rung] * (layers + side_bits)
    return added


def _tolerant_precisions(
    form: CanonicalForm,
    units: Int64Array,
    kind: tuple[int, int],
    objectives: tuple[Objective, ...],
    lagrangian: float,
    steps: tuple[int, ...],
) -> Float64Array:
    """Return the best precision of units of one side, given their tolerance of noise, float64 (units,).

    The tables are made for the gammas of the objective. For another gamma the best precision does not follow from the
    strength, and all are tried. The result is without _BIAS, and is the best one for the last rung.

    Args:
        form: The form.
        units: int64: The units, which have the same role and length.
        kind: The role and the length.
        objectives: The same as in `make_plan`.
        lagrangian: The same.
        steps: The same.
    """
    assert form.tolerance is not None
    role, length = kind
    table = rate_table(objectives, role, coder_class(role, length), steps)
    grid = np.arange(256)
    at = table.positions(grid + precision_shift(length))
    starts = np.flatnonzero(np.diff(table.cosine2[-1, at], prepend=-1.0))  # neighbours mostly have the same coder
    at = at[starts]
    bits = table.rate[:, at].sum(axis=0) * length
    kept = objectives[-1].survival(table.cosine2[-1, at], role, form.tolerance[units, None])
    best = (form.strength[units, None] ** 2 * kept - lagrangian * bits).argmax(axis=1)
    return np.asarray(grid[starts][best] - _BIAS, np.float64)
