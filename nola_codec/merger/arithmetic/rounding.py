"""Compute round_dtype(float64(W) + D) in place and fast: the bits of `from_float64`.

The definition is one float64 sum and one rounding (`_exact_sum`). The compiled kernels compute just that, and leave to
the definition what is not finite. The rest of this page is about NumPy, where there are no kernels.

NumPy computes F32 and F64 weights by the definition. For 16-bit weights this is slow, and float32 arithmetic finds the
right rounding of nearly every element as well. The proof:

    w      the weight, exact in float32
    D      the float64 delta
    p      a float32 within E0 of D: an element of `Float32Product`, or D itself rounded to float32
    t      fl64(w + D), the value that is to be rounded to 16 bits
    s      fl32(w + p), the value that is rounded instead
    ulp(s) the spacing of float32 at s

    |s - t| <= E0 + ulp(s) / 2 + 2^-53 |w + D|
    E >= E0 (1 + 2^-20) + 2^-120
    a = fl32(|s| + E),  b = fl32(|s| - E)

Let P(x), for x >= 0, be the float32 bit pattern of x as an integer, and linear between neighbours. P grows by 1 an ulp,
and an ulp is wider the larger x is.

1. Upwards, P(|t|) is at most P(|s| + E0) + 1/2 + 2^-28, which is less than P(a) + 2.
2. Downwards, if E0 <= |s| / 2: no spacing from |s| down to |t| is finer than ulp(s) / 4, so P(|t|) is above P(b) - 3,
   and t has the sign of s.
3. Downwards, if E0 > |s| / 2: ulp(s) / 2 is at most 2^-24 |s| or 2^-150, which is less than E - E0, so |s - t| <= E.
   Then P(|t|) is above P(b) - 1, or else t is 0 or has the other sign, which means |s| <= E and b <= 0.

So P(|t|) lies between P(b) - 4 and P(a) + 4. Rounding to 16 bits changes only at midpoints, whose patterns end in
1000...: if adding half a unit carries both ends to the same upper bits, then t rounds to what s rounds to. The case
b < 0 shows in the sign bit, and b = 0 in a >= E.

All other elements are computed by the definition, and so is a whole tile with a huge, infinite or NaN weight. float16
is treated in the same way on float32 patterns. Below its normal range its midpoints lie elsewhere, so those elements
are computed by the definition too.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.kernels import Library, library
from nola_codec.kernels.merges import add_deltas, add_factors
from nola_codec.merger.arithmetic.deltas import FactorDelta, NegativeDelta, RowDelta
from nola_codec.merger.arithmetic.float32 import Float32Product, elements, float32_product
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64

TILE = 1 << 16
"""Elements of a tile; all arrays of a tile fit into the cache of a core."""

_COLUMNS = 512  # columns of a tile of a product: few, so that BLAS has little to rearrange for the tile's few rows
_SLACK = 4  # patterns, as in the proof
_NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_16, _13, _MAGNITUDE = np.uint32(16), np.uint32(13), np.uint32(0x7FFFFFFF)
# Half a unit of the 16 bits that are kept, in float32 patterns: alone, plus the slack, and minus the slack.
_HALF = {
    dtype: (np.uint32(half), np.uint32(half + _SLACK), np.uint32(half - _SLACK))
    for dtype, half in {"BF16": 0x8000, "F16": 0x1000}.items()
}
_HIGH = {"BF16": 2.0**126, "F16": 65000.0}  # no magnitude below this overflows
_FLOAT16_NORMAL = 2.0**-14
_LARGEST = 2.0**100
_SPARSE = 8  # if more than one element in eight is in doubt, all are computed by the definition


class _Tile:
    """The arrays of a tile of one shape, and their views as bit patterns.

    They are kept for further tiles, since making them costs as much as a pass over a small tile.
    """

    def __init__(self, shape: tuple[int, int], store: tuple[npt.NDArray[Any], ...]) -> None:
        size = shape[0] * shape[1]
        self.single, self.below, self.above = (array[:size].reshape(shape) for array in store[:3])
        self.doubt, self.other = (array[:size].reshape(shape) for array in store[3:])
        self.flat_doubt = store[3][:size]
        self.pattern, self.low, self.high = (array.view(np.uint32) for array in (self.single, self.below, self.above))


class _Scratch(threading.local):
    """The tiles of each thread, all in the same memory."""

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
        data: The bytes of the rows, little-endian, writable.
        dtype: The dtype of the weight, one of `FLOAT_DTYPES`.
        delta: The delta of the whole weight.
        start: The first row.
        stop: The row after the last; 1 for a scalar.
        where: The weight's name, for messages.

    Raises:
        AdapterError: ``overflow``: a finite sum has no finite neighbour in the dtype.
    """
    values = np.frombuffer(data, dtype=_NUMPY[dtype])
    if not values.size:
        return
    values = values.reshape(max(1, stop - start), -1)
    lib = library()
    if lib is not None:
        _add_compiled(lib, values, delta, start, dtype, where)
        return
    product = float32_product(delta, start, stop) if dtype in _HALF else None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if product is None:
            _add_float64(values, delta, start, dtype, where)
        else:
            _add_product(values, delta, product, start, dtype, where)


