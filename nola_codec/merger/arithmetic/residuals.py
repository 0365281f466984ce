"""Compute the residuals of a merge: the bits that its rounding loses, row by row. They undo the merge to the bit.

With W the weight, D the float64 delta of `RowDelta`, and bits() the bit pattern of a float as an unsigned integer:

    merged    = round_dtype(float64(W) + D)
    predicted = round_dtype(float64(merged) - D)               nearly always W
    residual  = bits(W) - bits(predicted)      modulo 2^width  nearly always 0
    W         = bits^-1(bits(predicted) + residual)

All rows are little-endian bytes, and are changed in place. The dtypes are those of `add_rows`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.deltas import NegativeDelta, RowDelta
from nola_codec.merger.arithmetic.rounding import add_rows

_PATTERNS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}


def merge_rows(data: memoryview, dtype: str, delta: RowDelta, start: int, stop: int, *, where: str = "") -> memoryview:
    """Add rows start..stop of a delta to the same rows of a weight, in place, and return their residual.

    Args:
        data: The bytes of the rows.
        dtype: The dtype of the weight.
        delta: The delta of the whole weight.
        start: The first row.
        stop: The row after the last; 1 for a scalar.
        where: The weight's name, for messages.

    Raises:
        AdapterError: ``overflow``.
    """
    residual = memoryview(bytearray(data))
    add_rows(data, dtype, delta, start, stop, where=where)
    predicted = memoryview(bytearray(data))
    _predict_rows(predicted, dtype, delta, start, stop)
    a, b = _patterns(residual, dtype), _patterns(predicted, dtype)
    np.subtract(a, b, out=a)
    return residual


def restore_rows(data: memoryview, residual: memoryview, dtype: str, delta: RowDelta, start: int, stop: int) -> None:
    """Turn merged rows back into rows of the base, in place.

    Args:
        data: The bytes of rows start..stop of the merged weight.
        residual: The residual of the same rows, from `merge_rows`.
        dtype: The dtype of the weight.
        delta: The delta of the whole weight.
        start: The first row.
        stop: The row after the last; 1 for a scalar.
    """
    _predict_rows(data, dtype, delta, start, stop)
    a, b = _patterns(data, dtype), _patterns(residual, dtype)
    np.add(a, b, out=a)


def _predict_rows(data: memoryview, dtype: str, delta: RowDelta, start: int, stop: int) -> None:
    """Subtract the delta from merged rows, in place.

    If a sum overflows, all rows become zero. Only a damaged merged model can cause this.
    """
    try:
        add_rows(data, dtype, NegativeDelta(delta), start, stop)
    except AdapterError:
        data[:] = bytes(len(data))


def _patterns(data: memoryview, dtype: str) -> npt.NDArray[Any]:
    return np.frombuffer(data, dtype=_PATTERNS[dtype])
