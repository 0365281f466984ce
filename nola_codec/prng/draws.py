"""Draw tensors again that PyTorch drew on a CPU (specification, "Drawn tensors").

    uniform_    value = low + u * (high - low),  u = (word mod 2^24) / 2^24       each element takes the next word

Everything is elementwise and rounded as IEEE 754 says, so that the bits are the same on every machine. The bits of
PyTorch are not: its kernels for AVX2 fuse product and sum into one operation, and the others do not. `Draw` says which
ones drew a tensor. Older versions took 8 or 11 bits of a word for a 16-bit element; newer ones round a float32 draw.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nola_codec.array_types import Float32Array, Uint32Array
from nola_codec.arrays import bfloat16_bits
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng.mt19937 import mt19937_pieces

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def draw_tensor(draw: Draw) -> RawTensor:
    """Draw a tensor again. The last two tensors are kept, because several layers may have the same draw."""
    return _draw(draw)


@lru_cache(maxsize=2)
def _draw(draw: Draw) -> RawTensor:
    stored = np.empty(draw.elements, _STORED[draw.dtype])
    position = 0
    for words in mt19937_pieces(draw.seed, draw.start, draw.elements):
        values = draw_values(draw, words)
        part = bfloat16_bits(values.view(np.uint32)) if draw.dtype == "BF16" else values
        with np.errstate(over="ignore", under="ignore"):
            stored[position : position + len(part)] = part
        position += len(part)
    if draw.axis == 1:
        slices = (draw.shape[1], draw.shape[0], *draw.shape[2:])
        stored = np.moveaxis(stored.reshape(slices), 0, 1)
    return RawTensor(draw.dtype, draw.shape, stored.tobytes())


def draw_values(draw: Draw, words: Uint32Array) -> Float32Array:
    """Make the elements of a draw from words.

    Args:
        draw: The draw; its shape and its place in the sequence do not matter here.
        words: uint32 of any shape.

    Returns:
        float32 of the words' shape; the last dtype of the draw holds each value exactly.
    """
    low, high = np.float32(draw.low), np.float32(draw.high)
    u = (words & np.uint32((1 << draw.digits) - 1)).astype(np.float32)
    u *= np.float32(2.0**-draw.digits)
    if draw.method == "ternary":
        values = (u > high).astype(np.float32) - (u < low).astype(np.float32)
    else:
        span = high - low
        if draw.method == "uniform-fused":
            wide = u.astype(np.float64)  # float64 holds the product exactly
            wide *= np.float64(span)
            wide += np.float64(low)
            values = wide.astype(np.float32)
        else:
            values = u * span
            values += low
        values = round_to_dtype(values, draw.dtypes[0])
        # A value that rounds to the upper end becomes the lower end: PyTorch keeps the interval half open.
        first, last = round_to_dtype(np.array([low, high], np.float32), draw.dtypes[0])
        values[values == last] = first
    if draw.divisor is not None:
        values = round_to_dtype(values / np.float32(draw.divisor), draw.dtypes[0])
    for dtype in draw.dtypes[1:]:
        values = round_to_dtype(values, dtype)
    return values


def round_to_dtype(values: Float32Array, dtype: str) -> Float32Array:
    """Round float32 values to numbers of a dtype (F32, F16, BF16), ties to even; values too large become infinite."""
    if dtype == "BF16":
        return (bfloat16_bits(np.ascontiguousarray(values).view(np.uint32)).astype(np.uint32) << np.uint32(16)).view(
            np.float32
        )
    if dtype == "F16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values
