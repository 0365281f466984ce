"""The canonical form of the difference between an adapter and its reference.

Each column of lora_B and each row of lora_A is a unit of its own here. Let x be such a vector of norm 1, in the gauge
of the reference (`alignment.py`), and u the reference's vector times its gain, which a decoder has already. A vector v
is coded, with the squared cosine y, so that the decoder adds t (y v + noise), of which the noise has the squared norm
y (1 - y) |v|^2. With S the share of x in the sum and T the squared norm of the sum, the error is

    e(t) = (1 - S)^2 + (T - S^2) / gamma,   S = u.x + t y v.x,   T = |u|^2 + 2 t y u.v + t^2 y |v|^2

The best t takes V A(y) away from e(0), where A is the share that survives of a unit vector coded with y
(`allocation.py`), but for another gamma:

    gamma' = 1 + (gamma - 1) (v.x)^2 / |v|^2
    V      = gamma P^2 / (|v|^2 gamma'),             P = v.x (1 - u.x) + (v.x u.x - u.v) / gamma
    t      = the best gain of that unit vector, times gamma P / (|v|^2 gamma')

So v is a unit like any other, with another strength, size and tolerance of noise. What is coded is x - u; or, if that
takes more away at y = 1/2, what x has beside u: then the noise that u has stays, which costs only 1 / gamma. For the
NMSE x - u is always the better one, with V = |x - u|^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.basis import BasisKey
from nola_codec.fit.canonical_form import (
    LORA_A,
    LORA_B,
    CanonicalForm,
    Difference,
    FormSettings,
    Matrices,
    orthonormal_coefficients,
    roles_of,
)
from nola_codec.fit.components import unit_vectors
from nola_codec.model.adapter import Codable
from nola_codec.model.header import GAIN_ONE, MAX_GAIN
from nola_codec.progress import Progress
from nola_codec.spool import allocate_array


@dataclass(frozen=True)
class PredictedItem:
    """An item of an adapter beside what its reference says of it.

    Attributes:
        sides: float32: the item's sides in the gauge of the reference.
        predicted: float32: the sides of the reference, in the same shapes, without a gain.
        error_gain: The same as in `Codable`.
    """

    sides: tuple[Float32Array, ...]
    predicted: tuple[Float32Array, ...]
    error_gain: float

    def vectors(self, side: int) -> tuple[Float64Array, Float64Array]:
        """Return the vectors of a side and those of the reference, float64 (vectors, length) both."""
        if len(self.sides) == 1:
            return tuple(array.reshape(1, -1).astype(np.float64) for array in (self.sides[0], self.predicted[0]))  # type: ignore[return-value]
        pair = self.sides[side], self.predicted[side]
        return tuple((array.T if side == 0 else array).astype(np.float64) for array in pair)  # type: ignore[return-value]

    def weights(self, side: int) -> Float64Array:
        """Return the energy in the delta of a unit error of each vector, float64 (vectors,)."""
        if len(self.sides) == 1:
            return np.full(1, self.error_gain**2)
        other = self.sides[1 - side].astype(np.float64)
        return np.asarray((other**2).sum(axis=1 if side == 0 else 0) * self.error_gain**2)


def fit_gains(items: Sequence[PredictedItem], gammas: Sequence[float]) -> tuple[int, int]:
    """Return the gains of the reference, on lora_B (and vectors) and on lora_A, that leave the least error.

    Args:
        items: The items.
        gammas: The gamma of each of the two sides in the objective.
    """
    gains = []
    for side in (0, 1):
        above = below = 0.0
        for item in items:
            if side < len(item.sides):
                x, p = item.vectors(side)
                dot, weight = (x * p).sum(axis=1), item.weights(side)
                along = dot**2 / np.maximum((x**2).sum(axis=1), 1e-300)
                above += float((weight * dot).sum())
                below += float((weight * (along + ((p**2).sum(axis=1) - along) / gammas[side])).sum())
        gain = above / below if below > 0 else 1.0
        gains.append(int(np.clip(round(gain * GAIN_ONE), 0, MAX_GAIN)))
    return gains[0], gains[1]


@dataclass(frozen=True)
class _UnitGroup:
    """Some units of one record, with vectors of one length on each side.

    Attributes:
        record: The number of the record.
        first: The number of the first unit's component.
        roles: The role of each side.
        vectors: For each side, float32 (units, length) of norm 1 or 0; one side, or two.
        keys: The key of the basis of each side.
        singular, strength: float64 (units,).
        tolerance: float64 (units,): the factor on gamma of the only side.
    """

    record: int
    first: int
    roles: tuple[int, int]
    vectors: tuple[Float32Array, ...]
    keys: tuple[BasisKey, ...]
    singular: Float64Array
    strength: Float64Array
    tolerance: Float64Array


def make_difference_form(
    items: Sequence[Codable],
    predicted: Mapping[int, PredictedItem],
    streams: Sequence[int],
    settings: FormSettings,
    gains: tuple[int, int],
    gammas: Float64Array,
    moment: float = 0.5,
    progress: Progress | None = None,
) -> CanonicalForm:
    """Return the canonical form of what a file with a reference has to code.

    Args:
        items: The modules, then the vectors, in the order of the records.
        predicted: The items that have a prediction, by number; the others are decomposed as in any file.
        streams: The stream number of each item.
        settings: The basis.
        gains: The gains of the reference (`fit_gains`).
        gammas: The gamma of each role in the objective.
        moment: The squared cosine at which the choices of what is coded are compared; 1 chooses what can be exact.
        progress: A function that is called as ("decomposing", items done, items in all), or None.
    """
    groups: list[_UnitGroup] = []
    differences: dict[int, Difference] = {}
    floors = np.zeros(len(items))
    for index, item in enumerate(items):
        keys = tuple(BasisKey(settings.generator, settings.seed, 2 * streams[index] + side) for side in (0, 1))
        known = predicted.get(index)
        if known is None:
            sides, singular = unit_vectors(item.sides)
            strength = singular * item.error_gain
            groups.append(_UnitGroup(index, 0, roles_of(item), sides, keys, singular, strength, np.ones(len(singular))))
        else:
            units, floors[index] = _difference_units(index, item, known, keys, gains, gammas, moment)
            groups += units
            if item.is_pair:
                B, A = (
                    orthonormal_coefficients(known.vectors(side)[0].astype(np.float32), settings.basis, keys[side])
                    for side in (0, 1)
                )
                differences[index] = Difference(item.rank, B, A, item.error_gain)
        if progress is not None:
            progress("decomposing", index + 1, len(items))
    return replace(_join(groups, settings, differences), floors=floors)


@dataclass(frozen=True)
class _Parts:
    """What is coded of the vectors of one side: arrays of float64 (vectors,), relative to |x|^2, and the vectors.

    Attributes:
        before: e(0).
        value: V.
        gamma: gamma'.
        size: The factor on t.
        vectors: float64 (vectors, length): v, not relative.
    """

    before: Float64Array
    value: Float64Array
    gamma: Float64Array
    size: Float64Array
    vectors: Float64Array


def _choose_parts(x: Float64Array, u: Float64Array, gamma: float, moment: float) -> _Parts:
    """Return what is coded of vectors x, given the vectors u (see the module's docstring).

    Args:
        x: float64 (vectors, length).
        u: float64 (vectors, length).
        gamma: The gamma of the objective.
        moment: The squared cosine y at which the two choices of v are compared.
    """
    whole = np.einsum("ij,ij->i", x, x)
    safe = np.where(whole > 0, whole, 1.0)
    norm = np.einsum("ij,ij->i", u, u)
    shared = np.einsum("ij,ij->i", u, x) / safe
    beside = x - u * (shared * safe / np.where(norm > 0, norm, 1.0))[:, None]
    options = [_parts_of(x, u, v, gamma, safe) for v in (x - u, beside)]
    gains = [part.value * part.gamma * moment / (1 + (part.gamma - 1) * moment) for part in options]
    second = (gains[1] > gains[0]) & (whole > 0)
    first, other = options
    return _Parts(
        first.before,
        np.where(second, other.value, first.value),
        np.where(second, other.gamma, first.gamma),
        np.where(second, other.size, first.size),
        np.where(second[:, None], other.vectors, first.vectors),
    )


def _parts_of(x: Float64Array, u: Float64Array, v: Float64Array, gamma: float, whole: Float64Array) -> _Parts:
    """Return the figures of one choice of v; `whole` is |x|^2, or 1 where x is zero."""
    ux, uv, vx, uu, vv = (np.einsum("ij,ij->i", a, b) / whole for a, b in ((u, x), (u, v), (v, x), (u, u), (v, v)))
    there = vv > 0
    square = np.where(there, vv, 1.0)
    own = 1 + (gamma - 1) * vx**2 / square
    gain = vx * (1 - ux) + (vx * ux - uv) / gamma
    is_zero = np.einsum("ij,ij->i", x, x) == 0
    before = np.where(is_zero, uu / gamma, 1 - 2 * ux + (1 - 1 / gamma) * ux**2 + uu / gamma)
    value = np.where(is_zero, uu / gamma, gamma * gain**2 / (square * own)) * there
    size = np.where(is_zero, 1.0, np.maximum(gamma * gain / (square * own), 0.0)) * there
    return _Parts(before, value * (size > 0), own, size, v)


def _difference_units(
    index: int,
    item: Codable,
    known: PredictedItem,
    keys: tuple[BasisKey, ...],
    gains: tuple[int, int],
    gammas: Float64Array,
    moment: float,
) -> tuple[list[_UnitGroup], float]:
    """Return the units of an item that has a prediction, those of lora_B first; and the error that none can take away.

    A pair has the product of what its two sides reach. Each side counts with the mean of what the other one reaches
    before and in the end, so that both add up to the product.
    """
    roles = (LORA_B, LORA_A) if item.is_pair else roles_of(item)[:1]
    parts, whole = [], []
    for side, role in enumerate(roles):
        x, p = known.vectors(side)
        parts.append(_choose_parts(x, p * (gains[side] / GAIN_ONE), float(gammas[role]), moment))
        energy = (x**2).sum(axis=1)
        whole.append(np.where(energy > 0, energy, 1.0) * known.weights(side))
    reached = [np.clip(1 - part.before, 0.0, 1.0) for part in parts]
    units, floor = [], 0.0
    for side, role in enumerate(roles):
        part = parts[side]
        weight = whole[side] * ((1 + reached[1 - side]) / 2 if item.is_pair else 1.0)
        norms = np.sqrt((part.vectors**2).sum(axis=1))
        units.append(
            _UnitGroup(
                record=index,
                first=side * item.rank,
                roles=(role, LORA_A),
                vectors=((part.vectors / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32),),
                keys=(keys[side],),
                singular=norms * part.size,
                strength=np.sqrt(part.value * weight),
                tolerance=part.gamma / gammas[role],
            )
        )
        floor += float((np.maximum(part.before - part.value, 0.0) * weight).sum())
    return units, floor


def _join(groups: Sequence[_UnitGroup], settings: FormSettings, differences: Mapping[int, Difference]) -> CanonicalForm:
    """Return the form that has all units, with their coefficients in their bases."""
    counts = [len(group.singular) for group in groups]
    starts = np.cumsum([0, *counts])
    lengths = np.zeros((2, int(starts[-1])), np.int64)
    rows, tolerance = np.zeros_like(lengths), np.ones(lengths.shape[1])
    taken: list[dict[int, int]] = [{}, {}]
    for group, start, count in zip(groups, starts.tolist(), counts, strict=False):
        for side, vectors in enumerate(group.vectors):
            length = vectors.shape[1]
            first = taken[side].get(length, 0)
            lengths[side, start : start + count] = length
            rows[side, start : start + count] = np.arange(first, first + count)
            taken[side][length] = first + count
        tolerance[start : start + count] = group.tolerance
    matrices: Matrices = ({}, {})
    for side in (0, 1):
        for length, count in taken[side].items():
            matrices[side][length] = allocate_array((count, length), np.float32)
    for group, start in zip(groups, starts.tolist(), strict=False):
        for side, (vectors, key) in enumerate(zip(group.vectors, group.keys, strict=False)):
            length = vectors.shape[1]
            first = int(rows[side, start]) if len(vectors) else 0
            coefficients = orthonormal_coefficients(vectors, settings.basis, key) if len(vectors) else vectors
            matrices[side][length][first : first + len(vectors)] = coefficients * np.float32(np.sqrt(length))

    def joined(parts: Sequence[Float64Array | Int64Array]) -> Float64Array:
        return np.concatenate([np.zeros(0), *parts])

    strength = joined([group.strength for group in groups])
    roles = np.array([group.roles for group in groups], np.int64).reshape(-1, 2)
    return CanonicalForm(
        record=np.repeat(np.array([group.record for group in groups], np.int64), counts),
        component=joined([group.first + np.arange(n) for group, n in zip(groups, counts, strict=True)]).astype(
            np.int64
        ),
        strength=strength,
        singular=joined([group.singular for group in groups]),
        lengths=lengths,
        roles=np.repeat(roles, counts, axis=0).T.copy(),
        rows=rows,
        most=settings.most or 1 << 30,
        matrices=matrices,
        tolerance=None if np.all(tolerance == 1) else tolerance,
        energy=None,
        differences=dict(differences),
    )
