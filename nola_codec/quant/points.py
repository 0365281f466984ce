"""Symbols of any quantizer -> integer coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.model.quantizers import Book, Codebook, Trellis
from nola_codec.quant.trellis import dependent_points, trellis_points


def book_points(book: Book, symbols: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Coefficients of vectors coded with one quantizer.

    Args:
        book: The quantizer.
        symbols: (vectors, book.run(count)).
        count: Coefficients of a vector.

    Returns:
        int8 or int32 (vectors, count).
    """
    if isinstance(book, Codebook):
        return np.asarray(np.array(book.points, np.int32)[symbols])
    symbols = symbols.astype(np.uint8, copy=False)
    return trellis_points(book, symbols, count) if isinstance(book, Trellis) else dependent_points(book, symbols)
