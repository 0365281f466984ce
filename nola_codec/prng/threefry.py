"""Threefry2x32-20 of Random123 (Salmon et al., SC 2011), the generator of JAX: 64-bit counters and keys."""

from __future__ import annotations

from typing import TypeVar

from nola_codec.arrays import Array

MASK = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)

T = TypeVar("T", int, Array)


def threefry2x32(counter: tuple[T, T], key: tuple[int, int], rounds: int = 20) -> tuple[T, T]:
    """Return two random words for each counter.

    Args:
        counter: Two int64 arrays of one shape (or two ints), holding 32-bit words, least significant first.
        key: Two 32-bit words.
        rounds: The number of rounds, a multiple of 4; the published generator has 20.

    Returns:
        Two values of the type and shape of the counters, in [0, 2^32).
    """
    schedule = (key[0], key[1], _PARITY ^ key[0] ^ key[1])
    x0, x1 = (counter[0] + schedule[0]) & MASK, (counter[1] + schedule[1]) & MASK
    for done in range(rounds):
        rotation = _ROTATIONS[done % 8]
        x0 = (x0 + x1) & MASK
        x1 = (((x1 << rotation) | (x1 >> (32 - rotation))) & MASK) ^ x0
        if done % 4 == 3:
            group = done // 4 + 1
            x0 = (x0 + schedule[group % 3]) & MASK
            x1 = (x1 + schedule[(group + 1) % 3] + group) & MASK
    return x0, x1
