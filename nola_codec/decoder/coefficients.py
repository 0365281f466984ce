"""Decode the sections of coefficients: stored bytes -> symbols -> integer coefficients of each record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nola_codec.array_types import SymbolArray
from nola_codec.arrays import Array
from nola_codec.container.units import Allocations, Layer, coded_layers
from nola_codec.entropy import decode_many
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Quantizer, Runs
from nola_codec.model.records import CodedRecord
from nola_codec.quant.points import book_points

_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Coefficients:
    """The integer coefficients of one record.

    Attributes:
        sides: The coefficients of each side, int32 (vectors, num_basis); NumPy arrays, or tensors on a device.
        peak: A bound of the magnitude of all coefficients.
    """

    sides: tuple[Array, ...]
    peak: int


def record_runs(record: CodedRecord, quantizers: Sequence[Quantizer], allocations: Allocations, rung: int) -> Runs:
    """Return the runs of symbols of one record in a block of a rung: a run for each layer, the first side's first.

    Args:
        record: The record.
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
        rung: The rung, counted from 0.
    """
    models, lengths = [], []
    for side, count in enumerate(record.kind.num_basis):
        for layer in coded_layers(record, allocations, rung, side):
            models.append(layer.quantizer)
            lengths.append(quantizers[layer.quantizer].codebook.run(count))
    return Runs(np.array(models, np.int64), np.array(lengths, np.int64))


def block_runs(
    records: Sequence[CodedRecord], quantizers: Sequence[Quantizer], allocations: Allocations, rung: int
) -> Runs:
    """Return the runs of a block: those of its records, one record after the other; arguments as in `record_runs`."""
    return _join_runs([record_runs(record, quantizers, allocations, rung) for record in records])


def _join_runs(parts: Sequence[Runs]) -> Runs:
    return Runs(np.concatenate([p.models for p in parts]), np.concatenate([p.lengths for p in parts]))


def record_coefficients(
    record: CodedRecord, symbols: Sequence[SymbolArray], quantizers: Sequence[Quantizer], allocations: Allocations
) -> Coefficients:
    """Compute the coefficients of one record: the weighted sum of its layers.

    Args:
        record: The record as it is at the last rung.
        symbols: The symbols of each rung, in the order of `record_runs`.
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.

    Raises:
        FormatError: ``bound``: the coefficients may not fit into 32 bits.
    """
    ends = [0] * len(symbols)
    sides = []
    peak = 0
    for side, count in enumerate(record.kind.num_basis):
        vectors = record.kind.vectors(record.units)
        total = np.zeros((vectors, count), np.int32)
        bounds = np.zeros(vectors, np.int64)
        gathered: dict[int, list[tuple[Layer, SymbolArray]]] = {}
        for rung, stream in enumerate(symbols):
            for layer in coded_layers(record, allocations, rung, side):
                book = quantizers[layer.quantizer].codebook
                start = ends[rung]
                ends[rung] = start + book.run(count)
                gathered.setdefault(layer.quantizer, []).append((layer, stream[start : ends[rung]]))
                bounds[layer.vector] += layer.weight * book.peak
        peak = max(peak, int(bounds.max(initial=0)))
        require_peak(record.name, peak)
        for quantizer, layers in gathered.items():
            points = book_points(quantizers[quantizer].codebook, np.stack([s for _, s in layers]), count)
            for (layer, _), row in zip(layers, points, strict=True):
                total[layer.vector] += row if layer.weight == 1 else row.astype(np.int32) * layer.weight
        sides.append(total)
    return Coefficients(tuple(sides), peak)


def require_peak(name: str, peak: int) -> None:
    """Raise FormatError ``bound`` if the coefficients of a record, up to `peak`, may not fit into 32 bits."""
    if peak > _LARGEST:
        raise FormatError(f"coefficients of {name}: expected at most {_LARGEST}, found {peak}", code="bound")


def decode_symbols(
    coded: Sequence[tuple[int, bytes]],
    blocks: Sequence[Sequence[CodedRecord]],
    quantizers: Sequence[Quantizer],
    allocations: Allocations,
    rung: int,
) -> list[SymbolArray]:
    """Decode the symbols of blocks in one rung.

    Args:
        coded: (codec id, stored bytes) of each block.
        blocks: The records of each block.
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
        rung: The rung, counted from 0.

    Returns:
        The symbols of each record of each block, in order; they are views of the arrays of the blocks.

    Raises:
        FormatError: The symbols are damaged or inconsistent.
    """
    each = [[record_runs(record, quantizers, allocations, rung) for record in records] for records in blocks]
    streams = decode_many(coded, [_join_runs(parts) for parts in each], [q.model for q in quantizers])
    results: list[SymbolArray] = []
    for parts, symbols in zip(each, streams, strict=True):
        ends = np.cumsum([part.total for part in parts])
        results += np.split(symbols, ends[:-1])
    return results
