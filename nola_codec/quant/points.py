"""Turn the symbols of any quantizer into integer coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.model.quantizers import Book, Codebook, Trellis
from nola_codec.quant.trellis import dependent_points, trellis_points


def book_points(book: Book, symbols: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return the coefficients of vectors that are coded with one quantizer.

    Args:
        book: The quantizer.
        symbols: (vectors, book.run(count)).
        count: The number of coefficients of a vector.

    Returns:
        int8 (vectors, count) for a trellis, else int32.
    """
    if isinstance(book, Codebook):
        return np.asarray(np.array(book.points, np.int32)[symbols])
    symbols = symbols.astype(np.uint8, copy=False)
    return trellis_points(book, symbols, count) if isinstance(book, Trellis) else dependent_points(book, symbols)
