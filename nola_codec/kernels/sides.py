"""The int16 sides of records: rows to columns, and float32 (c/sides.c)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library


def rows_to_columns(lib: Library, rows: npt.NDArray[np.int16], columns: int) -> npt.NDArray[np.int16]:
    """Return rows (rows, length) as the first columns of int16 (length, columns), whose other columns are zero."""
    count, length = rows.shape
    require(count <= columns, "at most as many rows as columns")
    out = np.empty((length, columns), np.int16)
    lib.call("nola_rows_to_columns", require_array(rows, ("int16",), rows.shape), count, length, columns, out)
    return out


def to_float32(lib: Library, values: npt.NDArray[np.int16], exponent: int) -> npt.NDArray[np.float32]:
    """Return values * 2^exponent in float32, in the same shape. A file's exponents, -120 to 100, make it exact."""
    out = np.empty(values.shape, np.float32)
    lib.call("nola_to_float32", require_array(values, ("int16",), values.shape), values.size, 2.0**exponent, out)
    return out
