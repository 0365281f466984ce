"""Make large arrays that lie on disk, in a file without a name that goes away with the array.

The system writes their pages out when memory is short, so that the memory of a process does not grow with the model.
The files lie in $TMPDIR. Nothing is gained if that folder is itself in memory.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

THRESHOLD = 64 << 20
"""Size in bytes from which an array lies on disk."""


def allocate_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make an array of unspecified values, as `numpy.empty` does; an array of THRESHOLD bytes or more lies on disk.

    Raises:
        OSError: The folder of temporary files, which the error names, has no room for it.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes < THRESHOLD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="nola-") as file:
        _reserve(file.fileno(), nbytes)
        mapped = np.memmap(file, dtype, "w+", shape=shape)  # the array itself keeps the file open
    return mapped.view(np.ndarray)


def _reserve(descriptor: int, nbytes: int) -> None:
    """Give a file its room on disk: a mapped file for which there is none later would end the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(error.errno, os.strerror(error.errno), tempfile.gettempdir()) from error


def release_pages(*arrays: npt.NDArray[Any]) -> None:
    """Let the system take the memory of arrays that lie on disk, until they are used again; others are left alone."""
    for array in arrays:
        owner: Any = array
        while owner is not None and not isinstance(owner, mmap.mmap):
            owner = getattr(owner, "base", None)
        if owner is None or not array.nbytes or not array.flags.c_contiguous or not hasattr(mmap, "MADV_DONTNEED"):
            continue
        place = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        start = place // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_DONTNEED, start, place + array.nbytes - start)


class Arena:
    """A store of many arrays of one dtype, cut out of large pieces: each array is too small to go to disk alone."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._piece = np.empty(0, dtype)

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Copy an array into the arena, and return the copy, which has the same shape."""
        if array.size > len(self._piece):
            self._piece = allocate_array((max(array.size, THRESHOLD // self._dtype.itemsize),), self._dtype)
        own, self._piece = self._piece[: array.size], self._piece[array.size :]
        own[:] = array.reshape(-1)
        return own.reshape(array.shape)
