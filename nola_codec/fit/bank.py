"""All unit vectors of an adapter as basis coefficients, in one matrix per side and length.

The encoder works on these matrices, not on modules: a quantizer then sees every vector it codes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.fit.canonical import Components, canonical
from nola_codec.fit.weighting import Moments, component_figures, weigh
from nola_codec.model import LoraModule
from nola_codec.parallel import parallel_map

FloatArray = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bank:
    """Units of an adapter: unit i is component `component[i]` of module `module[i]`.

    Attributes:
        module, component: int64 (units,).
        strength: float64 (units,): |scaling| * s, the component's share of delta_W's Frobenius norm; or, where an
            importance or a calibration set weighs it, the square root of its weight.
        singular: float64 (units,): s.
        lengths: int64 (2, units): length of u (side 0) and of v (side 1).
        rows: int64 (2, units): row in the matrix of that side and length.
        most: Components of a module that may be kept.
        matrices: For each side, {length: float32 (vectors, length)}: coefficients in an orthonormal basis, times the
            square root of the length, so that a row's mean square is 1.
        energy: float64 (units,): squared strength before it was weighted; None where it was not.
        tolerance: float64 (2, units): factors on the objective's gammas; None where all are 1.
    """

    module: Index
    component: Index
    strength: Vector
    singular: Vector
    lengths: Index
    rows: Index
    most: int
    matrices: tuple[dict[int, FloatArray], dict[int, FloatArray]]
    tolerance: Vector | None = None
    energy: Vector | None = None

    @property
    def units(self) -> int:
        return len(self.module)

    def bears(self, side: int, units: Index) -> Vector | float:
        """`tolerance` of some units on one side."""
        return 1.0 if self.tolerance is None else np.asarray(self.tolerance[side, units])


def build_bank(
    modules: Sequence[LoraModule],
    streams: Sequence[int],
    *,
    basis: int,
    generator: int,
    seed: int,
    most: int | None = None,
    importance: Vector | None = None,
    moments: Sequence[Moments] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Bank:
    """Canonical form and projection of every module.

    Args:
        modules: Their order is the order of the records.
        streams: Stream number of each.
        basis: Id of an orthogonal basis.
        generator: Id of its generator.
        seed: Of the generator.
        most: Components of a module that may be kept; the others count as lost.
        importance: float64 (modules,): factors on the components' weights, which keep their sum.
        moments: Of each module, from a calibration set.
        progress: Called with the number of modules done.

    Raises:
        EncodeError: moments that do not fit, or show no gain (`fit.weighting`).
    """
    ranks = np.array([m.rank for m in modules], np.int64)
    shapes = np.array([(m.lora_B.shape[0], m.lora_A.shape[1]) for m in modules], np.int64).reshape(-1, 2)
    module = np.repeat(np.arange(len(modules)), ranks)
    component = np.concatenate([np.arange(r) for r in ranks]) if len(ranks) else np.zeros(0, np.int64)
    lengths = np.repeat(shapes, ranks, axis=0).T.copy()
    rows = np.zeros_like(lengths)
    matrices: tuple[dict[int, FloatArray], dict[int, FloatArray]] = ({}, {})
    for side in (0, 1):
        for length in np.unique(lengths[side]):
            members = lengths[side] == length
            rows[side, members] = np.arange(int(members.sum()))
            matrices[side][int(length)] = np.empty((int(members.sum()), int(length)), np.float32)
    starts = np.cumsum(ranks) - ranks
    singular = np.zeros(len(module))
    strength = np.zeros(len(module))
    value, noise = np.zeros(len(module)), np.zeros((2, len(module)))

    def one(index: int) -> None:
        item = modules[index]
        parts: Components = canonical(item.lora_B, item.lora_A)
        span = slice(int(starts[index]), int(starts[index]) + item.rank)
        singular[span] = parts.s
        strength[span] = parts.s * abs(item.scaling)
        if moments is not None:
            figures = component_figures(item, parts, moments[index])
            value[span], noise[:, span] = figures.value, figures.noise
        for side, vectors in enumerate((parts.u, parts.v)):
            length = vectors.shape[1]
            first = int(rows[side, span.start])
            key = BasisKey(generator, seed, 2 * streams[index] + side)
            matrices[side][length][first : first + item.rank] = orthonormal(vectors, basis, key) * np.float32(
                np.sqrt(length)
            )

    for done, _ in enumerate(parallel_map(one, range(len(modules)))):
        if progress is not None:
            progress(done + 1)
    energy, tolerance = strength**2, None
    unweighted = energy if moments is not None or importance is not None else None
    if moments is not None:
        energy, tolerance = weigh(energy, value, noise)
    if importance is not None:
        wanted = energy * importance[module]
        energy = wanted * (energy.sum() / wanted.sum()) if wanted.any() else wanted
    if moments is not None or importance is not None:
        strength = np.sqrt(energy)
    most = most or 1 << 30
    return Bank(
        module, component.astype(np.int64), strength, singular, lengths, rows, most, matrices, tolerance, unweighted
    )


def orthonormal(vectors: FloatArray, basis: int, key: BasisKey) -> FloatArray:
    """Coefficients of vectors (count, n) in the basis with its rows normalized, float32 (count, n)."""
    length = vectors.shape[1]
    kind = basis_by_id(basis)
    projected = kind.project(vectors[None], length, (key,), NUMPY)[0]
    return np.asarray(projected * np.float32(1 / np.sqrt(kind.norm2(length))), np.float32)
