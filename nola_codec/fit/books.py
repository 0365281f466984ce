"""Fit quantizers to levels: integer points at the centroids of the values, and frequencies from the counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.entropy.rans import normalize
from nola_codec.fit.coders import MASK, Coder, DependentCoder, TrellisCoder, dependent_statistics
from nola_codec.kernels import library
from nola_codec.kernels.levels import scalar_sums
from nola_codec.model.quantizers import Dependent, Quantizer
from nola_codec.quant.codebooks import POINT_SCALE, symmetric_codebook


def level_statistics(
    coder: Coder, levels: npt.NDArray[np.int8], values: npt.NDArray[np.float32]
) -> tuple[Float64Array, Float64Array]:
    """Return the counts and the sums of magnitudes of the levels, which `fit_quantizer` needs in sum over all vectors.

    Both are float64 (levels,), or (2, levels) for a dependent coder. For a trellis they are zeros.
    """
    if isinstance(coder, TrellisCoder):
        return np.zeros(1), np.zeros(1)
    if isinstance(coder, DependentCoder):
        return dependent_statistics(levels, values, coder.most)
    size = len(coder.quantizer.thresholds) + 1
    compiled = library()
    if compiled is not None:
        return scalar_sums(compiled, levels, values, size)
    index = np.abs(levels).reshape(-1)
    return (
        np.bincount(index, minlength=size).astype(np.float64),
        np.bincount(index, np.abs(values).reshape(-1), minlength=size).astype(np.float64),
    )


def fit_quantizer(coder: Coder, statistics: Sequence[Float64Array]) -> Quantizer:
    """Make a quantizer with points at the centroids and frequencies from the counts, up to the highest used level."""
    if isinstance(coder, TrellisCoder):
        return Quantizer(coder.trellis)
    counts, sums = statistics
    if isinstance(coder, DependentCoder):
        share = counts.sum(axis=0)
        top = max(1, int(np.flatnonzero(share).max()))
        unit = 2 * coder.step / POINT_SCALE
        books = [_integers(c[1 : top + 1], s[1 : top + 1], p[1 : top + 1], unit)
                 for c, s, p in zip(counts, sums, coder.points(), strict=True)]  # fmt: skip
        return Quantizer(Dependent(MASK, books[0], books[1]), symmetric_frequencies(_unfold(share, top)))
    top = max(1, int(np.flatnonzero(counts).max()))
    ideal = coder.quantizer.points[:top]
    step = ideal[0] if top == 1 else float(np.median(np.diff(ideal)))
    points = _integers(counts[1 : top + 1], sums[1 : top + 1], ideal, step / POINT_SCALE)
    return Quantizer(symmetric_codebook(points), symmetric_frequencies(_unfold(counts, top)))


def _integers(counts: Float64Array, sums: Float64Array, ideal: Float64Array, unit: float) -> tuple[int, ...]:
    """Return the centroids in multiples of `unit`, strictly ascending; a level without counts gets its ideal point."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centroids = np.where(counts > 0, sums / counts, ideal)
    points: list[int] = []
    for value in centroids:
        points.append(max(round(float(value) / unit), points[-1] + 1 if points else 1))
    return tuple(points)


def _unfold(counts: Float64Array, top: int) -> Float64Array:
    """Return the counts of the levels -top to top, (2 top + 1,), from those of the magnitudes 0 to top."""
    return np.concatenate((counts[top:0:-1] / 2, counts[:1], counts[1 : top + 1] / 2))


def symmetric_frequencies(counts: Float64Array) -> tuple[int, ...]:
    """Return frequencies for symmetric counts that are symmetric too; the middle symbol gets what rounding leaves."""
    half = len(counts) // 2
    table = np.array(normalize(counts), np.int64)
    side = np.minimum(table[:half], table[half + 1 :][::-1])
    middle = int(table.sum() - 2 * side.sum())
    return (*(int(f) for f in side), middle, *(int(f) for f in side[::-1]))
