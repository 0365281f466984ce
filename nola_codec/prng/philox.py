"""Philox4x32-10 of Random123 (Salmon et al., SC 2011): four 32-bit words for a 128-bit counter and a 64-bit key.

Words lie in int64 arrays. A product of two 32-bit words may wrap in int64, but its 64 bits are still right. The same
expressions therefore run on NumPy and on PyTorch, which lacks uint64 arithmetic on CUDA.
"""

from __future__ import annotations

from nola_codec.arrays import Array

MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(
    counter: tuple[Array, Array, Array, Array], key: tuple[int, int], rounds: int = 10
) -> tuple[Array, Array, Array, Array]:
    """Return four random words for each counter.

    Args:
        counter: Four int64 arrays of one shape, holding 32-bit words, least significant first.
        key: Two 32-bit words.
        rounds: The number of rounds; the published generator has 10.

    Returns:
        Four int64 arrays of the counters' shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + _W0) & MASK, (k1 + _W1) & MASK
    return c0, c1, c2, c3
