"""The canonical form of the difference between an adapter and its reference.

Each column of lora_B and each row of lora_A is a unit of its own here. Let x be such a vector, in the gauge of the
reference (`alignment.py`), and p the reference's vector times its gain. Coded is d = x - p. With a the share of x that
p has already, n the squared norm of the rest of p over |x|^2, and c = a^2 / (a^2 + n) their squared cosine, the error
that p leaves is

    e = (1 - a)^2 + n / gamma                        of |x|^2, by the objective

If d is coded with the squared cosine y, the vector x is reached with c + (1 - c) y, and the error that this takes away
is e times the share A of a unit vector coded with y, but for gamma / (1 + (gamma - 1) c) in place of gamma. So d is a
unit like any other, with another strength and another tolerance of noise; for the NMSE only the strength is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from nola_codec.model.header import GAIN_ONE
from nola_codec.progress import Progress
from nola_codec.spool import allocate_array

MAX_GAIN = (1 << 15) - 1


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
class _Unit:
    """Some units of one record with vectors of one length on each side.

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
        progress: A function that is called as ("decomposing", items done, items in all), or None.
    """
    groups: list[_Unit] = []
    differences: dict[int, Difference] = {}
    for index, item in enumerate(items):
        keys = tuple(BasisKey(settings.generator, settings.seed, 2 * streams[index] + side) for side in (0, 1))
        known = predicted.get(index)
        if known is None:
            sides, singular = unit_vectors(item.sides)
            strength = singular * item.error_gain
            groups.append(_Unit(index, 0, roles_of(item), sides, keys, singular, strength, np.ones(len(singular))))
        else:
            groups += _difference_units(index, item, known, keys, gains, gammas)
            if item.is_pair:
                B, A = (
                    orthonormal_coefficients(known.vectors(side)[0].astype(np.float32), settings.basis, keys[side])
                    for side in (0, 1)
                )
                differences[index] = Difference(item.rank, B, A, item.error_gain)
        if progress is not None:
            progress("decomposing", index + 1, len(items))
    return _join(groups, settings, differences)


def _difference_units(
    index: int,
    item: Codable,
    known: PredictedItem,
    keys: tuple[BasisKey, ...],
    gains: tuple[int, int],
    gammas: Float64Array,
) -> list[_Unit]:
    """Return the units of an item that has a prediction: those of lora_B, then those of lora_A; or that of a vector."""
    roles = (LORA_B, LORA_A) if item.is_pair else roles_of(item)[:1]
    left, reached, cosines, differences = [], [], [], []
    for side, role in enumerate(roles):
        x, p = known.vectors(side)
        p = p * (gains[side] / GAIN_ONE)
        energy, dot, square = (x**2).sum(axis=1), (x * p).sum(axis=1), (p**2).sum(axis=1)
        along = dot**2 / np.maximum(energy, 1e-300)  # the energy of p along x
        noise = np.maximum(square - along, 0.0)
        left.append(energy - 2 * dot + along + noise / gammas[role])
        reached.append(np.clip(1 - left[-1] / np.maximum(energy, 1e-300), 0.0, 1.0))
        cosines.append(np.where(dot > 0, along / np.maximum(square, 1e-300), 0.0))
        differences.append(x - p)
    units = []
    for side, role in enumerate(roles):
        # The other side reaches its share of the product before and all of it in the end: their mean counts.
        partner = (1 + reached[1 - side]) / 2 if item.is_pair else 1.0
        norms = np.sqrt((differences[side] ** 2).sum(axis=1))
        vectors = differences[side] / np.where(norms > 0, norms, 1.0)[:, None]
        units.append(
            _Unit(
                record=index,
                first=side * item.rank,
                roles=(role, LORA_A),
                vectors=(vectors.astype(np.float32),),
                keys=(keys[side],),
                singular=norms,
                strength=np.sqrt(np.maximum(left[side], 0.0) * known.weights(side) * partner) * (norms > 0),
                tolerance=1 / (1 + (gammas[role] - 1) * cosines[side]),
            )
        )
    return units


def _join(groups: Sequence[_Unit], settings: FormSettings, differences: Mapping[int, Difference]) -> CanonicalForm:
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
