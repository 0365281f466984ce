"""Decode the sections of coefficients: stored bytes -> symbols -> integer coefficients of each record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from nola_codec.array_types import Int64Array, SymbolArray
from nola_codec.arrays import Array
from nola_codec.container.layers import Allocations, BlockLayers, JoinedUnits, Layers, block_layers, join_units
from nola_codec.container.limits import Limits
from nola_codec.entropy import decode_many, lane_steps
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Quantizer, Runs
from nola_codec.model.records import CodedRecord
from nola_codec.quant.points import PointMaker, book_stride

_LARGEST = (1 << 31) - 1

CheckSteps = Callable[[int, Sequence[int], Sequence[int]], None]
"""A function that is called with a rung, the numbers of blocks, and the steps that the rANS lanes of each will take.
It may refuse them."""


class LaneSteps:
    """The steps of all rANS lanes of a file so far, which have a limit."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = Lock()  # blocks are decoded on several threads
        self._steps: dict[tuple[int, int], int] = {}
        self._total = 0

    def check(self, rung: int, blocks: Sequence[int], steps: Sequence[int]) -> None:
        """Add the steps of blocks of a rung; those that were added before count once.

        Raises:
            FormatError: ``limit``: With all steps before, they are too many.
        """
        with self._lock:
            for block, count in zip(blocks, steps, strict=True):
                self._total += count - self._steps.get((rung, block), 0)
                self._steps[rung, block] = count
        self._limits.require("lane_steps", self._total, "sections (steps of rans lanes)")


@dataclass(frozen=True)
class Coefficients:
    """The integer coefficients of one record.

    Attributes:
        sides: The coefficients of each side, (vectors, num_basis), in the smallest of int8, int16 and int32 that holds
            every number up to the bound of the sides that were made together; NumPy arrays, or int32 tensors on a
            device.
        peak: A bound of the magnitude of all coefficients.
    """

    sides: tuple[Array, ...]
    peak: int


