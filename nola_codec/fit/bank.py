"""All unit vectors of an adapter as basis coefficients, in one matrix per side and length; tensors are units as well.

The encoder works on these matrices, not on modules: a quantizer then sees every vector it codes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.fit.canonical import Components, unit_vectors
from nola_codec.fit.weighting import Moments, component_figures, weigh
from nola_codec.model.adapter import Codable
from nola_codec.parallel import parallel_map
from nola_codec.spool import allocate_array

FloatArray = npt.NDArray[np.float32]

LORA_B, LORA_A, DENSE, PLAIN = range(4)
"""What a vector is: a column of lora_B, a row of lora_A, a tensor of two dimensions or more, or one of fewer."""


@dataclass(frozen=True)
class Bank:
    """Units of an adapter: unit i is component `component[i]` of record `record[i]`, or a vector whole.

    Attributes:
        record, component: int64 (units,).
        strength: float64 (units,): gain * s, the component's share of delta_W's Frobenius norm; or, where an
            importance or a calibration set weighs it, the square root of its weight.
        singular: float64 (units,): s; of a vector its norm.
        lengths: int64 (2, units): length of u (side 0) and of v (side 1); a vector is a u, and its v has length 0.
        roles: int64 (2, units): LORA_B, LORA_A, DENSE or PLAIN, which says how much noise a vector bears.
        rows: int64 (2, units): row in the matrix of that side and length.
        most: Components of a module that may be kept.
        matrices: For each side, {length: float32 (vectors, length)}: coefficients in an orthonormal basis, times the
            square root of the length, so that a row's mean square is 1.
        energy: float64 (units,): squared strength before it was weighted; None where it was not.
        tolerance: float64 (2, units): factors on the objective's gammas; None where all are 1.
    """

    record: Int64Array
    component: Int64Array
    strength: Float64Array
    singular: Float64Array
    lengths: Int64Array
    roles: Int64Array
    rows: Int64Array
    most: int
    matrices: tuple[dict[int, FloatArray], dict[int, FloatArray]]
    tolerance: Float64Array | None = None
    energy: Float64Array | None = None

    @property
    def units(self) -> int:
        return len(self.record)

    def groups(self, side: int, units: Int64Array) -> Iterator[tuple[int, int, Int64Array]]:
        """(role, length, positions among `units`) of the units' vectors on a side, by role and length."""
        roles, lengths = self.roles[side, units], self.lengths[side, units]
        for role in np.unique(roles).tolist():
            for length in np.unique(lengths[roles == role]).tolist():
                if length:
                    yield role, length, np.flatnonzero((roles == role) & (lengths == length))

    def bears(self, side: int, units: Int64Array) -> Float64Array | float:
        """`tolerance` of some units on one side."""
        return 1.0 if self.tolerance is None else np.asarray(self.tolerance[side, units])


def build_bank(
    items: Sequence[Codable],
    streams: Sequence[int],
    *,
    basis: int,
    generator: int,
    seed: int,
    most: int | None = None,
    importance: Float64Array | None = None,
    moments: Sequence[Moments] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Bank:
    """Canonical form and projection of every module, projection of every vector.

    Args:
        items: Modules, then vectors, in the order of the records.
        streams: Stream number of each.
        basis: Id of an orthogonal basis.
        generator: Id of its generator.
        seed: Of the generator.
        most: Components of a module that may be kept; the others count as lost.
        importance: float64 (items,): factors on the components' weights, which keep their sum.
        moments: Of each module, from a calibration set; vectors weigh their energy.
        progress: Called with the number of items done.

    Raises:
        EncodeError: moments that do not fit, or show no gain (`fit.weighting`).
    """
    ranks = np.array([item.rank for item in items], np.int64)
    shapes = np.array([(*item.vector_lengths, 0)[:2] for item in items], np.int64).reshape(-1, 2)
    record = np.repeat(np.arange(len(items)), ranks)
    roles = np.repeat(np.array([roles_of(item) for item in items], np.int64).reshape(-1, 2), ranks, axis=0).T.copy()
    component = np.concatenate([np.arange(r) for r in ranks]) if len(ranks) else np.zeros(0, np.int64)
    lengths = np.repeat(shapes, ranks, axis=0).T.copy()
    rows = np.zeros_like(lengths)
    matrices: tuple[dict[int, FloatArray], dict[int, FloatArray]] = ({}, {})
    for side in (0, 1):
        for length in np.unique(lengths[side][lengths[side] > 0]):
            members = lengths[side] == length
            rows[side, members] = np.arange(int(members.sum()))
            matrices[side][int(length)] = allocate_array((int(members.sum()), int(length)), np.float32)
    starts = np.cumsum(ranks) - ranks
    singular = np.zeros(len(record))
    strength = np.zeros(len(record))
    value, noise = np.zeros(len(record)), np.zeros((2, len(record)))

    def one(index: int) -> None:
        item = items[index]
        span = slice(int(starts[index]), int(starts[index]) + item.rank)
        sides, singular[span] = unit_vectors(item.sides)
        if moments is not None and item.is_pair:
            figures = component_figures(item, Components(sides[0], sides[1], singular[span]), moments[index])
            value[span], noise[:, span] = figures.value, figures.noise
        strength[span] = singular[span] * item.error_gain
        for side, vectors in enumerate(sides):
            length = vectors.shape[1]
            first = int(rows[side, span.start])
            key = BasisKey(generator, seed, 2 * streams[index] + side)
            matrices[side][length][first : first + item.rank] = orthonormal(vectors, basis, key) * np.float32(
                np.sqrt(length)
            )

    for done, _ in enumerate(parallel_map(one, range(len(items)))):
        if progress is not None:
            progress(done + 1)
    energy, tolerance = strength**2, None
    unweighted = energy if moments is not None or importance is not None else None
    if moments is not None:
        own = roles[0] == LORA_B
        energy, tolerance = energy.copy(), np.ones((2, len(record)))
        energy[own], tolerance[:, own] = weigh(energy[own], value[own], noise[:, own])
    if importance is not None:
        wanted = energy * importance[record]
        energy = wanted * (energy.sum() / wanted.sum()) if wanted.any() else wanted
    if moments is not None or importance is not None:
        strength = np.sqrt(energy)
    most = most or 1 << 30
    return Bank(
        record, component.astype(np.int64), strength, singular, lengths, roles, rows, most, matrices, tolerance,
        unweighted,
    )  # fmt: skip


def roles_of(item: Codable) -> tuple[int, int]:
    """Role of each side; of a vector the second says nothing."""
    if item.is_pair:
        return LORA_B, LORA_A
    return (DENSE if len(item.stored_shapes[0]) > 1 else PLAIN), LORA_A


def orthonormal(vectors: FloatArray, basis: int, key: BasisKey) -> FloatArray:
    """Coefficients of vectors (count, n) in the basis with its rows normalized, float32 (count, n)."""
    length = vectors.shape[1]
    kind = basis_by_id(basis)
    projected = kind.project(vectors[None], length, (key,), NUMPY)[0]
    return np.asarray(projected * np.float32(1 / np.sqrt(kind.norm2(length))), np.float32)
