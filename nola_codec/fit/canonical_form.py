"""The canonical form of an adapter: all its components and vectors as unit vectors, in basis coefficients.

A unit is a component s u v^T of a module's delta, or a whole tensor that is coded as one vector. The encoder works on
matrices of unit vectors, one for each side and length, and not on modules. A quantizer then sees all vectors that it
codes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.fit.components import unit_vectors
from nola_codec.model.adapter import Codable
from nola_codec.parallel import parallel_map
from nola_codec.progress import Progress
from nola_codec.spool import allocate_array, release_pages

Matrices = tuple[dict[int, Float32Array], dict[int, Float32Array]]

LORA_B, LORA_A, DENSE, PLAIN, CARRIED = range(5)
"""Roles of a vector: a column of lora_B, a row of lora_A, a tensor of two dimensions or more, one of fewer, or a coded
carried tensor, which is no part of a delta."""


@dataclass(frozen=True)
class Difference:
    """A low-rank record that is coded as a difference: its units are the columns of lora_B, then the rows of lora_A.

    Attributes:
        rank: The number of columns.
        lora_B, lora_A: float32 (r, out) and (r, in): the whole factors in the gauge of the reference, each vector by
            its coefficients in the orthonormal basis.
        error_gain: The same as in `Codable`.
    """

    rank: int
    lora_B: Float32Array
    lora_A: Float32Array
    error_gain: float


@dataclass(frozen=True)
class CanonicalForm:
    """The units of an adapter: unit i is component `component[i]` of record `record[i]`, or a whole vector.

    Attributes:
        record, component: int64 (units,).
        strength: float64 (units,): gain * s, the norm of the unit in delta_W. If an importance weighs the units, it is
            the square root of the unit's weight.
        singular: float64 (units,): the singular value s, or the norm of a vector.
        lengths: int64 (2, units): the length of u (side 0) and of v (side 1). A vector is a u, and its v has length 0.
        roles: int64 (2, units): LORA_B, LORA_A, DENSE, PLAIN or CARRIED, which decides how much noise a vector
            tolerates.
        rows: int64 (2, units): the row of each vector in the matrix of its side and length.
        most: The number of components of a module that may be kept.
        matrices: For each side, {length: float32 (vectors, length)}: coefficients in an orthonormal basis, times the
            square root of the length, so that the mean square of a row is 1. They do not change once they are made.
        tolerance: float64 (units,): factors on the objective's gamma of units with one side; None if all are 1.
        energy: float64 (units,): the squared strength before it was weighted; None if it was not weighted.
        carried_precision: The precision of coded carried tensors in a `RateTable`.
        differences: The low-rank records that are coded as differences, by number (`difference_form.py`).
        floors: float64 (records,): the error of each record that no unit can take away; None if there is none.
        whole: The energy that errors are relative to, if it is not that of all units: that of the adapter, for a file
            with a reference.
    """

    record: Int64Array
    component: Int64Array
    strength: Float64Array
    singular: Float64Array
    lengths: Int64Array
    roles: Int64Array
    rows: Int64Array
    most: int
    matrices: Matrices
    tolerance: Float64Array | None = None
    energy: Float64Array | None = None
    carried_precision: int = 0
    differences: Mapping[int, Difference] = field(default_factory=dict)
    floors: Float64Array | None = None
    whole: float | None = None

    @property
    def floor(self) -> float:
        """The error that no unit can take away."""
        return 0.0 if self.floors is None else float(self.floors.sum())

    @property
    def total(self) -> float:
        """The energy that errors are relative to."""
        return float((self.strength**2).sum()) if self.whole is None else self.whole

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.record)

    def groups(self, side: int, units: Int64Array) -> Iterator[tuple[int, int, Int64Array]]:
        """Yield (role, length, positions among `units`) of the units' vectors on a side, by role and length."""
        roles, lengths = self.roles[side, units], self.lengths[side, units]
        for role in np.unique(roles).tolist():
            for length in np.unique(lengths[roles == role]).tolist():
                if length:
                    yield role, length, np.flatnonzero((roles == role) & (lengths == length))

    @cached_property
    def kinds(self) -> tuple[tuple[tuple[int, int], ...], Int64Array]:
        """The different (role, length) of all vectors, and which of them each vector has, int64 (2, units)."""
        pairs = np.stack([self.roles, self.lengths]).reshape(2, -1)
        kinds, kind_of = np.unique(pairs, axis=1, return_inverse=True)
        return tuple((role, length) for role, length in kinds.T.tolist()), kind_of.reshape(self.lengths.shape)

    def without_matrices(self) -> CanonicalForm:
        """Return the form without its matrices, which take most of its memory."""
        return replace(self, matrices=({}, {}))


