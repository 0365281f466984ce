"""Turn the symbols of any quantizer into integer coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.kernels import library
from nola_codec.kernels.points import CODEBOOK, DEPENDENT, TRELLIS, PointTables, add_points
from nola_codec.model.quantizers import Book, Codebook, Trellis
from nola_codec.quant.trellis import dependent_points, dependent_table, trellis_points, window_table


class LayerArrays(Protocol):
    """The layers of some vectors, int64 (layers,) each: the vector, the quantizer, and the factor on its points."""

    @property
    def vectors(self) -> npt.NDArray[np.int64]: ...
    @property
    def quantizers(self) -> npt.NDArray[np.int64]: ...
    @property
    def weights(self) -> npt.NDArray[np.int64]: ...


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


def book_stride(book: Book) -> int:
    """Return the number of coefficients that a symbol of a quantizer makes."""
    return book.stride if isinstance(book, Trellis) else 1


class PointMaker:
    """Makes the coefficients of layers of several quantizers.

    Attributes:
        books: The quantizers.
    """

    def __init__(self, books: Sequence[Book]) -> None:
        self.books = books

    def add(
        self, total: npt.NDArray[Any], layers: LayerArrays, starts: npt.NDArray[np.int64], symbols: npt.NDArray[Any]
    ) -> None:
        """Add the points of layers, times their weights, to coefficients.

        Args:
            total: int8, int16 or int32 (vectors, count). The caller knows that the sums fit.
            layers: The layers.
            starts: The place of each layer's first symbol among the symbols, int64 (layers,).
            symbols: The symbols of the layers, and perhaps others.
        """
        count = total.shape[1]
        lib = library()
        if lib is not None:
            add_points(lib, symbols, starts, self._tables, layers.vectors, layers.quantizers, layers.weights, total)
            return
        for quantizer in np.unique(layers.quantizers).tolist():
            (own,) = (layers.quantizers == quantizer).nonzero()
            book = self.books[quantizer]
            stacked = np.stack([symbols[start : start + book.run(count)] for start in starts[own].tolist()])
            points = book_points(book, stacked, count)
            for layer, row in zip(own.tolist(), points, strict=True):
                weight = int(layers.weights[layer])
                total[layers.vectors[layer]] += row if weight == 1 else row.astype(np.int32) * weight

    @cached_property
    def _tables(self) -> PointTables:
        """The quantizers as the kernel reads them."""
        forms, parts, first = [], [], 0
        for book in self.books:
            if isinstance(book, Codebook):
                form, detail, points = CODEBOOK, 0, np.array(book.points, np.int32)
            elif isinstance(book, Trellis):
                form, detail, points = TRELLIS, book.bits, window_table(book).astype(np.int32).reshape(-1)
            else:
                form, detail = DEPENDENT, book.mask & 0xFF
                points = np.array(dependent_table(book), np.int32)
            forms.append((form, book.size, first, detail, book_stride(book)))
            parts.append(points)
            first += len(points)
        return PointTables(np.array(forms, np.int64).reshape(-1, 5), np.concatenate(parts or [np.empty(0, np.int32)]))
