"""Levels of scalar quantizers, and the sums to which codebooks are fitted, in the order of the NumPy code."""

from __future__ import annotations

import numpy as np

from nola_codec.array_types import Float32Array, Float64Array, LevelArray
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

_MAGNITUDES = 128


def scalar_levels(lib: Library, values: Float32Array, thresholds: Float32Array) -> LevelArray:
    """Return the number of thresholds that each magnitude reaches, with the sign of its value, int8 as `values`.

    Args:
        lib: The library.
        values: float32, of any shape.
        thresholds: float32 (n,), n at most 127.

    Raises:
        ValueError: An argument has another dtype or shape.
    """
    require(len(thresholds) < _MAGNITUDES, "at most 127 thresholds")
    levels = np.empty(values.shape, np.int8)
    lib.call("nola_scalar_levels", require_array(values, ("float32",), values.shape), values.size,
             require_array(thresholds, ("float32",), (len(thresholds),)), len(thresholds), levels)  # fmt: skip
    return levels


def scalar_sums(lib: Library, levels: LevelArray, values: Float32Array, size: int) -> tuple[Float64Array, Float64Array]:
    """Return the counts and the sums of magnitudes of the values of each vector and |level|, float64 (vectors, size).

    The sum of level 0 is 0.

    Args:
        lib: The library.
        levels: int8 (vectors, count), with magnitudes under `size`.
        values: float32 (vectors, count).
        size: The number of magnitudes, at most 128.

    Raises:
        ValueError: An argument has another dtype or shape.
    """
    require(0 < size <= _MAGNITUDES, "at most 128 magnitudes")
    vectors, length = values.shape
    counts, sums = np.empty((2, vectors, size))
    lib.call("nola_scalar_sums", require_array(levels, ("int8",), values.shape),
             require_array(values, ("float32",), values.shape), vectors, length, size, counts, sums)  # fmt: skip
    return counts, sums


def dependent_sums(
    lib: Library, mask: int, levels: LevelArray, values: Float32Array, size: int
) -> tuple[Float64Array, Float64Array]:
    """Return counts, and sums of value times sign of level, of each (codebook, |level|), float64 (vectors, 2, size).

    Args:
        lib: The library.
        mask: The mask of the codebooks, of at most 8 bits.
        levels: int8 (vectors, count), with magnitudes under `size`.
        values: float32 (vectors, count).
        size: The number of magnitudes, at most 128.

    Raises:
        ValueError: An argument has another dtype or shape.
    """
    require(0 < size <= _MAGNITUDES and 0 <= mask < 256, "at most 128 magnitudes and a mask of 8 bits")
    vectors, length = values.shape
    counts, sums = np.empty((2, vectors, 2, size))
    lib.call("nola_dependent_sums", require_array(levels, ("int8",), values.shape),
             require_array(values, ("float32",), values.shape), vectors, length, mask, size, counts, sums)  # fmt: skip
    return counts, sums