@dataclass(frozen=True)
class FormSettings:
    """Everything that a canonical form depends on besides the tensors.

    Attributes:
        basis: The id of an orthogonal basis.
        generator: The id of the generator of the basis.
        seed: The user's seed.
        most: The number of components of a module that may be kept; the others count as lost. None stands for all.
        importance: float64 (items,): factors on the weights of each item's units; the sum of all weights does not
            change. None if there are none.
    """

    basis: int
    generator: int
    seed: int
    most: int | None = None
    importance: Float64Array | None = None


def make_canonical_form(
    items: Sequence[Codable], streams: Sequence[int], settings: FormSettings, progress: Progress | None = None
) -> CanonicalForm:
    """Decompose every module into components, and project every vector on its basis.

    Args:
        items: The modules, then the vectors, in the order of the records.
        streams: The stream number of each item.
        settings: The basis and the weights.
        progress: A function that is called as ("decomposing", items done, items in all), or None.
    """
    form = _empty_form(items, settings.most)
    ranks = np.array([item.rank for item in items], np.int64)
    starts = np.cumsum(ranks) - ranks

    def place(index: int) -> None:
        """Fill in the units of one item."""
        item = items[index]
        span = slice(int(starts[index]), int(starts[index]) + item.rank)
        sides, form.singular[span] = unit_vectors(item.sides)
        form.strength[span] = form.singular[span] * item.error_gain
        for side, vectors in enumerate(sides):
            length = vectors.shape[1]
            first = int(form.rows[side, span.start])
            key = BasisKey(settings.generator, settings.seed, 2 * streams[index] + side)
            coefficients = orthonormal_coefficients(vectors, settings.basis, key)  # (rank, length)
            form.matrices[side][length][first : first + item.rank] = coefficients * np.float32(np.sqrt(length))
        release_pages(*item.sides)

    for done, _ in enumerate(parallel_map(place, range(len(items)))):
        if progress is not None:
            progress("decomposing", done + 1, len(items))
    return _with_weights(form, settings.importance)


def _empty_form(items: Sequence[Codable], most: int | None) -> CanonicalForm:
    """Return a form with the units of all items and room for their vectors, but without their values."""
    ranks = np.array([item.rank for item in items], np.int64)
    shapes = np.array([(*item.vector_lengths, 0)[:2] for item in items], np.int64).reshape(-1, 2)
    roles = np.array([roles_of(item) for item in items], np.int64).reshape(-1, 2)
    lengths = np.repeat(shapes, ranks, axis=0).T.copy()  # (2, units)
    rows = np.zeros_like(lengths)
    matrices: Matrices = ({}, {})
    for side in (0, 1):
        for length in np.unique(lengths[side][lengths[side] > 0]):
            members = lengths[side] == length
            rows[side, members] = np.arange(int(members.sum()))
            matrices[side][int(length)] = allocate_array((int(members.sum()), int(length)), np.float32)
    units = lengths.shape[1]
    return CanonicalForm(
        record=np.repeat(np.arange(len(items)), ranks),
        component=np.concatenate([np.zeros(0, np.int64), *(np.arange(r) for r in ranks)]),
        strength=np.zeros(units),
        singular=np.zeros(units),
        lengths=lengths,
        roles=np.repeat(roles, ranks, axis=0).T.copy(),
        rows=rows,
        most=most or 1 << 30,
        matrices=matrices,
    )


def _with_weights(form: CanonicalForm, importance: Float64Array | None) -> CanonicalForm:
    """Weigh the units by the importance of their items, float64 (items,); without one, return the form as it is."""
    if importance is None:
        return form
    energy = form.strength**2
    wanted = energy * importance[form.record]
    if wanted.any():
        wanted *= energy.sum() / wanted.sum()
    return replace(form, strength=np.sqrt(wanted), energy=energy)


def roles_of(item: Codable) -> tuple[int, int]:
    """Return the role of each side. The second role of a vector has no meaning."""
    if item.is_pair:
        return LORA_B, LORA_A
    if item.is_carried:
        return CARRIED, LORA_A
    return (DENSE if len(item.stored_shapes[0]) > 1 else PLAIN), LORA_A


def orthonormal_coefficients(vectors: Float32Array, basis: int, key: BasisKey) -> Float32Array:
    """Return the coefficients of vectors (count, n) in the basis with rows of norm 1, float32 (count, n)."""
    length = vectors.shape[1]
    kind = basis_by_id(basis)
    projected = kind.project(vectors[None], length, (key,), NUMPY)[0]
    return np.asarray(projected * np.float32(1 / np.sqrt(kind.norm2(length))), np.float32)
