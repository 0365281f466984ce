"""The int16 sides of records: rows to columns, and float32 (c/sides.c)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library, address_of

_LINE = 16
"""The float32 numbers of 64 bytes."""


def rows_to_columns(lib: Library, rows: npt.NDArray[np.int16], columns: int) -> npt.NDArray[np.int16]:
    """Return rows (rows, length) as the first columns of int16 (length, columns), whose other columns are zero."""
    count, length = rows.shape
    require(count <= columns, "at most as many rows as columns")
    out = np.empty((length, columns), np.int16)
    lib.call("nola_rows_to_columns", require_array(rows, ("int16",), rows.shape), count, length, columns, out)
    return out


def to_float32(
    lib: Library, arrays: Sequence[npt.NDArray[np.int16]], factors: Sequence[float]
) -> list[npt.NDArray[np.float32]]:
    """Return int16 arrays times a factor each, in float32: the product in float64, rounded.

    With powers of two as a file has them, 2^-120 to 2^100, it is exact. The results lie in one array, and each begins
    at a multiple of 64 bytes, as those of PyTorch do.
    """
    require(len(arrays) == len(factors), "a factor for each array")
    given = [require_array(own, ("int16",), own.shape) for own in arrays]
    sizes = [own.size for own in given]
    starts = list(accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))
    whole = np.empty(starts[-1] + _LINE, np.float32)
    out = whole[-(address_of(whole) // whole.itemsize) % _LINE :]
    numbers = [[address_of(own), size, start] for own, size, start in zip(given, sizes, starts, strict=False)]
    lib.call("nola_to_float32", np.array(numbers, np.int64).reshape(-1, 3), np.array(factors, np.float64), len(given),
             out)  # fmt: skip
    return [
        out[start : start + size].reshape(own.shape) for own, start, size in zip(arrays, starts, sizes, strict=False)
    ]


def trim_pairs(
    lib: Library, pairs: Sequence[tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]]
) -> list[tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]]:
    """Return pairs of factors without the components of which one side is zero, as copies that lie in one array.

    Args:
        lib: The library.
        pairs: lora_B (out, r) and lora_A (r, in) of each pair, int16.
    """
    given = [(require_array(b, ("int16",), b.shape), require_array(a, ("int16",), a.shape)) for b, a in pairs]
    require(all(b.ndim == a.ndim == 2 and b.shape[1] == len(a) for b, a in given), "two factors of one rank")
    numbers = np.array([(address_of(b), address_of(a), *b.shape, a.shape[1]) for b, a in given], np.int64)
    numbers = numbers.reshape(-1, 5)
    outs, ranks, widths = numbers[:, 2], numbers[:, 3], numbers[:, 4]
    used = np.empty(int(ranks.sum()), np.uint8)
    lib.call("nola_used_components", numbers, len(given), used)
    kept = np.concatenate([[0], used.cumsum(dtype=np.int64)])[np.concatenate([[0], ranks.cumsum()])]
    counts = kept[1:] - kept[:-1]
    out = np.empty(int(((outs + widths) * counts).sum()), np.int16)
    lib.call("nola_take_components", numbers, len(given), used, out)
    made, place = [], 0
    for rows, count, width in zip(outs.tolist(), counts.tolist(), widths.tolist(), strict=True):
        middle, end = place + rows * count, place + (rows + width) * count
        made.append((out[place:middle].reshape(rows, count), out[middle:end].reshape(count, width)))
        place = end
    return made
