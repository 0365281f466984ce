"""The merged weight in one pass, exact (`spec/conventions.md`, "delta_W and merging").

    D      = (B A) * 2^(eB + eA) * scaling     float64: an exact product, then one rounding at most
    merged = round_dtype(float64(W) + D)       one float64 sum, one rounding

An int16 number v is 256 h + l + 128 with h and l in int8. So B A is four products of int8 matrices, whose int32 sums
are exact, and a correction by sums of rows and columns:

    B A = 65536 Bh Ah + 256 (Bh Al + Bl Ah) + Bl Al + 128 (sum_k B' + sum_k A') + 16384 K,     v' = v - 128

A rank below 2^15 keeps every sum of int32 in range, and the whole stays far below 2^53.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""The dtypes of weights, as the kernel numbers them."""
MAX_RANK = 1 << 15


@triton.jit
def _limbs(v):
    """Return (h, l, v'): int8, int8 and int32 with v = 256 h + l + 128 and v' = v - 128."""
    v = v.to(tl.int32)
    high = v >> 8
    return high.to(tl.int8), (v - (high << 8) - 128).to(tl.int8), v - 128


@triton.jit
def merge_kernel(
    weight,
    merged,
    left,
    right,
    faults,
    rows,
    columns,
    rank,
    power,
    scaling,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Make one tile of a merged weight.

    Args:
        weight: (rows, columns) of the dtype.
        merged: (rows, columns) of the dtype, written; for bfloat16 int16 with its bits.
        left: int16 (rows, rank).
        right: int16 (rank, columns).
        faults: int32 (1,): the number of elements that are not finite is added.
        rows: The rows of the weight.
        columns: Its columns.
        rank: The rank of the delta.
        power: float64 (1,): a power of two, 2^(eB + eA).
        scaling: float64 (1,).
        ROWS: The rows of the tile.
        COLUMNS: Its columns.
        RANKS: The part of the rank that one product takes.
        DTYPE: FLOAT32, FLOAT16 or BFLOAT16.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    high = tl.zeros([ROWS, COLUMNS], tl.int32)
    cross = tl.zeros([ROWS, COLUMNS], tl.int32)
    other = tl.zeros([ROWS, COLUMNS], tl.int32)
    low = tl.zeros([ROWS, COLUMNS], tl.int32)
    left_sum = tl.zeros([ROWS], tl.int32)
    right_sum = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, rank, RANKS):
        k = start + tl.arange(0, RANKS)
        b = tl.load(left + i[:, None].to(tl.int64) * rank + k[None, :], mask=(i[:, None] < rows) & (k[None, :] < rank),
                    other=0)  # fmt: skip
        a = tl.load(right + k[:, None].to(tl.int64) * columns + j[None, :],
                    mask=(k[:, None] < rank) & (j[None, :] < columns), other=0)  # fmt: skip
        bh, bl, b_less = _limbs(b)
        ah, al, a_less = _limbs(a)
        high = tl.dot(bh, ah, high, out_dtype=tl.int32)
        cross = tl.dot(bh, al, cross, out_dtype=tl.int32)
        other = tl.dot(bl, ah, other, out_dtype=tl.int32)
        low = tl.dot(bl, al, low, out_dtype=tl.int32)
        left_sum += tl.sum(b_less, 1)
        right_sum += tl.sum(a_less, 0)
    product = high.to(tl.int64) * 65536 + (cross.to(tl.int64) + other.to(tl.int64)) * 256 + low.to(tl.int64)
    sums = left_sum[:, None].to(tl.int64) + right_sum[None, :].to(tl.int64)
    # The zeros behind the rank were terms as well.
    product += sums * 128 + 16384 * RANKS * tl.cdiv(rank, RANKS)
    delta = product.to(tl.float64) * tl.load(power) * tl.load(scaling)
    delta = tl.where(delta == 0, 0.0, delta)  # the delta of zero counts as +0
    kept = (i[:, None] < rows) & (j[None, :] < columns)
    at = i[:, None].to(tl.int64) * columns + j[None, :]
    total = tl.load(weight + at, mask=kept, other=0).to(tl.float32).to(tl.float64) + delta
    single = total.to(tl.float32)
    if DTYPE != 0:
        # Rounding to odd first makes the second rounding right (Boldo and Melquiond, 2008).
        back = single.to(tl.float64)
        bits = single.to(tl.int32, bitcast=True)
        step = tl.where(tl.abs(back) > tl.abs(total), -1, 1)
        bits = tl.where((back != total) & ((bits & 1) == 0), bits + step, bits)
        single = bits.to(tl.float32, bitcast=True)
    if DTYPE == 2:
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        finite = (rounded & 0x7F80) != 0x7F80
        tl.store(merged + at, rounded.to(tl.int16), mask=kept)
    else:
        value = single.to(tl.float16) if DTYPE == 1 else single
        magnitude = tl.abs(value.to(tl.float32))
        finite = magnitude < float("inf")
        tl.store(merged + at, value, mask=kept)
    tl.atomic_add(faults, tl.sum(tl.sum((kept & (finite == 0)).to(tl.int32), 1), 0))


def merge(weight: Any, merged: Any, left: Any, right: Any, faults: Any, power: Any, scaling: Any, dtype: int) -> None:
    """Launch `merge_kernel`; arguments are the kernel's, all contiguous. The rank is below `MAX_RANK`."""
    (rows, rank), columns = left.shape, right.shape[1]
    tile_rows, tile_columns = 64, 64
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns))
    # The rounding of the product must not be lost in a fused multiply and add.
    merge_kernel[grid](
        weight, merged, left, right, faults, rows, columns, rank, power, scaling,
        ROWS=tile_rows, COLUMNS=tile_columns, RANKS=32, DTYPE=dtype, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