def _add_compiled(lib: Library, values: npt.NDArray[Any], delta: RowDelta, start: int, dtype: str, where: str) -> None:
    """Add rows of a delta by the kernels; what is not finite is computed by the definition."""
    term, sign = (delta.delta, -1.0) if isinstance(delta, NegativeDelta) else (delta, 1.0)
    if isinstance(term, FactorDelta):
        left_alone = add_factors(lib, values, term.packed, start, sign * term.factor, term.scaling)
        if left_alone.size:
            rows, columns = np.divmod(left_alone, values.shape[1])
            changes = elements(delta, rows + start, columns)
            values[rows, columns] = _exact_sum(values[rows, columns], changes, dtype, where)
        return
    step = max(1, TILE // max(1, values.shape[1]))
    for first in range(0, len(values), step):
        part = values[first : first + step]
        change = delta.rows(start + first, start + first + len(part)).reshape(part.shape)
        left_alone = add_deltas(lib, part, change)
        if left_alone.size:
            flat, changes = part.reshape(-1), change.reshape(-1)[left_alone]
            flat[left_alone] = _exact_sum(flat[left_alone], changes, dtype, where)


def _add_float64(values: npt.NDArray[Any], delta: RowDelta, start: int, dtype: str, where: str) -> None:
    """Add rows of a delta that is computed in float64."""
    count, width = values.shape
    step = max(1, TILE // max(1, width))
    for first in range(0, count, step):
        rows = values[first : first + step]
        change = delta.rows(start + first, start + first + len(rows)).reshape(rows.shape)
        for left in range(0, width, 4 * TILE):  # a row may be longer than a tile
            part = np.s_[:, left : left + 4 * TILE]
            _add_float64_tile(rows[part], change[part], dtype, delta.bound, where)


def _add_float64_tile(values: npt.NDArray[Any], change: Float64Array, dtype: str, bound: float, where: str) -> None:
    if dtype in _HALF:
        single = _SCRATCH.tile(values.shape).single
        np.copyto(single, change, casting="unsafe")
        if bound > _LARGEST:  # unknown, or too large to be useful
            bound = max(float(single.max(initial=0)), -float(single.min(initial=0)))
        again = _add_tile(values, 2.0**-24 * bound, dtype)
        if again is not None:
            rows, columns, old = again
            if rows.size:
                values[rows, columns] = _exact_sum(old, change[rows, columns], dtype, where)
            return
    values[:] = _exact_sum(values, change, dtype, where)


def _add_product(
    values: npt.NDArray[Any], delta: RowDelta, product: Float32Product, start: int, dtype: str, where: str
) -> None:
    """Add rows of a delta that is computed as a float32 product, block by block."""
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
            again = _add_tile(tile, product.error, dtype)
            if again is not None:
                doubts.append((again[0] + first, again[1] + begin, again[2]))
                continue
            if change is None:
                change = delta.rows(start + first, start + first + len(rows)).reshape(rows.shape)
            tile[:] = _exact_sum(tile, change[part], dtype, where)
    if doubts:
        places, columns, old = (np.concatenate(arrays) for arrays in zip(*doubts, strict=True))
        values[places, columns] = _exact_sum(old, elements(delta, places + start, columns), dtype, where)


def _exact_sum(values: npt.NDArray[Any], delta: Float64Array, dtype: str, where: str) -> npt.NDArray[Any]:
    """Compute merged values by the definition: one float64 sum, one rounding. A delta of zero counts as +0."""
    total = to_float64(RawTensor(dtype, values.shape, values.tobytes()), where=where)
    total += delta + 0.0
    return np.frombuffer(from_float64(total, dtype, where=where).data, dtype=values.dtype).reshape(values.shape)


def _add_tile(values: npt.NDArray[Any], error: float, dtype: str) -> tuple[_Indices, _Indices, npt.NDArray[Any]] | None:
    """Add a delta to a tile by float32 arithmetic, as in the proof.

    The caller has put p of the proof into `single` of the thread's tile of this shape. It is overwritten here.

    Args:
        values: The weights, BF16 or F16, (rows, columns); those that are not in doubt are replaced.
        error: E0 of the proof, within 2^-20.
        dtype: The dtype of the weights.

    Returns:
        The rows, columns and old values of the elements in doubt, which the caller computes by the definition. None if
        all elements are in doubt; then none has changed.
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
    """Convert 16-bit weights to float32 in `below`. An infinite or NaN float16 becomes a number above 65504."""
    if dtype == "BF16":
        np.copyto(tile.low, values)
        np.left_shift(tile.low, _16, out=tile.low)
        return
    # NumPy's own cast takes several times as long. The sign is copied into all upper bits, of which one is kept.
    np.copyto(tile.low.view(np.int32), values.view(np.int16))
    np.left_shift(tile.low, _13, out=tile.low)
    np.bitwise_and(tile.low, np.uint32(0x8FFFE000), out=tile.low)
    np.multiply(tile.below, np.float32(2.0**112), out=tile.below)
