"""The compiled kernel makes the coefficients of NumPy from the symbols of every quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_paths import COMPILED

from nola_codec.container.layers import Layers
from nola_codec.kernels.loading import load
from nola_codec.kernels.points import PointTables, add_points
from nola_codec.model.quantizers import Book, Codebook, Dependent
from nola_codec.quant.codebooks import integer_codebook, lloyd_max_codebook, symmetric_codebook
from nola_codec.quant.points import PointMaker
from nola_codec.quant.trellis import TRELLISES

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")

BOOKS: list[Book] = [
    *TRELLISES,
    *(Dependent(mask, (31, 64), (20, 50)) for mask in (0, 1, 0x80, 0xB5, 255)),
    Dependent(0x9D, (12, 40, 77), (20, 41, 90)),
    symmetric_codebook((31,)),
    lloyd_max_codebook(4),
    Codebook((-7, -2, 3, 11)),
    Codebook((5,)),
]
WIDE: list[Book] = [integer_codebook(16), integer_codebook(9), lloyd_max_codebook(8)]


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_layers_are_those_of_numpy(variant: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    books = [b for b in [*BOOKS, *WIDE] if b.peak <= np.iinfo(dtype).max]
    maker = PointMaker(books)
    for count in (1, 2, 3, 7, 8, 23, 64, 577):
        for width in (np.uint8, np.uint16):
            fitting = [i for i, book in enumerate(books) if book.size - 1 <= np.iinfo(width).max]
            quantizers = np.array(fitting if count < 64 else rng.permutation(fitting)[:9])
            # Each vector has one layer, and in wide integers a second and a weighted one.
            vectors = np.arange(len(quantizers)) // (1 if dtype == "int8" else 3)
            weights = np.ones(len(quantizers), np.int64)
            if dtype == "int32":
                weights[::2] = 1000
            if dtype == "int16":
                keep = [i for i, q in enumerate(quantizers) if books[q].peak < 1000]
                quantizers, vectors, weights = quantizers[keep], np.arange(len(keep)) // 3, weights[keep]
            symbols = np.concatenate([rng.integers(0, books[q].size, books[q].run(count)) for q in quantizers])
            lengths = np.array([books[q].run(count) for q in quantizers])
            starts = 2 + np.cumsum(lengths) - lengths
            made = []
            for path in ("off", variant):
                monkeypatch.setenv("NOLA_KERNELS", path)
                total: Any = np.zeros((int(vectors[-1]) + 1, count), dtype)
                stream = np.concatenate([[0, 0], symbols, [0]]).astype(width)  # those of other records are around
                maker.add(total, Layers(vectors, quantizers, weights), starts, stream)
                made.append(total)
            assert np.array_equal(*made)
            assert count < 8 or made[0].any()


@pytest.mark.parametrize("variant", COMPILED)
def test_wrong_arguments_are_refused(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    tables = PointTables(np.array([[0, 3, 0, 0, 1]]), np.array([-1, 0, 1], np.int32))
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)

    def add(
        symbols: Any,
        vectors: Any = zero,
        quantizers: Any = zero,
        tables: Any = tables,
        dtype: str = "int8",
        starts: Any = zero,
    ) -> None:
        add_points(lib, np.array(symbols, np.uint8), starts, tables, vectors, quantizers, one, np.zeros((1, 4), dtype))

    add([0, 1, 2, 2])
    for wrong in (
        lambda: add([0, 1, 2]),  # too few symbols
        lambda: add([0, 1, 2, 3]),  # a symbol that the quantizer lacks
        lambda: add([0, 1, 2, 2], starts=one),
        lambda: add([0, 1, 2, 2], starts=-one),
        lambda: add([0, 1, 2, 2], starts=one << 62),
        lambda: add([0, 1, 2, 2], vectors=one),
        lambda: add([0, 1, 2, 2], vectors=-one),
        lambda: add([0, 1, 2, 2], quantizers=one),
        lambda: add([0, 1, 2, 2], quantizers=-one),
        lambda: add([0, 1, 2, 2], dtype="int64"),
        lambda: add([0, 1, 2, 2], tables=PointTables(tables.forms, tables.points[:2])),
        lambda: add([0, 1, 2, 2], tables=PointTables(np.array([[3, 3, 0, 0, 1]]), tables.points)),
        lambda: add([0, 1, 2, 2], tables=PointTables(np.array([[1, 2, 0, 9, 1]]), tables.points)),
    ):
        with pytest.raises(ValueError, match=r"kernel|quantizer"):
            wrong()