class CoefficientGroup(Sequence[Coefficients]):
    """The coefficients of several records; those of one record are parts of arrays, made when they are asked for.

    Attributes:
        pools: (vectors, num_basis) arrays.
        pool_numbers: The number of the pool of each side, int64 (sides,).
        rows: The row of the first vector of each side in its pool, int64 (sides,).
        counts: The number of vectors of each side, int64 (sides,).
        peaks: The peak of each record, int64 (records,).
    """

    def __init__(
        self,
        pools: Sequence[Array],
        pool_numbers: Int64Array,
        rows: Int64Array,
        counts: Int64Array,
        peaks: Int64Array,
        ends: Sequence[int],
    ) -> None:
        """Take the arrays, and the number of the sides of all records up to each one."""
        self.pools, self.pool_numbers, self.rows, self.counts, self.peaks = pools, pool_numbers, rows, counts, peaks
        self._ends = ends

    @classmethod
    def of(cls, coefficients: Sequence[Coefficients]) -> CoefficientGroup:
        """Return coefficients as a group; the same object if they are one."""
        if isinstance(coefficients, CoefficientGroup):
            return coefficients
        pools = [side for each in coefficients for side in each.sides]
        return cls(
            pools,
            np.arange(len(pools)),
            np.zeros(len(pools), np.int64),
            np.array([len(pool) for pool in pools], np.int64),
            np.array([each.peak for each in coefficients], np.int64),
            np.cumsum([len(each.sides) for each in coefficients]).tolist(),
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        sides = range(self._ends[index - 1] if index else 0, self._ends[index])
        parts = ((int(self.pool_numbers[i]), int(self.rows[i]), int(self.counts[i])) for i in sides)
        return Coefficients(tuple(self.pools[p][row : row + n] for p, row, n in parts), int(self.peaks[index]))


def record_runs(record: CodedRecord, quantizers: Sequence[Quantizer], allocations: Allocations, rung: int) -> Runs:
    """Return the runs of symbols of one record; arguments as in `block_runs`."""
    return block_runs([record], quantizers, allocations, rung)


def block_runs(
    records: Sequence[CodedRecord], quantizers: Sequence[Quantizer], allocations: Allocations, rung: int
) -> Runs:
    """Return the runs of symbols of a block: a run for each layer, those of the first side of the first record first.

    Args:
        records: The records of the block.
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
        rung: The rung, counted from 0.
    """
    units = join_units(records)
    layers = block_layers(units, allocations, rung)
    return Runs(layers.own.quantizers, _run_lengths(units, layers, _strides(quantizers)))


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Return the runs of a block: those of its records, one record after the other."""
    return Runs(np.concatenate([p.models for p in parts]), np.concatenate([p.lengths for p in parts]))


def _strides(quantizers: Sequence[Quantizer]) -> Int64Array:
    """Return the number of coefficients that a symbol of each quantizer makes, int64 (quantizers,)."""
    return np.array([book_stride(quantizer.codebook) for quantizer in quantizers], np.int64)


def _run_lengths(units: JoinedUnits, layers: BlockLayers, strides: Int64Array) -> Int64Array:
    """Return the number of symbols of each layer, int64 (layers,)."""
    return np.asarray(-(-_basis_sizes(units)[layers.sides] // strides[layers.own.quantizers]))


def _basis_sizes(units: JoinedUnits) -> Int64Array:
    """Return the num_basis of each side of each record, int64 (sides,)."""
    return np.array([side.num_basis for kind in units.kinds for side in kind.sides], np.int64)[units.side_rows]


class _Symbols(NamedTuple):
    """The symbols of some records in one rung.

    Attributes:
        layers: Their layers.
        starts: The place of each layer's first symbol, int64 (layers,).
        stream: The symbols.
    """

    layers: BlockLayers
    starts: Int64Array
    stream: SymbolArray


class Dequantizer:
    """Turns the symbols of records into integer coefficients.

    Attributes:
        quantizers: As in `Header`.
        allocations: The allocation table of each rung.
    """

    def __init__(self, quantizers: Sequence[Quantizer], allocations: Allocations) -> None:
        self.quantizers, self.allocations = quantizers, allocations
        self._points = PointMaker([quantizer.codebook for quantizer in quantizers])
        self._strides = _strides(quantizers)
        self._peaks = np.array([quantizer.codebook.peak for quantizer in quantizers], np.int64)

    def coefficients(
        self, records: Sequence[CodedRecord], symbols: Sequence[Sequence[SymbolArray]]
    ) -> Sequence[Coefficients]:
        """Compute the coefficients of records: the weighted sums of their layers.

        Vectors of one length are made together, whatever record and side they belong to.

        Args:
            records: The records as they are at the last rung.
            symbols: For each record its symbols in each rung, in the order of `block_runs`.

        Raises:
            FormatError: ``bound``: the coefficients of a record may not fit into 32 bits.
        """
        made: Sequence[Coefficients] = []
        for made in self.coefficients_by_rung([records] * len(symbols[0]) if symbols else [], symbols):  # noqa: B007
            pass
        return made

    def coefficients_by_rung(
        self, rungs: Sequence[Sequence[CodedRecord]], symbols: Sequence[Sequence[SymbolArray]]
    ) -> Iterator[Sequence[Coefficients]]:
        """Yield the coefficients of records at each rung: those of the rung before, and its own layers.

        Args:
            rungs: For each rung the records as they are there.
            symbols: The same as in `coefficients`.

        Yields:
            For each record its coefficients. Their arrays change when those of the next rung are asked for.

        Raises:
            FormatError: ``bound``: the coefficients of a record may not fit into 32 bits at the last rung.
        """
        all_units = [join_units(records) for records in rungs]
        if not all_units:
            return
        last = all_units[-1]
        by_rung = []
        for rung, units in enumerate(all_units):
            layers = block_layers(units, self.allocations, rung)
            lengths = _run_lengths(units, layers, self._strides)
            by_rung.append(_Symbols(layers, lengths.cumsum() - lengths, _join([item[rung] for item in symbols])))
        side_peaks = self._bound_sides(last.vector_counts, by_rung)
        ends = last.side_counts.cumsum()
        peaks = np.maximum.reduceat(side_peaks, ends - last.side_counts) if len(ends) else side_peaks
        (wrong,) = (peaks > _LARGEST).nonzero()
        if len(wrong):
            require_peak(last[wrong[0]].name, int(peaks[wrong[0]]))
        totals = _SideSums(_basis_sizes(last), last.vector_counts, side_peaks)
        for units, each in zip(all_units, by_rung, strict=True):
            totals.add(each, self._points)
            yield CoefficientGroup(
                totals.pools, totals.pool_numbers, totals.rows, units.vector_counts, peaks, ends.tolist()
            )

    def _bound_sides(self, vectors: Int64Array, by_rung: Sequence[_Symbols]) -> Int64Array:
        """Return a bound of the coefficients of each side, int64 (sides,); `vectors` counts the vectors of each."""
        firsts = np.cumsum([0, *vectors])  # the first vector of each side among those of all sides
        bounds = np.zeros(firsts[-1], np.int64)
        for layers, _, _ in by_rung:
            peaks = layers.own.weights * self._peaks[layers.own.quantizers]  # sums are below 2^53, exact in float64
            sums = np.bincount(firsts[layers.sides] + layers.own.vectors, peaks, minlength=len(bounds))
            bounds += sums.astype(np.int64)
        largest = np.zeros(len(vectors), np.int64)
        np.maximum.at(largest, np.arange(len(vectors)).repeat(vectors), bounds)
        return largest


class _SideSums:
    """The coefficients of the sides of some records, to which the layers of one rung after another are added.

    Attributes:
        pools: The coefficients of all vectors of one length so far, (vectors, num_basis).
        pool_numbers, rows: As in `CoefficientGroup`.
    """

    def __init__(self, sizes: Int64Array, vectors: Int64Array, peaks: Int64Array) -> None:
        """Start with zeros.

        Args:
            sizes: The num_basis of each side, int64 (sides,).
            vectors: The number of vectors of each side, int64 (sides,).
            peaks: A bound of the coefficients of each side, int64 (sides,).
        """
        distinct, self.pool_numbers = np.unique(sizes, return_inverse=True)
        self.rows = np.zeros(len(sizes), np.int64)
        self.pools: list[Array] = []
        for number, size in enumerate(distinct.tolist()):
            (members,) = (self.pool_numbers == number).nonzero()
            ends = vectors[members].cumsum()
            self.rows[members] = ends - vectors[members]
            self.pools.append(np.zeros((int(ends[-1]), size), _smallest_dtype(int(peaks[members].max()))))

    def add(self, symbols: _Symbols, points: PointMaker) -> None:
        """Add the layers of one rung."""
        layers = symbols.layers
        numbers = self.pool_numbers[layers.sides]
        whole = layers.own._replace(vectors=self.rows[layers.sides] + layers.own.vectors)
        for number, pool in enumerate(self.pools):
            (chosen,) = (numbers == number).nonzero()
            points.add(pool, Layers(*(part[chosen] for part in whole)), symbols.starts[chosen], symbols.stream)


def _join(parts: Sequence[SymbolArray]) -> SymbolArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
    strides = _strides(quantizers)
    all_runs, sizes = [], []
    for records in blocks:
        units = join_units(records)
        layers = block_layers(units, allocations, rung)
        lengths = _run_lengths(units, layers, strides)
        all_runs.append(Runs(layers.own.quantizers, lengths))
        owners = np.arange(len(records)).repeat(units.side_counts)[layers.sides]
        sizes.append(np.bincount(owners, lengths, minlength=len(records)).astype(np.int64))
    models = [quantizer.model for quantizer in quantizers]
    check_steps([lane_steps(codec, data, own, models) for (codec, data), own in zip(coded, all_runs, strict=True)])
    streams = decode_many(coded, all_runs, models)
    results: list[SymbolArray] = []
    for own, symbols in zip(sizes, streams, strict=True):
        results += np.split(symbols, own.cumsum()[:-1])
    return results
