"""The checksum of the journal: two sums that can be computed from pieces of a file, in any order, at memory speed.

    (sum w_i, sum (i + 1) w_i)  modulo 2^64      w_i: the file as little-endian uint64, its end padded with zeros

The checksum tells a damaged or half-written file from a whole one. It does not protect against an attacker.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from nola_codec.kernels import library
from nola_codec.kernels.merges import word_sums

Sums = tuple[int, int]
"""The two sums of a file or of a piece of it."""

_MASK = (1 << 64) - 1
_RAMP = np.arange(1, 4097, dtype=np.uint64)


def piece_sums(words: npt.NDArray[np.uint64], first: int) -> Sums:
    """Return the sums of consecutive words of a file.

    Args:
        words: The words, uint64 (n,). In a word that lies only partly in the piece, the other bytes are zero.
        first: The number of the first word in the file.
    """
    lib = library()
    if lib is not None:
        plain, weighted = word_sums(lib, words)
        return plain, (weighted + first * plain) & _MASK
    plain = weighted = 0
    for start in range(0, len(words), len(_RAMP)):
        part = words[start : start + len(_RAMP)]
        total = int(part.sum(dtype=np.uint64))
        plain += total
        weighted += int(np.dot(part, _RAMP[: len(part)])) + (first + start) * total
    return plain & _MASK, weighted & _MASK


def add_sums(a: Sums, b: Sums) -> Sums:
    """Return the sums of two pieces together, from the sums of each."""
    return (a[0] + b[0]) & _MASK, (a[1] + b[1]) & _MASK


def bytes_sums(data: bytes, offset: int = 0) -> Sums:
    """Return the sums of bytes that lie at an offset of a file."""
    padded = bytes(offset % 8) + data
    padded += bytes(-len(padded) % 8)
    return piece_sums(np.frombuffer(padded, "<u8"), offset // 8)


def file_sums(path: Path, block: int = 1 << 21) -> Sums:
    """Return the sums of a whole file, which is read `block` bytes at a time."""
    sums, offset = (0, 0), 0
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(block):
            sums = add_sums(sums, bytes_sums(data, offset))
            offset += len(data)
    return sums
