"""What PyTorch draws on a CPU from `torch.Generator().manual_seed(seed)`, for the frozen parts of PEFT's methods.

A permutation is a matter of integers and is exact. Normal numbers go through a logarithm and a cosine, whose last bits
differ between machines, so that they serve only to recognise a draw. This was checked against torch 2.13.0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
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


@lru_cache(maxsize=4096)
def normal_start(seed: int, size: int) -> Float64Array:
    """Return the first numbers of ``torch.normal(0, 1, (size,), generator=...)``, nearly: float64, at most (16,).

    From 16 elements on, word i gives u_i = (word mod 2^24) / 2^24. Each 16 of them make 16 numbers: with j below 8, the
    radius sqrt(-2 ln(1 - u_j)) times the cosine of 2 pi u_(j + 8) is number j, and times its sine number j + 8. The
    last 16 elements are drawn anew if 16 does not divide the size. Fewer elements take four words a pair.
    """
    if size < _CHUNK:
        words = mt19937(seed & 0xFFFFFFFF, 0, 2 * (size + size % 2)).astype(np.uint64)
        wide = ((words[::2] << np.uint64(32)) | words[1::2]) & np.uint64((1 << 53) - 1)
        u = wide.astype(np.float64) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log1p(-u[1::2])), 2 * np.pi * u[::2]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:size]
    u = (mt19937(seed & 0xFFFFFFFF, 0, _CHUNK) & np.uint32((1 << 24) - 1)).astype(np.float64) / 2.0**24
    radius, angle = np.sqrt(-2 * np.log(1 - u[:8])), 2 * np.pi * u[8:]
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return drawn if size % _CHUNK == 0 else drawn[: size - _CHUNK]
