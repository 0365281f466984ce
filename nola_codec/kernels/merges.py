"""The exact merge of `merger/arithmetic/`, and the sums of `merger/checksums.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

DTYPES = {"BF16": "uint16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""The dtypes of weights, in the order of their numbers in C, and the arrays that hold them."""

_NUMBERS = {np.dtype(name): number for number, name in enumerate(DTYPES.values())}
_PANEL = 64
_LARGEST_SUM = (1 << 31) - 1


class PackedFactors:
    """The factors of a delta, fl(fl((left @ right) * factor) * scaling), in the order in which the kernel reads them.

    Attributes:
        left: int16 (rows, 2 * pairs): the left factor, with a column of zeros if the rank is odd.
        panels: int16 (panels, pairs, 64, 2): the right factor, 64 columns after the other, padded with zeros.
        columns: The number of columns of the right factor.
        is_wide: True if a product may not fit into int32.
    """

    def __init__(self, left: npt.NDArray[np.int16], right: npt.NDArray[np.int16], peak: float) -> None:
        """Pack the factors.

        Args:
            left: int16 (rows, r).
            right: int16 (r, columns).
            peak: An upper bound of sum_k |left_ik| |right_kj|; it must be below 2^53.

        Raises:
            ValueError: An argument has another dtype, shape or range.
        """
        rank = len(right)
        require(left.ndim == right.ndim == 2, "two axes of each factor")
        left = require_array(left, ("int16",), (len(left), rank))
        right = require_array(right, ("int16",), right.shape)
        require(0 <= peak < 2.0**53, "a peak that double can hold")
        self.columns, self.is_wide = right.shape[1], peak >= _LARGEST_SUM
        pairs, panels = -(-rank // 2), -(-self.columns // _PANEL)
        padded = np.zeros((2 * pairs, panels * _PANEL), np.int16)
        padded[:rank, : self.columns] = right
        self.panels = np.ascontiguousarray(padded.reshape(pairs, 2, panels, _PANEL).transpose(2, 0, 3, 1))
        self.left = left
        if rank % 2:
            self.left = np.zeros((len(left), rank + 1), np.int16)
            self.left[:, :rank] = left


def add_factors(
    lib: Library, weights: npt.NDArray[Any], packed: PackedFactors, start: int, factor: float, scaling: float
) -> Int64Array:
    """Add rows of the delta of factors to weights in place: one float64 sum, one rounding.

    Args:
        lib: The library.
        weights: The weights of rows from `start` on, (rows, columns), an array of `DTYPES`; bfloat16 as uint16.
        packed: The factors.
        start: The first row.
        factor: A power of two, which may be negative.
        scaling: What the product is multiplied by after that; 1 changes nothing.

    Returns:
        The indices of the weights, taken as one row, that were left as they are: they or their sums are not finite.

    Raises:
        ValueError: An argument has another dtype, shape or range.
    """
    rows = len(weights)
    _require_rows(weights, packed, start)
    left_alone = np.empty(weights.size, np.int64)  # the system gives memory only to what is written
    count = lib.call("nola_add_factors", weights, _number(weights), rows, packed.columns,
                     packed.left[start : start + rows], packed.panels, packed.panels.shape[1], packed.is_wide,
                     float(factor), float(scaling), left_alone, None)  # fmt: skip
    return left_alone[:count].copy()


def multiply_factors(
    lib: Library, packed: PackedFactors, start: int, stop: int, factor: float, scaling: float
) -> Float64Array:
    """Return rows `start` to `stop` of the delta of factors, float64 (stop - start, columns).

    Raises:
        ValueError: An argument is out of range.
    """
    out = np.empty((stop - start, packed.columns))
    _require_rows(out, packed, start)
    lib.call("nola_add_factors", None, 0, len(out), packed.columns, packed.left[start:stop], packed.panels,
             packed.panels.shape[1], packed.is_wide, float(factor), float(scaling), None, out)  # fmt: skip
    return out


def add_deltas(lib: Library, weights: npt.NDArray[Any], deltas: Float64Array) -> Int64Array:
    """Add deltas, float64 in the shape of the weights, to weights in place; the rest is as in `add_factors`."""
    require(weights.flags.c_contiguous and weights.flags.writeable, "weights that can be written, in one piece")
    deltas = require_array(deltas, ("float64",), weights.shape)
    left_alone = np.empty(weights.size, np.int64)
    count = lib.call("nola_add_deltas", weights, _number(weights), weights.size, deltas, left_alone)
    return left_alone[:count].copy()


def word_sums(lib: Library, words: npt.NDArray[np.uint64]) -> tuple[int, int]:
    """Return sum w_i and sum (i + 1) w_i modulo 2^64 of words, uint64 (n,).

    Raises:
        ValueError: The words have another dtype or shape.
    """
    words = require_array(words, ("uint64",), (words.size,))
    sums = np.empty(2, np.uint64)
    lib.call("nola_word_sums", words, len(words), sums)
    return int(sums[0]), int(sums[1])


def _number(weights: npt.NDArray[Any]) -> int:
    require(weights.dtype in _NUMBERS and weights.dtype.isnative, "a dtype of weights")
    return _NUMBERS[weights.dtype]


def _require_rows(rows: npt.NDArray[Any], packed: PackedFactors, start: int) -> None:
    require(rows.ndim == 2 and rows.flags.c_contiguous and rows.flags.writeable, "rows in one piece")
    require(rows.shape[1] == packed.columns, "a weight for each column")
    require(0 <= start <= start + len(rows) <= len(packed.left), "rows of the left factor")
