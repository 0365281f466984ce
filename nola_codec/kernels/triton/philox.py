"""Philox4x32-10 in registers (specification, "Generators"), and the sign words of bases in memory.

A vector of n elements has n / 32 sign words, which all vectors with the same basis read.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Return the four words of counters (c0, c1, c2, c3) under a key (k0, k1), all uint32."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = c0 * 0xD2511F53
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def sign_words_kernel(words, streams, count, purpose, k0, k1, COUNTERS: tl.constexpr):
    """Write the first words of several streams.

    Args:
        words: int32 (streams, count): the words, as bits, written.
        streams: int64 (streams,): the numbers of the streams.
        count: The number of words of a stream, a multiple of 4.
        purpose: The purpose of the words.
        k0: The low 32 bits of the seed.
        k1: The high 32 bits.
        COUNTERS: The number of counters of one program.
    """
    row = tl.program_id(0)
    block = tl.program_id(1) * COUNTERS + tl.arange(0, COUNTERS)
    low = block.to(tl.uint32)
    zero = low * 0
    stream = zero + tl.load(streams + row).to(tl.uint32)
    key0 = zero + k0.to(tl.uint32)
    key1 = zero + k1.to(tl.uint32)
    w0, w1, w2, w3 = philox(low, zero, stream, zero + purpose.to(tl.uint32), key0, key1)
    at = words + row.to(tl.int64) * count + 4 * block
    kept = 4 * block < count
    tl.store(at, w0.to(tl.int32, bitcast=True), mask=kept)
    tl.store(at + 1, w1.to(tl.int32, bitcast=True), mask=kept)
    tl.store(at + 2, w2.to(tl.int32, bitcast=True), mask=kept)
    tl.store(at + 3, w3.to(tl.int32, bitcast=True), mask=kept)


def sign_words(words: Any, streams: Any, purpose: int, seed: int) -> None:
    """Launch `sign_words_kernel`.

    Args:
        words: int32 (streams, count), written; `count` is a multiple of 4, below 2^34.
        streams: int64 (streams,).
        purpose: The purpose of the words, as in `prng`.
        seed: The user's seed, 64 bits.
    """
    rows, count = words.shape
    counters = 256
    grid = (rows, triton.cdiv(count // 4, counters))
    low, high = signed_word(seed & 0xFFFFFFFF), signed_word(seed >> 32)
    sign_words_kernel[grid](words, streams, count, purpose, low, high, COUNTERS=counters, num_warps=4)


def signed_word(word: int) -> int:
    """Return 32 bits as a signed number, which Triton passes as int32 whatever the bits are."""
    return word - (1 << 32) if word >> 31 else word
