"""round_dtype(float64(W) + delta), in place and fast: the bits of `from_float64`, mostly by float32 arithmetic.

16-bit weights. With w the weight, p a float32 within E0 of the float64 delta (by `singles`, or the delta itself
rounded), t = fl64(w + delta) the value that is to be rounded, and ulp(s) the spacing of float32 at s, let

    s = fl32(w + p)      |s - t| <= E0 + ulp(s) / 2 + 2^-53 |w + delta|
    E >= E0 (1 + 2^-20) + 2^-120
    a = fl32(|s| + E),  b = fl32(|s| - E)

and let P(x), for x >= 0, be the float32 pattern of x, linear between neighbours. It grows by 1 an ulp, which is wider
the larger x is. So P(|t|) is at most P(|s| + E0) + 1/2 + 2^-28, under P(a) + 2. Downwards:

    E0 <= |s| / 2    nothing from |s| down to |t| is spaced finer than ulp(s) / 4: P(|t|) is above P(b) - 3, and t has
                     the sign of s
    E0 > |s| / 2     ulp(s) / 2 is at most 2^-24 |s| or 2^-150, less than E - E0, so |s - t| <= E: P(|t|) is above
                     P(b) - 1, or t is 0 or of the other sign, for which |s| <= E and b <= 0

Rounding to 16 bits changes only at midpoints, whose patterns end in 1000...: where adding half a unit carries both
P(a) + 4 and P(b) - 4 to the same upper bits, t rounds to what s rounds to. b < 0 differs in its sign; b = 0 by a >= E.
All other elements are done in float64 by `from_float64`, as are all at hand when one of them is huge, infinite or NaN.
float16 weights are done so on float32 patterns too; below its normal range the midpoints lie elsewhere, so those are
done in float64.

F32 and F64 weights: the float64 sum, and for F32 its cast, are one rounding each as they are.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.deltas import Negative, RowDelta
from nola_codec.merge.arithmetic.float32 import Singles, elements, singles
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64

TILE = 1 << 16
"""Elements taken at once: all arrays of a tile lie in a core's own cache."""

_COLUMNS = 512  # of a tile of a product: few enough that BLAS has little to rearrange for the tile's few rows
_SLACK = 4  # patterns, in the proof
_NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_16, _13, _MAGNITUDE = np.uint32(16), np.uint32(13), np.uint32(0x7FFFFFFF)
# Half a unit of what is kept, in float32 patterns, as it is and with the slack.
_HALF = {
    dtype: (np.uint32(half), np.uint32(half + _SLACK), np.uint32(half - _SLACK))
    for dtype, half in {"BF16": 0x8000, "F16": 0x1000}.items()
}
_HIGH = {"BF16": 2.0**126, "F16": 65000.0}  # below overflow
_FLOAT16_NORMAL = 2.0**-14
_LARGEST = 2.0**100
_SPARSE = 8  # where more than one in so many is in doubt, all are done in float64


class _Tile:
    """Arrays of a tile of one shape, and their other views: making these costs as much as a pass over a small tile."""

    def __init__(self, shape: tuple[int, int], store: tuple[npt.NDArray[Any], ...]) -> None:
        size = shape[0] * shape[1]
        self.single, self.below, self.above = (array[:size].reshape(shape) for array in store[:3])
        self.doubt, self.other = (array[:size].reshape(shape) for array in store[3:])
        self.flat_doubt = store[3][:size]
        self.pattern, self.low, self.high = (array.view(np.uint32) for array in (self.single, self.below, self.above))


class _Scratch(threading.local):
    """A thread's tiles, all in the same memory."""

    def __init__(self) -> None:
        self.size = 0
        self.tiles: dict[tuple[int, int], _Tile] = {}

    def tile(self, shape: tuple[int, int]) -> _Tile:
        found = self.tiles.get(shape)
        if found is not None:
            return found
        if shape[0] * shape[1] > self.size or len(self.tiles) > 64:
            self.size = max(self.size, shape[0] * shape[1])
            self.tiles = {}
            dtypes = (np.float32, np.float32, np.float32, np.bool_, np.bool_)
            self.store = tuple(np.empty(self.size, dtype) for dtype in dtypes)
        made = self.tiles[shape] = _Tile(shape, self.store)
        return made


_SCRATCH = _Scratch()
_Indices = npt.NDArray[np.intp]
_Doubts = list[tuple[_Indices, _Indices, npt.NDArray[Any]]]  # rows, columns, old values


def add_rows(data: memoryview, dtype: str, delta: RowDelta, start: int, stop: int, *, where: str = "") -> None:
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
    if not values.size:
        return
    values = values.reshape(max(1, stop - start), -1)
    product = singles(delta, start, stop) if dtype in _HALF else None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if product is None:
            _add_doubles(values, delta, start, dtype, where)
        else:
            _add_singles(values, delta, product, start, dtype, where)


