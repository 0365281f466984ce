"""The content of a file before its bytes are laid out: records, symbols and quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array, SymbolArray
from nola_codec.container.layers import Allocations
from nola_codec.decoder.carried_forms import is_reduced
from nola_codec.decoder.coefficients import record_runs
from nola_codec.entropy import rans
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.quantize import QuantizedForm
from nola_codec.kernels import library
from nola_codec.kernels.entropy import count_symbols
from nola_codec.model.quantizers import Quantizer, Runs
from nola_codec.model.records import CodedRecord

BLOCK_BYTES = 24 << 10
"""The least coded size in bytes at which a block is closed by default."""
BLOCKS = 32
"""The most blocks of a file by default, about."""


@dataclass(frozen=True, eq=False)
class DraftSymbols(Sequence[SymbolArray]):
    """The symbols of each record of a draft at one rung, read from the draft's levels.

    They are made at each access: a copy of all symbols would double the encoder's memory.

    Attributes:
        quantized: The levels of the draft. Reading them raises `StaleDraftError` once there is a newer draft.
        form: The form that was quantized; its matrices are not needed.
        units: For each record, int64 (units of the record,): the positions of its units among the kept units.
        rung: The number of the rung.
    """

    quantized: QuantizedForm
    form: CanonicalForm
    units: Sequence[Int64Array]
    rung: int

    def __len__(self) -> int:
        return len(self.units)

    @overload
    def __getitem__(self, index: int) -> SymbolArray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SymbolArray]: ...
    def __getitem__(self, index: int | slice) -> SymbolArray | Sequence[SymbolArray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.quantized.record_symbols(self.form, self.units[index], self.rung)


@dataclass(frozen=True)
class FileContent:
    """The coded records of a file, and their symbols.

    Attributes:
        rungs: The records at each rung, in file order; their exponents are still 0.
        symbols: For each rung and record, uint8 or uint16 symbols in the order of `record_runs`. They may be made from
            the levels of a draft at each access, which raises `StaleDraftError` once there is a newer draft.
        squares: For each rung and record, float64 (vectors,): the squared norm of each vector's coefficients, side
            by side.
        quantizers, amplitude_slope: The same as in `Header`.
        allocations: The allocation tables of each rung.
    """

    rungs: tuple[tuple[CodedRecord, ...], ...]
    symbols: tuple[Sequence[SymbolArray], ...]
    squares: tuple[tuple[npt.NDArray[np.float64], ...], ...]
    quantizers: tuple[Quantizer, ...]
    allocations: Allocations
    amplitude_slope: int

    @property
    def records(self) -> tuple[CodedRecord, ...]:
        """The records at the last rung."""
        return self.rungs[-1]

    @cached_property
    def runs(self) -> tuple[tuple[Runs, ...], ...]:
        """The runs of symbols of each record at each rung."""
        return tuple(
            tuple(record_runs(record, self.quantizers, self.allocations, rung) for record in records)
            for rung, records in enumerate(self.rungs)
        )


@dataclass(frozen=True)
class BlockSizes:
    """The division of the records into blocks, and the size of each block's symbols.

    Attributes:
        spans: The records of each block, as (start, stop).
        packed_bits: For each rung and block, the bits of the runs without frequencies.
        coded_bits: For each rung and block, the ideal bits of the runs with frequencies.
    """

    spans: tuple[tuple[int, int], ...]
    packed_bits: tuple[tuple[float, ...], ...]
    coded_bits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class QuantizedAdapter:
    """An adapter after quantization. Entropy coding is lossless, so this decides what the file decodes to.

    Attributes:
        content: The records and symbols.
        sizes: The blocks of the content.
        effective_errors: For each rung, float64 (records,): the effective error of each record, in the units of
            `weights`; None if it is not defined.
        weights: float64 (records,): the weight of each record in the objective. It is the energy, unless an importance
            weighs the records.
    """

    content: FileContent
    sizes: BlockSizes
    effective_errors: tuple[Float64Array, ...] | None
    weights: Float64Array


def block_sizes(content: FileContent, block_bytes: int | None = None) -> BlockSizes:
    """Divide the records into blocks and add up the bits of their symbols.

    A block closes when its ideal size over all rungs reaches `block_bytes`, and before a coded carried tensor, so that
    the size of the tensor is seen in the file. A reader of one tensor reads its whole block and no other. Each block
    takes about 2 ms to decode whatever it holds, so by default a large file has no more than some `BLOCKS` of them.
    """
    costs = [
        None if q.frequencies is None else -np.log2(np.array(q.frequencies) / rans.TOTAL) for q in content.quantizers
    ]
    rungs = range(len(content.rungs))
    bits = np.zeros((2, len(content.rungs), len(content.records)))  # (packed and coded, rungs, records)
    for index in range(len(content.records)):
        for rung in rungs:
            bits[:, rung, index] = _record_bits(content, costs, rung, index)
    enough = max(BLOCK_BYTES, float(bits.sum()) / 8 / BLOCKS) if block_bytes is None else block_bytes
    spans = []
    start, weight = 0, 0.0
    for index in range(len(content.records)):
        weight += float(bits[:, :, index].sum()) / 8
        is_last = index == len(content.records) - 1
        if weight >= enough or is_last or is_reduced(content.records[index + 1].name):
            spans.append((start, index + 1))
            start, weight = index + 1, 0.0
    packed, coded = (
        tuple(tuple(float(part[rung, a:b].sum()) for a, b in spans) for rung in rungs) for part in (bits[0], bits[1])
    )
    return BlockSizes(tuple(spans), packed, coded)


def _record_bits(
    content: FileContent, costs: Sequence[Float64Array | None], rung: int, index: int
) -> tuple[float, float]:
    """Return (packed bits, ideal coded bits) of one record's symbols at a rung.

    Args:
        content: The records and symbols.
        costs: For each quantizer, the bits of each symbol; None if it has no frequencies.
        rung: The number of the rung.
        index: The number of the record.
    """
    runs = content.runs[rung][index]
    symbols = content.symbols[rung][index] if any(costs[m] is not None for m in runs.models) else None
    counts = [] if symbols is None else _count_symbols(symbols, runs.lengths)
    packed = coded = 0.0
    for run, (model, length) in enumerate(zip(runs.models.tolist(), runs.lengths.tolist(), strict=True)):
        cost = costs[model]
        if cost is None:
            packed += length * max(1, (content.quantizers[model].codebook.size - 1).bit_length())
        else:
            coded += float(counts[run][: len(cost)] @ cost)
    return packed, coded


def _count_symbols(symbols: SymbolArray, lengths: Int64Array) -> Sequence[Int64Array]:
    """Return the counts of the symbols of each run, int64, as many as an entropy-coded alphabet may have or more."""
    compiled = library()
    if compiled is not None and symbols.dtype == np.uint8:
        return list(count_symbols(compiled, symbols, np.arange(len(lengths)), lengths, len(lengths)))
    return [np.bincount(run, minlength=rans.MAX_ALPHABET) for run in np.split(symbols, np.cumsum(lengths)[:-1])]
