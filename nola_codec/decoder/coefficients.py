"""Decode the sections of coefficients: stored bytes -> symbols -> integer coefficients of each record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nola_codec.array_types import SymbolArray
from nola_codec.arrays import Array
from nola_codec.container.units import Allocations, coded_layers
from nola_codec.entropy import decode_many, mixed
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Quantizer, Runs
from nola_codec.model.records import CodedRecord
from nola_codec.quant.points import PointMaker

_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Coefficients:
    """The integer coefficients of one record.

    Attributes:
        sides: The coefficients of each side, (vectors, num_basis), in the smallest of int8, int16 and int32 that holds
            every number up to the side's own bound; NumPy arrays, or int32 tensors on a device.
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
        own = coded_layers(record, allocations, rung, side).quantizers
        models.append(own)
        lengths.append(np.array([quantizers[q].codebook.run(count) for q in own.tolist()], np.int64))
    return Runs(np.concatenate(models), np.concatenate(lengths))


def block_runs(
    records: Sequence[CodedRecord], quantizers: Sequence[Quantizer], allocations: Allocations, rung: int
) -> Runs:
    """Return the runs of a block of records; arguments as in `record_runs`."""
    return join_runs([record_runs(record, quantizers, allocations, rung) for record in records])


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Return the runs of a block: those of its records, one record after the other."""
    return Runs(np.concatenate([p.models for p in parts]), np.concatenate([p.lengths for p in parts]))


class Dequantizer:
    """Turns the symbols of records into integer coefficients.

    Attributes:
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
    """

    def __init__(self, quantizers: Sequence[Quantizer], allocations: Allocations) -> None:
        self.quantizers, self.allocations = quantizers, allocations
        self._points = PointMaker([quantizer.codebook for quantizer in quantizers])
        self._peaks = np.array([quantizer.codebook.peak for quantizer in quantizers], np.int64)

    def coefficients(self, record: CodedRecord, symbols: Sequence[SymbolArray]) -> Coefficients:
        """Compute the coefficients of one record: the weighted sum of its layers.

        Args:
            record: The record as it is at the last rung.
            symbols: The symbols of each rung, in the order of `record_runs`.

        Raises:
            FormatError: ``bound``: the coefficients may not fit into 32 bits.
        """
        starts = [0] * len(symbols)
        sides = []
        peak = 0
        for side, count in enumerate(record.kind.num_basis):
            vectors = record.kind.vectors(record.units)
            layers = [coded_layers(record, self.allocations, rung, side) for rung in range(len(symbols))]
            bounds = np.zeros(vectors, np.int64)
            for each in layers:  # sums of integers below 2^53, exact in float64
                peaks = each.weights * self._peaks[each.quantizers]
                bounds += np.bincount(each.vectors, peaks, minlength=vectors).astype(np.int64)
            own_peak = int(bounds.max(initial=0))
            peak = max(peak, own_peak)
            require_peak(record.name, peak)
            total = np.zeros((vectors, count), _smallest_dtype(own_peak))
            for rung, (each, stream) in enumerate(zip(layers, symbols, strict=True)):
                starts[rung] += self._points.add(total, each, stream[starts[rung] :])
            sides.append(total)
        return Coefficients(tuple(sides), peak)


def _smallest_dtype(peak: int) -> type[np.signedinteger[Any]]:
    return np.int8 if peak < 1 << 7 else np.int16 if peak < 1 << 15 else np.int32


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
    check_steps: Callable[[Sequence[int]], None] = lambda steps: None,
) -> list[SymbolArray]:
    """Decode the symbols of blocks in one rung.

    Args:
        coded: (codec id, stored bytes) of each block.
        blocks: The records of each block.
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
        rung: The rung, counted from 0.
        check_steps: Called with the steps of the rANS lanes of each block before they are taken; it may refuse them.

    Returns:
        The symbols of each record of each block, in order; they are views of the arrays of the blocks.

    Raises:
        FormatError: The symbols are damaged or inconsistent.
    """
    each = [[record_runs(record, quantizers, allocations, rung) for record in records] for records in blocks]
    runs, models = [join_runs(parts) for parts in each], [quantizer.model for quantizer in quantizers]
    check_steps([
        mixed.lane_steps(data, own, models) if codec == mixed.id else 0
        for (codec, data), own in zip(coded, runs, strict=True)
    ])  # fmt: skip
    streams = decode_many(coded, runs, models)
    results: list[SymbolArray] = []
    for parts, symbols in zip(each, streams, strict=True):
        ends = np.cumsum([part.total for part in parts])
        results += np.split(symbols, ends[:-1])
    return results
