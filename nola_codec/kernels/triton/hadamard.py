"""Symbols to int16 elements in one kernel: points, Walsh-Hadamard blocks, signs, scale (specification, "Bases").

A program makes one tile of one vector: some whole blocks. Its coefficients never leave the registers. The butterflies
are sums of int32, so the order of their stages changes nothing.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

CODEBOOK, TRELLIS, DEPENDENT = range(3)
"""The kinds of quantizers, as the kernel numbers them."""
VECTOR_FIELDS = 7
LAYER_FIELDS = 8


@triton.jit
def _points(symbols, layer, tables, at, kept):
    """Return the points of one layer at some coefficients, times its weight, int32.

    A layer is eight int64: the place of its first symbol, the kind of quantizer, the place of its table, the weight,
    and for each kind:

        CODEBOOK    size, -, -, -
        TRELLIS     stride, bits of a step, steps, -
        DEPENDENT   size, mask, parity of the number of positive points, -
    """
    start = tl.load(layer)
    kind = tl.load(layer + 1)
    table = tl.load(layer + 2)
    weight = tl.load(layer + 3).to(tl.int32)
    first = tl.load(layer + 4).to(tl.int32)
    second = tl.load(layer + 5).to(tl.int32)
    third = tl.load(layer + 6).to(tl.int32)
    index = at
    if kind == 1:
        step = at // first
        window = at * 0
        for back in tl.static_range(8):
            shift = back * second
            place = (step - back) % third
            place = tl.where(place < 0, place + third, place)  # the remainder has the sign of the dividend
            bits = tl.load(symbols + start + place, mask=kept & (shift < 8), other=0).to(tl.int32)
            window = window | tl.where(shift < 8, bits << tl.minimum(shift, 7), 0)
        index = (window & 255) * first + at % first
    else:
        symbol = tl.load(symbols + start + at, mask=kept, other=0).to(tl.int32)
        chosen = at * 0
        if kind == 2:
            for back in tl.static_range(1, 9):
                used = kept & (((second >> (back - 1)) & 1) == 1) & (at >= back)
                bits = tl.load(symbols + start + at - back, mask=used, other=0).to(tl.int32)
                chosen = chosen ^ tl.where(used, (bits ^ third) & 1, 0)
        index = chosen * first + tl.minimum(symbol, first - 1)  # a damaged file may hold other symbols
    return tl.load(tables + table + index, mask=kept, other=0) * weight


@triton.jit
def _butterflies(x, SIZE: tl.constexpr, LOG2: tl.constexpr):
    """Multiply every 2^LOG2 consecutive elements of x (SIZE,) by the Sylvester matrix."""
    for stage in tl.static_range(LOG2):
        x = tl.reshape(x, [SIZE >> (stage + 1), 2, 1 << stage])
        a, b = tl.split(tl.permute(x, (0, 2, 1)))
        x = tl.permute(tl.join(a + b, a - b), (0, 2, 1))
        x = tl.reshape(x, [SIZE])
    return x


@triton.jit
def hadamard_kernel(
    symbols,
    vectors,
    layers,
    tables,
    words,
    out,
    blocks,
    LOG2: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
):
    """Make one tile of one vector.

    Args:
        symbols: uint8 or int32: the symbols of all rungs.
        vectors: int64 (vectors, 7): the first layer and the one behind the last, mantissa, shift, the place of the
            element 0 in `out`, the distance of elements, and the place of the sign words.
        layers: int64 (layers, 8): see `_points`.
        tables: int32: the points of all quantizers.
        words: int32: the sign words.
        out: int16: the elements, written.
        blocks: The number of blocks of a vector.
        LOG2: log2 of the block.
        TILE_BLOCKS: The number of blocks of a tile, a power of two.
    """
    SIZE: tl.constexpr = TILE_BLOCKS << LOG2
    vector = vectors + tl.program_id(0).to(tl.int64) * 7
    first_block = tl.program_id(1) * TILE_BLOCKS
    i = tl.arange(0, SIZE)
    block = first_block + (i >> LOG2)
    kept = block < blocks
    at = (first_block << LOG2) + i  # the number of the coefficient
    low = tl.load(vector)
    high = tl.load(vector + 1)
    x = i * 0
    for number in range(low, high):
        x += _points(symbols, layers + number * 8, tables, at, kept)
    x = _butterflies(x, SIZE, LOG2)
    element = (i & ((1 << LOG2) - 1)) * blocks + block  # blocks are interleaved
    word = tl.load(words + tl.load(vector + 6) + (element >> 5), mask=kept, other=0)
    x = tl.where(((word >> (element & 31)) & 1) == 1, -x, x)
    mantissa = tl.load(vector + 2)
    shift = tl.load(vector + 3)
    one = mantissa * 0 + 1
    y = (x.to(tl.int64) * mantissa + (one << (shift - 1))) >> shift
    y = tl.minimum(tl.maximum(y, -32768), 32767).to(tl.int16)
    tl.store(out + tl.load(vector + 4) + element.to(tl.int64) * tl.load(vector + 5), y, mask=kept)


def tile_blocks(block: int, blocks: int) -> int:
    """Return how many blocks a program makes: up to 4096 elements, and no more than the vector has, a power of two."""
    count = 1
    while count < blocks and 2 * count * block <= 4096:
        count *= 2
    return count


def synthesize(
    symbols: Any, vectors: Any, layers: Any, tables: Any, words: Any, out: Any, block: int, blocks: int
) -> None:
    """Launch `hadamard_kernel` for vectors of `block * blocks` elements; the other arguments are the kernel's."""
    tile = tile_blocks(block, blocks)
    grid = (vectors.shape[0], triton.cdiv(blocks, tile))
    warps = max(1, min(16, tile * block // 256))
    hadamard_kernel[grid](
        symbols, vectors, layers, tables, words, out, blocks,
        LOG2=block.bit_length() - 1, TILE_BLOCKS=tile, num_warps=warps,
    )  # fmt: skip
