"""round_dtype(float64(W) + delta), in place and fast: the bits of `from_float64`, mostly by float32 arithmetic.

16-bit weights. With w the weight, D a bound of |delta| over the elements at hand, t = fl64(w + delta) the value that is
to be rounded, and

    d = fl32(delta)      |d - delta| <= max(2^-24 D, 2^-150)
    s = fl32(w + d)      |s - (w + d)| <= ulp(s) / 2, where ulp(s) is the spacing of float32 at s
                         |t - (w + delta)| <= 2^-53 |w + delta|

let |s| >= D / (K - 1) be normal. Then ulp(s) > 2^-24 |s| >= 2^-24 D / (K - 1), and |s - t| is less than
(K - 1 + 1/2 + 2^-28) ulp(s) < K ulp(s). Float32 patterns (sign and magnitude) ascend with the magnitude in steps of one
ulp, halved at most once on K steps down, so the pattern of t lies above n - 2K and under n + K, n being that of s.
Rounding to 16 bits changes only at midpoints, whose patterns end in 1000...: where no pattern from n - 2K to n + K is a
midpoint, t rounds to what s rounds to. All other elements, and those with a small, huge, infinite or NaN s, are done in
float64 by `from_float64`.

F32 and F64 weights: the float64 sum, and for F32 its cast, are one rounding each as they are.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.dtypes import from_float64, to_float64
from nola_codec.decoder.deltas import Delta, Float64, Negative
from nola_codec.errors import AdapterError
from nola_codec.model import RawTensor

TILE = 1 << 16
"""Elements taken at once: all arrays of a tile lie in a core's own cache."""

# K of the proof. Larger: more elements near midpoints are done again; smaller: more of those small beside the delta.
_STEPS = {"BF16": 64, "F16": 16}
_NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_FLOAT16_NORMAL, _FLOAT16_MAX = 0x38800000, 0x477FE000  # patterns of 2^-14 and 65504
_LARGEST = 2.0**120
_SPARSE = 8  # where more than one in so many is in doubt, all are done in float64


class _Scratch(threading.local):
    """A thread's arrays of one tile."""

    def __init__(self) -> None:
        self.size = 0

    def fit(self, size: int) -> None:
        if size > self.size:
            self.size = size
            self.single = np.empty(size, np.float32)
            self.bits = np.empty(size, np.uint32)
            self.half = np.empty(size, np.uint16)
            self.low = np.empty(size, np.uint16)
            self.doubt = np.empty(size, np.bool_)
            self.other = np.empty(size, np.bool_)


_SCRATCH = _Scratch()
_Doubts = list[tuple[npt.NDArray[np.intp], npt.NDArray[Any], Float64]]


