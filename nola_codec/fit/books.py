"""Fit quantizers to levels: integer points at the centroids of the values, and frequencies from the counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.entropy.rans import normalize
from nola_codec.fit.coders import MASK, Coder, DependentCoder, TrellisCoder, bin_sums, dependent_statistics
from nola_codec.kernels import library
from nola_codec.kernels.levels import scalar_sums
from nola_codec.model.quantizers import Book, Codebook, Dependent, Quantizer
from nola_codec.quant.codebooks import POINT_SCALE, symmetric_codebook


def level_statistics(
    coder: Coder, levels: npt.NDArray[np.int8], values: npt.NDArray[np.float32]
) -> tuple[Float64Array, Float64Array]:
    """Return the counts of each vector's levels, and the sums of its values times their signs, by magnitude.

    Both are float64 (vectors, magnitudes), or (vectors, 2, magnitudes) for a dependent coder. Level 0 has sums of 0.
    For a trellis all are zeros.
    """
    if isinstance(coder, TrellisCoder):
        return np.zeros((len(levels), 1)), np.zeros((len(levels), 1))
    if isinstance(coder, DependentCoder):
        return dependent_statistics(levels, values, coder.most)
    size = len(coder.quantizer.thresholds) + 1
    compiled = library()
    if compiled is not None:
        return scalar_sums(compiled, levels, values, size)
    index = np.arange(len(levels), dtype=np.int64)[:, None] * size + np.abs(levels)
    counts, sums = bin_sums(index, np.abs(values), (len(levels), size))
    sums[:, 0] = 0
    return counts, sums


def fit_quantizer(coder: Coder, statistics: Sequence[Float64Array]) -> Quantizer:
    """Make a quantizer with points at the centroids and frequencies from the counts, up to the highest used level.

    Args:
        coder: The coder.
        statistics: The counts and the sums of `level_statistics`, of all vectors.
    """
    if isinstance(coder, TrellisCoder):
        return Quantizer(coder.trellis)
    counts, sums = (part.sum(axis=0) for part in statistics)
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


def coded_products(book: Book, counts: Float64Array, sums: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return each vector's inner product with its points, and the squared norm of the points, float64 (vectors,) both.

    Args:
        book: A symmetric or a dependent codebook.
        counts: The counts of `level_statistics`.
        sums: The sums of `level_statistics`.
    """
    points = np.zeros(counts.shape[1:])
    if isinstance(book, Dependent):
        top = len(book.even)
        points[:, 1 : top + 1] = book.even, book.odd
    else:
        assert isinstance(book, Codebook)
        top = book.size // 2
        points[1 : top + 1] = book.points[top + 1 :]
    axes = tuple(range(1, counts.ndim))
    return (sums * points).sum(axis=axes), (counts * points**2).sum(axis=axes)


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
