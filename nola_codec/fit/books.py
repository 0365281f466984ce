"""Fit the quantizer that a file holds to levels: integer points at the centroids, and frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.entropy.rans import normalize
from nola_codec.fit.coders import MASK, Coder, DependentCoder, TrellisCoder, dependent_statistics
from nola_codec.model.quantizers import Dependent, Quantizer
from nola_codec.quant.codebooks import POINT_SCALE, symmetric_codebook


def level_statistics(
    coder: Coder, levels: npt.NDArray[np.int8], values: npt.NDArray[np.float32]
) -> tuple[Float64Array, Float64Array]:
    """Return the statistics that `fit_quantizer` needs, to be added up over vectors.

    They are counts and sums of magnitudes, (levels,) each, or (2, levels) for a dependent coder; zeros for a trellis.
    """
    if isinstance(coder, TrellisCoder):
        return np.zeros(1), np.zeros(1)
    if isinstance(coder, DependentCoder):
        return dependent_statistics(levels, values, coder.most)
    size = len(coder.quantizer.thresholds) + 1
    index = np.abs(levels).reshape(-1)
    return (
        np.bincount(index, minlength=size).astype(np.float64),
        np.bincount(index, np.abs(values).reshape(-1), minlength=size).astype(np.float64),
    )


def fit_quantizer(coder: Coder, statistics: Sequence[Float64Array]) -> Quantizer:
    """Make a quantizer of points at the centroids and frequencies of the counts, up to the highest used level."""
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
    """Return the centroids in units, strictly ascending; the ideal points where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centroids = np.where(counts > 0, sums / counts, ideal)
    points: list[int] = []
    for value in centroids:
        points.append(max(round(float(value) / unit), points[-1] + 1 if points else 1))
    return tuple(points)


def _unfold(counts: Float64Array, top: int) -> Float64Array:
    """Return counts of -top .. top, (2 top + 1,), from the counts of 0 .. top of both signs."""
    return np.concatenate((counts[top:0:-1] / 2, counts[:1], counts[1 : top + 1] / 2))


def symmetric_frequencies(counts: Float64Array) -> tuple[int, ...]:
    """Normalize counts to frequencies that are symmetric about the middle; the middle symbol gets the odd units."""
    half = len(counts) // 2
    table = np.array(normalize(counts), np.int64)
    side = np.minimum(table[:half], table[half + 1 :][::-1])
    middle = int(table.sum() - 2 * side.sum())
    return (*(int(f) for f in side), middle, *(int(f) for f in side[::-1]))
