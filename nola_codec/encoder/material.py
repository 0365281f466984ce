"""What an encoder hands to assembly: records, symbols and quantizers, before any byte is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from nola_codec.decoder.coefficients import record_runs
from nola_codec.entropy import rans
from nola_codec.model import Allocation, LowRankRecord, Quantizer, SymbolModel

Symbols = npt.NDArray[Any]

BLOCK_BYTES = 104 << 10
"""Coded size at which a block is closed: a reader of one tensor reads no more than its block."""


class MadeOnDemand(Sequence[Symbols]):
    """Arrays that are made when asked for: a copy of all symbols would double the encoder's memory."""

    def __init__(self, count: int, make: Callable[[int], Symbols]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Symbols: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Symbols]: ...
    def __getitem__(self, index: int | slice) -> Symbols | Sequence[Symbols]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


@dataclass(frozen=True)
class Material:
    """Low-rank records of a file and their coefficients.

    Attributes:
        records: In file order, exponents still (0, 0).
        symbols: For each record, uint8 or uint16 symbols in the order of its vectors (lora_B's first); may be made anew
            at every access.
        quantizers, allocation, amplitude_slope: As in `Header`.
    """

    records: tuple[LowRankRecord, ...]
    symbols: Sequence[Symbols]
    quantizers: tuple[Quantizer, ...]
    allocation: tuple[Allocation, Allocation]
    amplitude_slope: int


@dataclass(frozen=True)
class Survey:
    """What one pass over all symbols tells.

    Attributes:
        spans: Records of each block, (start, stop).
        ideal_bytes: Of each block, under the quantizers' frequencies.
        squares: For each record, float64 (vectors,): squared norm of each vector's points.
    """

    spans: tuple[tuple[int, int], ...]
    ideal_bytes: tuple[float, ...]
    squares: tuple[npt.NDArray[np.float64], ...]


def survey(material: Material) -> Survey:
    """Count symbols, vector by vector; a block closes when its ideal size reaches BLOCK_BYTES."""
    costs = [
        np.full(q.codebook.size, float(q.codebook.num_bits))
        if q.frequencies is None
        else -np.log2(np.array(q.frequencies) / rans.TOTAL)
        for q in material.quantizers
    ]
    points2 = [np.array(q.codebook.points, np.float64) ** 2 for q in material.quantizers]
    spans, ideal, squares = [], [], []
    start, weight = 0, 0.0
    for index, record in enumerate(material.records):
        runs = record_runs(record, material.allocation)
        symbols = material.symbols[index]
        norms = np.zeros(len(runs.models))
        position = 0
        for vector, (model, length) in enumerate(zip(runs.models.tolist(), runs.lengths.tolist(), strict=True)):
            counts = np.bincount(symbols[position : position + length], minlength=len(costs[model]))
            weight += float(counts @ costs[model]) / 8
            norms[vector] = counts @ points2[model]
            position += length
        squares.append(norms)
        if weight >= BLOCK_BYTES or index == len(material.records) - 1:
            spans.append((start, index + 1))
            ideal.append(weight)
            start, weight = index + 1, 0.0
    return Survey(tuple(spans), tuple(ideal), tuple(squares))


def side_models(symbols: npt.NDArray[np.uint16]) -> tuple[SymbolModel, SymbolModel]:
    """Models of the two halves of section 0's symbols, with frequencies fitted to them."""
    half = len(symbols) // 2
    models = []
    for part in (symbols[:half], symbols[half:]):
        counts = np.bincount(part, minlength=1)
        models.append(SymbolModel(len(counts), rans.normalize(counts) if part.size else None))
    return models[0], models[1]