def add_rows(data: memoryview, dtype: str, delta: Delta, start: int, stop: int, *, where: str = "") -> None:
    """Add rows start..stop of a delta to the same rows of a weight, in place, with one sum and one rounding.

    Args:
        data: The rows' bytes, little-endian, writable.
        dtype: Of the weight, one of `FLOAT_DTYPES`.
        delta: Of the whole weight.
        start: First row.
        stop: One past the last; 1 for a scalar.
        where: The weight's name, for messages.

    Raises:
        AdapterError: ``overflow``: a finite sum has no finite neighbour in the dtype.
    """
    values = np.frombuffer(data, dtype=_NUMPY[dtype])
    row = values.size // max(1, stop - start)
    step = max(1, TILE // max(1, row))
    doubts: _Doubts = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for first in range(start, stop, step):
            last = min(first + step, stop)
            change = delta.rows(first, last).reshape(-1)
            offset = (first - start) * row
            for begin in range(0, change.size, 4 * TILE):  # of rows longer than that
                _add(values, offset + begin, change[begin : begin + 4 * TILE], dtype, delta.bound, doubts, where)
    if doubts:
        places, old, change = (np.concatenate(arrays) for arrays in zip(*doubts, strict=True))
        values[places] = _exact(old, change, dtype, where)


def _add(
    values: npt.NDArray[Any], offset: int, delta: Float64, dtype: str, bound: float, doubts: _Doubts, where: str
) -> None:
    tile = values[offset : offset + delta.size]
    if dtype in _STEPS:
        again = (_add_bfloat16 if dtype == "BF16" else _add_float16)(tile, delta, bound)
        if again is not None:
            places, old = again
            if places.size:
                doubts.append((places + offset, old, delta[places]))
            return
    tile[:] = _exact(tile, delta, dtype, where)


def _exact(values: npt.NDArray[Any], delta: Float64, dtype: str, where: str) -> npt.NDArray[Any]:
    """The definition: one float64 sum, one rounding. A delta of zero is +0, however it came about."""
    total = to_float64(RawTensor(dtype, values.shape, values.tobytes()), where=where)
    total += delta + 0.0
    return np.frombuffer(from_float64(total, dtype, where=where).data, dtype=values.dtype)


_Again = tuple[npt.NDArray[np.intp], npt.NDArray[Any]] | None


def _add_bfloat16(values: npt.NDArray[Any], delta: Float64, bound: float) -> _Again:
    """The fast way. Returns the places to be done exactly and their old values; None, nothing changed, for all."""
    scratch, size, steps = _SCRATCH, values.size, _STEPS["BF16"]
    scratch.fit(size)
    single, bits, half, low = scratch.single[:size], scratch.bits[:size], scratch.half[:size], scratch.low[:size]
    doubt, other = scratch.doubt[:size], scratch.other[:size]
    np.copyto(single, delta, casting="unsafe")
    least = _least_pattern(single, bound, steps)
    if least is None:
        return None
    np.copyto(bits, values)
    np.left_shift(bits, np.uint32(16), out=bits)
    np.add(bits.view(np.float32), single, out=single)
    np.add(single.view(np.uint32), np.uint32(0x8000 + steps), out=bits)
    np.copyto(low, bits, casting="unsafe")
    np.less_equal(low, np.uint16(3 * steps), out=doubt)
    np.right_shift(bits, np.uint32(16), out=bits)
    np.copyto(half, bits, casting="unsafe")
    # What is in `half`, its sign shifted out, stands in for n: the 0x8000 + K and the lower bits that it has more or
    # less than n are under two units of it. Patterns under the first few may have neighbours of the other sign.
    np.left_shift(half, np.uint16(1), out=low)
    if low.max(initial=0) >= 0xFF00:  # infinite or NaN, or rounded to it
        return None
    np.less(low, np.uint16(2 * ((least + 2 * steps >> 16) + 3)), out=other)
    again = np.flatnonzero(np.logical_or(doubt, other, out=doubt))
    if again.size > size // _SPARSE:
        return None
    old = values[again]
    np.copyto(values, half)
    return again, old


def _add_float16(values: npt.NDArray[Any], delta: Float64, bound: float) -> _Again:
    """As `_add_bfloat16`. Only the normal range has its midpoints at the same place of every pattern."""
    scratch, size, steps = _SCRATCH, values.size, _STEPS["F16"]
    scratch.fit(size)
    single, bits, doubt, other = scratch.single[:size], scratch.bits[:size], scratch.doubt[:size], scratch.other[:size]
    np.copyto(single, delta, casting="unsafe")
    least = _least_pattern(single, bound, steps)
    if least is None:
        return None
    np.copyto(bits.view(np.float32), values)
    np.add(bits.view(np.float32), single, out=single)
    pattern = single.view(np.uint32)
    np.add(pattern, np.uint32(0x1000 + steps), out=bits)
    np.bitwise_and(bits, np.uint32(0x1FFF), out=bits)
    np.less_equal(bits, np.uint32(3 * steps), out=doubt)
    np.bitwise_and(pattern, np.uint32(0x7FFFFFFF), out=bits)
    if bits.max(initial=0) >= _FLOAT16_MAX - 4 * steps:
        return None
    np.less(bits, np.uint32(max(least, _FLOAT16_NORMAL) + 4 * steps), out=other)
    again = np.flatnonzero(np.logical_or(doubt, other, out=doubt))
    if again.size > size // _SPARSE:
        return None
    old = values[again]
    np.copyto(values, single, casting="unsafe")
    return again, old


def _least_pattern(single: npt.NDArray[np.float32], bound: float, steps: int) -> int | None:
    """Pattern of D / (K - 1), rounded up; None when the delta is not finite or too large for float32."""
    if bound > _LARGEST:  # not known, or useless
        bound = max(float(single.max(initial=0)), -float(single.min(initial=0)))
    if not bound <= _LARGEST:
        return None
    # Generously up: d is rounded itself, and so is the quotient in float32.
    return int(np.float32(bound / (steps - 1) * (1 + 2.0**-20) + 2.0**-140).view(np.uint32))


def take_rows(data: memoryview, dtype: str, delta: Delta, start: int, stop: int) -> None:
    """Merged rows -> round_dtype(float64(merged) - delta), in place: nearly the base, and the same everywhere.

    A sum that overflows (which the base did not, but a damaged merged model may) becomes zero.
    """
    try:
        add_rows(data, dtype, Negative(delta), start, stop)
    except AdapterError:
        data[:] = bytes(len(data))


def subtract_bits(data: memoryview, predicted: memoryview, dtype: str) -> None:
    """data := patterns of data minus those of predicted, modulo their width; `add_bits` undoes it."""
    a, b = _patterns(data, dtype), _patterns(predicted, dtype)
    np.subtract(a, b, out=a)


def add_bits(data: memoryview, residual: memoryview, dtype: str) -> None:
    """data := patterns of data plus residual, modulo their width."""
    a, b = _patterns(data, dtype), _patterns(residual, dtype)
    np.add(a, b, out=a)


def _patterns(data: memoryview, dtype: str) -> npt.NDArray[Any]:
    widths = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}
    if dtype not in widths:
        raise AdapterError(f"{dtype} is not a float type", code="not-float")
    return np.frombuffer(data, dtype=widths[dtype])
