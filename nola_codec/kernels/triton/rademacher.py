"""The dense basis of random signs (specification, "Bases"): y_i = sum_j q_j sign(j, i), with no sign ever stored.

A program makes the signs of some elements and some rows with Philox in registers, and adds its part of the sums to
memory. Sums of integers are the same in any order, so the additions may be atomic.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from nola_codec.kernels.triton.philox import philox, signed_word


@triton.jit
def rademacher_kernel(
    coefficients,
    sums,
    streams,
    num_basis,
    n,
    pitch,
    rows,
    k0,
    k1,
    COUNTERS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Add some rows of a basis, times their coefficients, to some elements of one vector.

    Args:
        coefficients: int32 (vectors, num_basis).
        sums: int32 (vectors, n): added to.
        streams: int64 (vectors,): the stream of each vector's basis.
        num_basis: The number of rows of a basis.
        n: The number of elements.
        pitch: The number of words of a row.
        rows: The number of rows that one program adds.
        k0: The low 32 bits of the seed.
        k1: The high 32 bits.
        COUNTERS: A program makes 128 COUNTERS elements.
        ALIGNED: True if every row begins with a counter of its own, so that four words come from one; else each word
            takes a counter.
    """
    vector = tl.program_id(2).to(tl.int64)
    WORDS: tl.constexpr = 4 * COUNTERS
    first_word = tl.program_id(0) * WORDS
    first_row = tl.program_id(1) * rows
    word = tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    total = tl.zeros([WORDS, 32], tl.int32)
    stream = tl.load(streams + vector).to(tl.uint32)
    for row in range(first_row, tl.minimum(first_row + rows, num_basis)):
        q = tl.load(coefficients + vector * num_basis + row)
        start = (vector * 0 + row) * pitch + first_word  # 64 bits wide, as the vector's number is
        if ALIGNED:
            counter = start // 4 + tl.arange(0, COUNTERS)
        else:
            counter = (start + word) // 4
        low = (counter & 0xFFFFFFFF).to(tl.uint32)
        high = (counter >> 32).to(tl.uint32)
        zero = low * 0
        w0, w1, w2, w3 = philox(
            low, high, zero + stream, zero + 3, zero + k0.to(tl.uint32), zero + k1.to(tl.uint32)
        )  # fmt: skip
        if ALIGNED:
            packed = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [WORDS])
        else:
            lane = (start + word) % 4
            packed = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
        signs = 1 - 2 * ((packed[:, None] >> bit[None, :].to(tl.uint32)) & 1).to(tl.int32)
        total += q * signs
    element = 32 * (first_word + word[:, None]) + bit[None, :]
    tl.atomic_add(sums + vector * n + element, total, mask=element < n)


def add_rows(coefficients: Any, sums: Any, streams: Any, seed: int) -> None:
    """Launch `rademacher_kernel`: sums += coefficients @ basis for each vector.

    Args:
        coefficients: int32 (vectors, num_basis).
        sums: int32 (vectors, n); no partial sum may leave int32.
        streams: int64 (vectors,): the stream of each vector's basis.
        seed: The user's seed, 64 bits.
    """
    (vectors, num_basis), n = coefficients.shape, sums.shape[1]
    pitch = (n + 31) // 32
    counters = 8
    tiles = triton.cdiv(n, 128 * counters)
    # Enough programs for a large device: rows are split where there are few elements.
    rows = max(16, triton.cdiv(num_basis, max(1, 2048 // (tiles * vectors))))
    grid = (tiles, triton.cdiv(num_basis, rows), vectors)
    rademacher_kernel[grid](
        coefficients, sums, streams, num_basis, n, pitch, rows, signed_word(seed & 0xFFFFFFFF), signed_word(seed >> 32),
        COUNTERS=counters, ALIGNED=pitch % 4 == 0, num_warps=4,
    )  # fmt: skip
