"""What PyTorch draws on a CPU from `torch.Generator().manual_seed(seed)`, for the frozen parts of PEFT's methods.

A permutation is a matter of integers and is exact. Normal numbers go through a logarithm and a cosine, whose last bits
differ between machines, so that they serve only to recognise a draw. This was checked against torch 2.13.0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Uint32Array
from nola_codec.prng.mt19937 import mt19937

MOST_PERMUTED = (2**32 - 1) // 20 - 1
"""The most elements that PyTorch permutes in the way of `permutation_start`."""

_CHUNK = 16


@lru_cache(maxsize=64)
def permutation_start(seed: int, size: int, count: int) -> npt.NDArray[np.int64]:
    """Return the first elements of ``torch.randperm(size, generator=...)``, int64 (count,).

    Step i exchanges element i with element i + (word i mod (size - i)) of the list 0, 1, ..., size - 1.

    Args:
        seed: The seed of the generator; its low 32 bits count.
        size: The number of elements that are permuted, at most MOST_PERMUTED.
        count: The number of elements wanted, at most `size`.
    """
    words = mt19937(seed & 0xFFFFFFFF, 0, count).tolist()
    moved: dict[int, int] = {}
    found = np.empty(count, np.int64)
    for step, word in enumerate(words):
        other = step + word % (size - step)
        found[step] = moved.get(other, other)
        moved[other] = moved.get(step, step)
    found.setflags(write=False)
    return found


def normal_numbers(seed: int, size: int) -> Float64Array:
    """Return ``torch.normal(0, 1, (size,), generator=...)``, nearly: float64 (size,).

    From 16 elements on, word i gives u_i = (word mod 2^24) / 2^24. Each 16 of them make 16 numbers: with j below 8, the
    radius sqrt(-2 ln(1 - u_j)) times the cosine of 2 pi u_(j + 8) is number j, and times its sine number j + 8. If 16
    does not divide the size, 16 more words make the last 16 numbers anew. Fewer elements take four words a pair.

    Args:
        seed: The seed of the generator; its low 32 bits count.
        size: The number of elements, at least 1.
    """
    seed &= 0xFFFFFFFF
    if size < _CHUNK:
        halves = mt19937(seed, 0, 2 * (size + size % 2)).astype(np.uint64)
        wide = ((halves[::2] << np.uint64(32)) | halves[1::2]) & np.uint64((1 << 53) - 1)
        u = wide.astype(np.float64) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log1p(-u[1::2])), 2 * np.pi * u[::2]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:size]
    whole, rest = divmod(size, _CHUNK)
    words = mt19937(seed, 0, size + (_CHUNK if rest else 0))
    numbers = np.empty(size)
    numbers[: whole * _CHUNK] = _normal_chunks(words[: whole * _CHUNK])
    if rest:
        numbers[-_CHUNK:] = _normal_chunks(words[size:])
    return numbers


def _normal_chunks(words: Uint32Array) -> Float64Array:
    u = (words.reshape(-1, 2, _CHUNK // 2) & np.uint32((1 << 24) - 1)).astype(np.float64) / 2.0**24
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0])), 2 * np.pi * u[:, 1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
