"""What an encoder hands to assembly: records, symbols and quantizers, before any byte is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import SymbolArray
from nola_codec.container.units import Allocations
from nola_codec.decoder.coefficients import record_runs
from nola_codec.entropy import rans
from nola_codec.model.quantizers import Quantizer, SymbolModel
from nola_codec.model.records import CodedRecord

BLOCK_BYTES = 104 << 10
"""Coded size at which a block is closed: a reader of one tensor reads no more than its block."""


class MadeOnDemand(Sequence[SymbolArray]):
    """Arrays that are made when asked for: a copy of all symbols would double the encoder's memory."""

    def __init__(self, count: int, make: Callable[[int], SymbolArray]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SymbolArray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SymbolArray]: ...
    def __getitem__(self, index: int | slice) -> SymbolArray | Sequence[SymbolArray]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


@dataclass(frozen=True)
class FileContent:
    """Coded records of a file and their coefficients.

    Attributes:
        ladder: The records at each rung, in file order, exponents still (0, 0).
        symbols: For each rung and record, uint8 or uint16 symbols in the order of `record_runs`; may be made anew at
            every access.
        squares: For each rung and record, float64 (vectors,): squared norm of each vector's coefficients, side
            by side.
        quantizers, amplitude_slope: As in `Header`.
        allocations: The tables of each rung.
    """

    ladder: tuple[tuple[CodedRecord, ...], ...]
    symbols: tuple[Sequence[SymbolArray], ...]
    squares: tuple[tuple[npt.NDArray[np.float64], ...], ...]
    quantizers: tuple[Quantizer, ...]
    allocations: Allocations
    amplitude_slope: int

    @property
    def records(self) -> tuple[CodedRecord, ...]:
        """At the last rung."""
        return self.ladder[-1]


@dataclass(frozen=True)
class BlockSizes:
    """What one pass over all symbols tells.

    Attributes:
        spans: Records of each block, (start, stop).
        packed_bits: For each rung and block, bits of the runs that have no frequencies.
        coded_bits: For each rung and block, ideal bits of those that have.
    """

    spans: tuple[tuple[int, int], ...]
    packed_bits: tuple[tuple[float, ...], ...]
    coded_bits: tuple[tuple[float, ...], ...]


def survey(material: FileContent) -> BlockSizes:
    """Add up the bits of the symbols; a block closes when its ideal size over all rungs reaches BLOCK_BYTES."""
    costs = [
        None if q.frequencies is None else -np.log2(np.array(q.frequencies) / rans.TOTAL) for q in material.quantizers
    ]
    rungs = range(len(material.ladder))
    bits = np.zeros((2, len(material.ladder), len(material.records)))
    spans = []
    start, weight = 0, 0.0
    for index in range(len(material.records)):
        for rung in rungs:
            runs = record_runs(material.ladder[rung][index], material.quantizers, material.allocations, rung)
            symbols = material.symbols[rung][index] if any(costs[m] is not None for m in runs.models) else None
            position = 0
            for model, length in zip(runs.models.tolist(), runs.lengths.tolist(), strict=True):
                cost = costs[model]
                if cost is None or symbols is None:
                    bits[0, rung, index] += length * max(1, (material.quantizers[model].codebook.size - 1).bit_length())
                else:
                    counts = np.bincount(symbols[position : position + length], minlength=len(cost))
                    bits[1, rung, index] += float(counts @ cost)
                position += length
        weight += float(bits[:, :, index].sum()) / 8
        if weight >= BLOCK_BYTES or index == len(material.records) - 1:
            spans.append((start, index + 1))
            start, weight = index + 1, 0.0
    packed, coded = (
        tuple(tuple(float(part[rung, a:b].sum()) for a, b in spans) for rung in rungs) for part in (bits[0], bits[1])
    )
    return BlockSizes(tuple(spans), packed, coded)


def side_models(symbols: npt.NDArray[np.uint16], precisions: int) -> tuple[SymbolModel, SymbolModel]:
    """Models of the two parts of a units section's symbols, with frequencies fitted to them."""
    models = []
    for part in (symbols[:precisions], symbols[precisions:]):
        counts = np.bincount(part, minlength=1)
        models.append(SymbolModel(len(counts), rans.normalize(counts) if part.size else None))
    return models[0], models[1]
