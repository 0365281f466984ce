"""The coders of vectors: scalar quantizers, dependent quantizers and trellises, each with rate and squared cosine.

A coder quantizes vectors of unit variance. Its results are levels around 0, or for a trellis the bits of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, Int64Array, LevelArray
from nola_codec.fit.ecsq import Ecsq, frontier
from nola_codec.fit.viterbi import LevelSearch, encode_dependent, encode_trellis, pack_side_by_side
from nola_codec.kernels import library
from nola_codec.kernels.levels import dependent_sums, scalar_levels
from nola_codec.model.quantizers import Trellis
from nola_codec.parallel import parallel_map
from nola_codec.quant.trellis import TRELLISES, choose_books

MASK = 0b110111
"""The mask of the dependent quantizers, over six parities: the best of a random search (tools/design_trellis.py).

A mask of eight would gain 0.4%.
"""
_SCALAR_RATES = (
    0.012, 0.02, 0.033, 0.05, 0.075, 0.11, 0.16, 0.22, 0.3, 0.4, 0.52, 0.66, 0.82, 1.0, 1.2, 1.45, 1.7, 2.0, 2.3, 2.6,
    3.0, 3.4, 3.8, 4.2, 4.6, 5.0, 5.5, 6.0, 6.5,
)  # fmt: skip
_LEAST_STEPS = 24
"""Least number of steps for which a trellis pays: its window runs in a ring, which costs a little to close."""
_SLOPE = 0.5
"""The lambda of a dependent quantizer, in squared steps."""
_ROUNDS = 4
"""Rounds in which a dependent quantizer is fitted to a sample."""

Tables = tuple[Float64Array, Float64Array]
"""The points (2, most + 1) and the code lengths in bits (most + 1,) of a dependent coder."""


@dataclass(frozen=True)
class ScalarCoder:
    """A coder by an entropy-constrained scalar quantizer."""

    quantizer: Ecsq

    @property
    def rate(self) -> float:
        """The bits of a coefficient."""
        return self.quantizer.rate

    @property
    def cosine2(self) -> float:
        """The squared cosine between a vector and its code."""
        return self.quantizer.cosine2

    def levels(self, values: Float32Array) -> LevelArray:
        """Return the levels of vectors, int8, of the same shape."""
        thresholds = self.quantizer.thresholds.astype(np.float32)
        compiled = library()
        if compiled is not None:
            return scalar_levels(compiled, values, thresholds)
        magnitude = np.abs(values)
        if len(thresholds) > 12:
            level = np.searchsorted(thresholds, magnitude, side="right").astype(np.int8)
        else:
            level = np.zeros(magnitude.shape, np.int8)
            for threshold in thresholds:
                level += magnitude >= threshold
        return np.where(values < 0, -level, level)


@dataclass(frozen=True)
class DependentCoder:
    """A coder by a dependent quantizer, with spacing 2 * step in each of its codebooks.

    Attributes:
        step: Half the spacing.
        rate: The bits of a coefficient.
        cosine2: The squared cosine between a vector and its code.
    """

    step: float
    rate: float
    cosine2: float

    @property
    def most(self) -> int:
        """The highest level."""
        return int(min(127, max(2, np.ceil(5.5 / (2 * self.step)))))

    def points(self) -> Float64Array:
        """Return the points of the levels before they are fitted, (2, most + 1)."""
        even = 2 * self.step * np.arange(self.most + 1)
        return np.stack([even, np.maximum(even - self.step, 0)])

    def first_tables(self) -> Tables:
        """Return the points and code lengths before they are fitted."""
        return self.points(), np.arange(self.most + 1) * np.log2(1 + 2 * self.step) + 1

    def search(self, values: Float32Array, tables: Tables) -> LevelSearch:
        """Return the search of the levels of vectors; `fit_tables` makes the tables."""
        return LevelSearch(values, *tables, _SLOPE * self.step**2)


@dataclass(frozen=True)
class TrellisCoder:
    """A coder by a trellis.

    Attributes:
        trellis: The trellis.
        rate: The bits of a coefficient.
        cosine2: The squared cosine between a vector and its code.
    """

    trellis: Trellis
    rate: float
    cosine2: float

    def symbols(self, values: Float32Array) -> npt.NDArray[np.uint8]:
        """Return the symbols of vectors, uint8 (vectors, steps)."""
        return encode_trellis(self.trellis, values)


Coder = ScalarCoder | DependentCoder | TrellisCoder


def find_levels(searches: Sequence[LevelSearch]) -> list[LevelArray]:
    """Return the levels of each search of a dependent coder, int8 (vectors, count)."""
    packs = pack_side_by_side([search.values.shape for search in searches])
    made = parallel_map(lambda pack: encode_dependent(MASK, [searches[i] for i in pack]), packs)
    found = {
        i: levels for pack, together in zip(packs, made, strict=True) for i, levels in zip(pack, together, strict=True)
    }
    return [found[i] for i in range(len(searches))]


def fit_tables(samples: Sequence[tuple[DependentCoder, Float32Array]]) -> list[Tables]:
    """Fit points and code lengths to a sample of the vectors of each coder, all coders side by side.

    Args:
        samples: The coders, and float32 (vectors, count) of each.
    """
    tables = [coder.first_tables() for coder, _ in samples]
    for _ in range(_ROUNDS):
        found = find_levels([coder.search(own, table) for (coder, own), table in zip(samples, tables, strict=True)])
        tables = [
            _refit(coder, table, level, own) for (coder, own), table, level in zip(samples, tables, found, strict=True)
        ]
    return tables


def _refit(coder: DependentCoder, tables: Tables, level: LevelArray, sample: Float32Array) -> Tables:
    """Return the points and code lengths that fit the levels of a sample."""
    counts, sums = (part.sum(axis=0) for part in dependent_statistics(level, sample, coder.most))
    total = counts.sum(axis=0)
    total[1:] /= 2
    bits = -np.log2(np.maximum(total, 0.05) / max(1.0, total[0] + 2 * total[1:].sum()))
    return centroids(tables[0], counts, sums), bits


def dependent_statistics(level: LevelArray, values: Float32Array, most: int) -> tuple[Float64Array, Float64Array]:
    """Return counts, and sums of value times sign of level, of each (vector, codebook, |level|).

    Args:
        level: int8 (vectors, count): the levels, -most to most.
        values: float32 (vectors, count).
        most: The highest level.

    Returns:
        float64 (vectors, 2, most + 1) both.
    """
    compiled = library()
    if compiled is not None:
        return dependent_sums(compiled, MASK, level, values, most + 1)
    vectors = np.arange(len(level), dtype=np.int64)[:, None]
    index = (2 * vectors + choose_books(MASK, level)) * (most + 1) + np.abs(level)
    return bin_sums(index, np.sign(level) * values, (len(level), 2, most + 1))


def bin_sums(
    index: Int64Array, values: npt.NDArray[np.floating], shape: tuple[int, ...]
) -> tuple[Float64Array, Float64Array]:
    """Return how often each bin occurs, and the sum of its values, float64 of a shape; `index` counts through it."""
    size = int(np.prod(shape))
    return (
        np.bincount(index.reshape(-1), minlength=size).astype(np.float64).reshape(shape),
        np.bincount(index.reshape(-1), values.reshape(-1), minlength=size).astype(np.float64).reshape(shape),
    )


def centroids(points: Float64Array, counts: Float64Array, sums: Float64Array) -> Float64Array:
    """Return the centroids, (2, levels), strictly ascending from 0; a level without counts keeps its given point."""
    with np.errstate(invalid="ignore", divide="ignore"):
        made = np.where(counts > 0, sums / counts, points)
    made[:, 0] = 0.0
    for level in range(1, made.shape[1]):
        made[:, level] = np.maximum(made[:, level], made[:, level - 1] + 1e-3)
    return made


# The rows are (step, rate in bits, squared cosine) on a unit Gaussian; tools/design_trellis.py prints them.
_DEPENDENT: tuple[tuple[float, float, float], ...] = (
    (0.7500, 1.5374, 0.841239), (0.6558, 1.7103, 0.879760), (0.5734, 1.8886, 0.908540),
    (0.5014, 2.0788, 0.930844), (0.4384, 2.2776, 0.948232), (0.3833, 2.4790, 0.961138),
    (0.3352, 2.6737, 0.970638), (0.2931, 2.8683, 0.977760), (0.2563, 3.0644, 0.983187),
    (0.2241, 3.2547, 0.987120), (0.1959, 3.4445, 0.990152), (0.1713, 3.6375, 0.992512),
    (0.1498, 3.8269, 0.994259), (0.1310, 4.0199, 0.995605), (0.1145, 4.2080, 0.996631),
    (0.1001, 4.3989, 0.997421), (0.0876, 4.5889, 0.998017), (0.0766, 4.7802, 0.998482),
    (0.0669, 4.9704, 0.998838), (0.0585, 5.1623, 0.999112), (0.0512, 5.3535, 0.999317),
    (0.0448, 5.5444, 0.999477), (0.0391, 5.7360, 0.999599), (0.0342, 5.9282, 0.999694),
    (0.0299, 6.1191, 0.999765), (0.0262, 6.3113, 0.999820), (0.0229, 6.5040, 0.999863),
    (0.0200, 6.6955, 0.999895),
)  # fmt: skip
# The squared cosines of the trellises on vectors of 4608 Gaussian coefficients; the same program prints them.
_COSINES = (0.0501, 0.0745, 0.0973, 0.1163, 0.1425, 0.1875, 0.2211, 0.2690, 0.3451, 0.3950, 0.4685, 0.5626, 0.7119)


SCALAR_ONLY = -1
"""The stride limit of vectors that only scalar quantizers serve."""


def stride_limit(shortest: int) -> int:
    """Return the longest stride of the trellises that may code vectors of this length.

    It takes few values, so that a file needs few allocation tables.
    """
    return next((limit for limit in (24, 8, 3, 1) if limit * _LEAST_STEPS <= shortest), 0)


@lru_cache(maxsize=1)
def coders() -> tuple[Coder, ...]:
    """Return all coders, by ascending rate."""
    members = frontier()
    rates = np.array([m.rate for m in members])
    nearest = sorted({int(np.abs(rates - rate).argmin()) for rate in _SCALAR_RATES})
    found: list[Coder] = [ScalarCoder(members[i]) for i in nearest]
    found += [TrellisCoder(t, t.bits / t.stride, c) for t, c in zip(TRELLISES, _COSINES, strict=True)]
    found += [DependentCoder(*row) for row in _DEPENDENT]
    return tuple(sorted(found, key=lambda c: c.rate))


def serves(coder: Coder, stride: int) -> bool:
    """Return True if a coder may code vectors of this `stride_limit`.

    Scalar quantizers do so only at rates below those of the trellises.
    """
    if stride == SCALAR_ONLY:
        return isinstance(coder, ScalarCoder)
    if isinstance(coder, TrellisCoder):
        return coder.trellis.stride <= stride
    return isinstance(coder, DependentCoder) or stride == 0 or (stride < 24 and coder.rate < 1 / stride)