def _add_doubles(values: npt.NDArray[Any], delta: RowDelta, start: int, dtype: str, where: str) -> None:
    """By the delta's rows in float64."""
    count, width = values.shape
    step = max(1, TILE // max(1, width))
    for first in range(0, count, step):
        rows = values[first : first + step]
        change = delta.rows(start + first, start + first + len(rows)).reshape(rows.shape)
        for left in range(0, width, 4 * TILE):  # of rows longer than that
            part = np.s_[:, left : left + 4 * TILE]
            _add_double(rows[part], change[part], dtype, delta.bound, where)


def _add_double(values: npt.NDArray[Any], change: Float64Array, dtype: str, bound: float, where: str) -> None:
    if dtype in _HALF:
        single = _SCRATCH.tile(values.shape).single
        np.copyto(single, change, casting="unsafe")
        if bound > _LARGEST:  # not known, or useless
            bound = max(float(single.max(initial=0)), -float(single.min(initial=0)))
        again = _add_single(values, 2.0**-24 * bound, dtype)
        if again is not None:
            rows, columns, old = again
            if rows.size:
                values[rows, columns] = _exact(old, change[rows, columns], dtype, where)
            return
    values[:] = _exact(values, change, dtype, where)


def _add_singles(
    values: npt.NDArray[Any], delta: RowDelta, product: Singles, start: int, dtype: str, where: str
) -> None:
    """By a float32 product, block by block."""
    count, width = values.shape
    across = min(width, _COLUMNS, TILE)
    step = max(1, TILE // max(1, across))
    doubts: _Doubts = []
    for first in range(0, count, step):
        rows, left = values[first : first + step], product.left[first : first + step]
        change: Float64Array | None = None
        for begin in range(0, width, across):
            part = np.s_[:, begin : begin + across]
            tile = rows[part]
            np.matmul(left, product.right[part], out=_SCRATCH.tile(tile.shape).single)
            again = _add_single(tile, product.error, dtype)
            if again is not None:
                doubts.append((again[0] + first, again[1] + begin, again[2]))
                continue
            if change is None:
                change = delta.rows(start + first, start + first + len(rows)).reshape(rows.shape)
            tile[:] = _exact(tile, change[part], dtype, where)
    if doubts:
        places, columns, old = (np.concatenate(arrays) for arrays in zip(*doubts, strict=True))
        values[places, columns] = _exact(old, elements(delta, places + start, columns), dtype, where)


def _exact(values: npt.NDArray[Any], delta: Float64Array, dtype: str, where: str) -> npt.NDArray[Any]:
    """The definition: one float64 sum, one rounding. A delta of zero is +0, however it came about."""
    total = to_float64(RawTensor(dtype, values.shape, values.tobytes()), where=where)
    total += delta + 0.0
    return np.frombuffer(from_float64(total, dtype, where=where).data, dtype=values.dtype).reshape(values.shape)


def _add_single(
    values: npt.NDArray[Any], error: float, dtype: str
) -> tuple[_Indices, _Indices, npt.NDArray[Any]] | None:
    """The fast way, on a tile. p of the proof is `single` of the scratch tile of its shape; overwritten.

    Args:
        values: The weights, BF16 or F16, (rows, columns); those not in doubt are replaced.
        error: E0 of the proof, or nearly.
        dtype: Of the weights.

    Returns:
        Rows and columns of those in doubt, to be done exactly, and their old values; None, nothing changed, for all.
    """
    if not error <= _LARGEST:  # or NaN
        return None
    tile, (half, up, down) = _SCRATCH.tile(values.shape), _HALF[dtype]
    single, below, above, doubt = tile.single, tile.below, tile.above, tile.doubt
    pattern, low, high = tile.pattern, tile.low, tile.high
    margin = np.float32(error * (1 + 2.0**-18) + 2.0**-120)

    _widen(values, tile, dtype)
    np.add(below, single, out=single)
    np.bitwise_and(pattern, _MAGNITUDE, out=low)
    if not float(below.max(initial=0)) + 2 * float(margin) < _HIGH[dtype]:  # or NaN
        return None
    np.add(below, margin, out=above)
    np.subtract(below, margin, out=below)
    np.add(high, up, out=high)
    np.add(low, down, out=low)
    np.bitwise_xor(high, low, out=low)
    np.greater_equal(low, half + half, out=doubt)
    if dtype == "F16":  # all of b to a must be normal
        least = np.float32(_FLOAT16_NORMAL * (1 + 2.0**-9) + 3 * float(margin))
        np.less(high, least.view(np.uint32), out=tile.other)
        np.logical_or(doubt, tile.other, out=doubt)
    again = tile.flat_doubt.nonzero()[0]
    if again.size > values.size // _SPARSE:
        return None
    rows = again // max(1, values.shape[1])
    columns = again - rows * values.shape[1]
    old = values[rows, columns]
    if dtype == "BF16":
        np.add(pattern, half, out=pattern)
        np.right_shift(pattern, _16, out=pattern)
    else:  # the upper bits of a's magnitude, whose exponent counts from another zero, and the sign of s
        np.subtract(high, np.uint32(112 << 23), out=high)
        np.right_shift(high, _13, out=high)
        np.right_shift(pattern, _16, out=pattern)
        np.bitwise_and(pattern, np.uint32(0x8000), out=pattern)
        np.bitwise_or(pattern, high, out=pattern)
    np.copyto(values.view(np.uint16), pattern, casting="unsafe")
    return rows, columns, old


def _widen(values: npt.NDArray[Any], tile: _Tile, dtype: str) -> None:
    """float32 of 16-bit weights into `below`; of a float16 that is infinite or NaN, a number above 65504."""
    if dtype == "BF16":
        np.copyto(tile.low, values)
        np.left_shift(tile.low, _16, out=tile.low)
        return
    # NumPy's own cast takes several times as long. The sign is copied into all upper bits, of which one is kept.
    np.copyto(tile.low.view(np.int32), values.view(np.int16))
    np.left_shift(tile.low, _13, out=tile.low)
    np.bitwise_and(tile.low, np.uint32(0x8FFFE000), out=tile.low)
    np.multiply(tile.below, np.float32(2.0**112), out=tile.below)


def take_rows(data: memoryview, dtype: str, delta: RowDelta, start: int, stop: int) -> None:
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
