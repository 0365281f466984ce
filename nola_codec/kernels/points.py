"""Symbols of any quantizer -> integer coefficients (c/points.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

CODEBOOK, TRELLIS, DEPENDENT = range(3)
"""The forms of quantizers."""


@dataclass(frozen=True)
class PointTables:
    """Quantizers as the kernel reads them.

    Attributes:
        forms: int64 (quantizers, 5): the form; the number of symbols; where the points begin in `points`; the bits of a
            step of a trellis or the mask of dependent codebooks; the coefficients of a symbol.
        points: int32, joined: the points of each symbol of a codebook; of each window of a trellis, 256 times the
            coefficients of a step; or of each symbol in the even and then in the odd dependent codebook.
    """

    forms: npt.NDArray[np.int64]
    points: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        """Raise ValueError if a quantizer has a wrong form, or its points are not there."""
        require_array(self.forms, ("int64",), (len(self.forms), 5))
        require_array(self.points, ("int32",), (len(self.points),))
        for form, size, first, detail, stride in self.forms.tolist():
            points = {CODEBOOK: size, TRELLIS: 256 * stride, DEPENDENT: 2 * size}.get(form, -1)
            known = points >= 0 and size > 0 and first >= 0 and first + points <= len(self.points)
            fits = (stride > 0 and detail in (1, 2) and size == 1 << detail) if form == TRELLIS else stride == 1
            require(known and fits and 0 <= detail <= 255, f"a quantizer {form, size, first, detail, stride}")


def add_points(
    lib: Library,
    symbols: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    tables: PointTables,
    vectors: npt.NDArray[np.int64],
    quantizers: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    """Add layers to coefficients: out[vectors[l]] += weights[l] * points of layer l.

    Args:
        lib: The library.
        symbols: uint8 or uint16, those of the layers, and perhaps others.
        starts: The place of each layer's first symbol, int64 (layers,).
        tables: The quantizers.
        vectors: The row of `out` of each layer, int64 (layers,).
        quantizers: The quantizer of each layer, int64 (layers,).
        weights: The weight of each layer, int64 (layers,).
        out: int8, int16 or int32 (rows, count), C-contiguous. The caller knows that the sums fit.

    Raises:
        ValueError: A layer has too few symbols, or a symbol, a row or a quantizer is out of range.
    """
    rows, count = out.shape
    symbols = require_array(symbols, ("uint8", "uint16"), (symbols.size,))
    layers = [require_array(array, ("int64",), vectors.shape) for array in (starts, vectors, quantizers, weights)]
    require(out.dtype.name in ("int8", "int16", "int32") and out.flags.c_contiguous, "coefficients of 1, 2 or 4 bytes")
    if lib.call("nola_add_points", symbols, symbols.itemsize, symbols.size, *layers, len(vectors), tables.forms,
                len(tables.forms), tables.points, count, rows, out.itemsize, out):  # fmt: skip
        raise ValueError("a layer has too few symbols, or a symbol, a row or a quantizer is out of range")
