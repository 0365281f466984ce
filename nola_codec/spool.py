"""Large arrays that need not stay in memory: on disk, in a file without a name that goes away with the array.

The system writes their pages out when memory is short, so that what a process must hold does not grow with the model.
The files lie in $TMPDIR; where that is itself in memory nothing is gained.
"""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

THRESHOLD = 64 << 20
"""Bytes from which an array lies on disk."""


def allocate_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make an array of unspecified values, as `numpy.empty` does; from THRESHOLD bytes on it lies on disk."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes < THRESHOLD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="nola-") as file:
        mapped = np.memmap(file, dtype, "w+", shape=shape)  # holds the file open by itself
    return mapped.view(np.ndarray)


class Arena:
    """Arrays of one dtype carved out of large pieces, for many that are each too small to go to disk alone."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._piece = np.empty(0, dtype)

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Copy an array into the arena; returns the copy, in its shape."""
        if array.size > len(self._piece):
            self._piece = allocate_array((max(array.size, THRESHOLD // self._dtype.itemsize),), self._dtype)
        own, self._piece = self._piece[: array.size], self._piece[array.size :]
        own[:] = array.reshape(-1)
        return own.reshape(array.shape)
