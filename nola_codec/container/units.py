"""Write and read units sections: what a rung says of its records (specification, "Units sections").

The section of rung 0 begins with what the kinds say of units. Each section then holds the allocation tables, the number
of units and the exponents of each record, and the precision and the amplitude of units. All of them are integers,
written as differences from a prediction, each with a role, and coded by `entropy.adaptive`. The precision of a record's
first unit is predicted by the first unit of the last record of the same kind, that of another unit by the unit before.
An amplitude is predicted by the precision at the rung where the unit starts; at a later rung that adds a layer, the
amplitude before predicts it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.container.unit_tables import (
    AMPLITUDE,
    COUNT,
    PRECISION,
    read_exponents,
    read_kinds,
    read_tables,
    write_exponents,
    write_kinds,
    write_tables,
)
from nola_codec.entropy.adaptive import IntegerReader, IntegerWriter
from nola_codec.errors import EncodeError, FormatError, mismatch
from nola_codec.model.header import Allocation, Header, Rung
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import MAX_CODE, MIN_CODE, layer_weight

START = 128
"""The prediction of the first precision of a file."""
Allocations = Sequence[tuple[Allocation, ...]]
"""The allocation tables of each rung."""


class _Memory:
    """The precisions of the latest record of each kind that has units."""

    def __init__(self) -> None:
        self._of_kind: dict[CodedKind, npt.NDArray[np.int64]] = {}
        self._latest = START

    def remember(self, record: CodedRecord) -> None:
        """Note a record as it is at a rung."""
        if record.units:
            self._of_kind[record.kind] = record.precision
            self._latest = int(record.precision[0])

    def predict(self, kind: CodedKind, unit: int) -> int:
        """Return the prediction for a unit that has no unit before it in its record."""
        known = self._of_kind.get(kind)
        return self._latest if known is None else int(known[unit])


class Layers(NamedTuple):
    """The layers of some vectors of one side, in the order of their symbols in a block.

    Attributes:
        vectors: The number of each layer's vector on the side, int64 (layers,).
        quantizers: The number of its quantizer, int64 (layers,).
        weights: The factor on the points of the quantizer, int64 (layers,).
    """

    vectors: npt.NDArray[np.int64]
    quantizers: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]


def look_up(allocation: Allocation, precision: int) -> tuple[int, int, int]:
    """Return (quantizer id or -1, amplitude offset, code of the weight) for a precision.

    Raises:
        FormatError: ``units``: The precision lies under the first entry.
    """
    index = bisect_right(allocation, precision, key=lambda entry: entry[0]) - 1
    if index < 0:
        raise FormatError(f"allocation: no quantizer for precision {precision}", code="units")
    return allocation[index][1:]


@lru_cache(maxsize=256)
def _allocation_arrays(allocation: Allocation) -> npt.NDArray[np.int64]:
    """Return an allocation table as int64 (4, rows): precisions, quantizers, amplitude offsets, weights of layers."""
    table = np.ascontiguousarray(np.array(allocation, np.int64).reshape(-1, 4).T)
    table[3] = [layer_weight(row[3]) for row in allocation]
    return table


def _look_up_all(allocation: Allocation, precisions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Look up precisions: the columns of `_allocation_arrays` for each, int64 (4, precisions). Raises as `look_up`."""
    table = _allocation_arrays(allocation)
    places = table[0].searchsorted(precisions, side="right") - 1
    if len(places) and int(places.min()) < 0:
        look_up(allocation, int(precisions[places.argmin()]))
    return np.asarray(table[:, places])


def coded_layers(record: CodedRecord, allocations: Allocations, rung: int, side: int) -> Layers:
    """Return the layers of a record's side that the block of a rung holds, in order.

    The block holds the layers of all rungs so far for a unit that starts at this rung, and the layer of this rung for
    the other units. The layers of one unit follow each other.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its allocation table.
    """
    own = record.kind.sides[side]
    units = record.kind.side_units(side, record.units)
    precision = record.precision[units.start : units.stop] + own.shift
    if rung == 0 and len(allocations) == 1:  # nearly every file: each unit starts here, and has one layer or none
        _, chosen, _, weight = _look_up_all(allocations[0][own.table], precision)
        (vectors,) = (chosen >= 0).nonzero()
        return Layers(vectors, chosen[vectors], weight[vectors])
    entry = record.entry[units.start : units.stop]
    fresh = entry == rung
    quantizers = np.full((len(units), rung + 1), -1, np.int64)
    weights = np.zeros((len(units), rung + 1), np.int64)
    for number in range(0 if fresh.any() else rung, rung + 1):
        (rows,) = (entry <= rung if number == rung else fresh).nonzero()
        _, quantizers[rows, number], _, weights[rows, number] = _look_up_all(
            allocations[number][own.table], precision[rows]
        )
    vectors, numbers = (quantizers >= 0).nonzero()
    return Layers(vectors, quantizers[vectors, numbers], weights[vectors, numbers])


def touched_units(record: CodedRecord, allocations: Allocations, rung: int) -> npt.NDArray[np.bool_]:
    """Return True for each unit that starts or gains a layer at a rung, bool (units,)."""
    touched: npt.NDArray[np.bool_] = record.entry == rung
    if touched.all():
        return touched
    for side, own in enumerate(record.kind.sides):
        units = record.kind.side_units(side, record.units)
        part = slice(units.start, units.stop)
        rows = (~touched[part]).nonzero()[0] + units.start
        touched[rows] = _look_up_all(allocations[rung][own.table], record.precision[rows] + own.shift)[1] >= 0
    return touched


def predict_amplitudes(
    record: CodedRecord, units: npt.NDArray[np.int64], allocations: Allocations, rung: int, slope: int
) -> npt.NDArray[np.int64]:
    """Return the predicted amplitude codes of units at a rung that starts them or adds a layer to them.

    Args:
        record: The record, with the amplitudes of the rung before for units that started earlier.
        units: The numbers of the units, int64, ascending.
        allocations: The allocation table of each rung.
        rung: The rung, counted from 0.
        slope: The `amplitude_slope` of the header.
    """
    precision, fresh = record.precision[units], record.entry[units] == rung
    total = np.where(fresh, record.kind.amplitude + slope * precision, record.amplitude[units])
    first = 0 if fresh.any() else rung  # only units that start look at earlier rungs
    for side, own in enumerate(record.kind.sides):
        owners = record.kind.side_units(side, record.units)
        here = (units >= owners.start) & (units < owners.stop)
        for number in range(first, rung + 1):
            rows = (here if number == rung else here & fresh).nonzero()[0]
            total[rows] += _look_up_all(allocations[number][own.table], precision[rows] + own.shift)[2]
    return total


def pack_units(
    rungs: Sequence[Sequence[CodedRecord]],
    allocations: Allocations,
    slope: int,
    exponents: Sequence[Sequence[tuple[int, ...]]],
) -> list[bytes]:
    """Return the units section of each rung.

    Args:
        rungs: The records at each rung. The encoder keeps differences of amplitudes in [-128, 127].
        allocations: The allocation tables of each rung.
        slope: The `amplitude_slope` of the header.
        exponents: For each rung and record, the exponents of its sides.

    Raises:
        EncodeError: ``overflow``: The difference of an amplitude or an exponent is out of range.
        ValueError: There are not as many tables as kinds name.
    """
    memory = _Memory()
    sections = []
    for rung, records in enumerate(rungs):
        writer = IntegerWriter()
        if rung == 0:
            write_kinds(writer, dict.fromkeys(record.kind for record in records))
        write_tables(writer, allocations[rung], {record.kind for record in records})
        latest: dict[CodedKind, int] = {}
        for index, record in enumerate(records):
            base = rungs[rung - 1][index].units if rung else latest.get(record.kind, 0)
            writer.write(COUNT + min(base, 2), record.units - base)
            latest[record.kind] = record.units
        write_exponents(writer, exponents[rung])
        for record in records:
            for unit, predicted in _predictions(record, rung, memory):
                gap = (int(record.precision[unit]) - predicted + 128) % 256 - 128
                writer.write(PRECISION + min(unit, 2), gap)
            memory.remember(record)
        for index, record in enumerate(records):
            units = np.flatnonzero(touched_units(record, allocations, rung))
            before = record.amplitude.copy()
            if rung:
                earlier = rungs[rung - 1][index].amplitude
                before[: len(earlier)] = earlier
            codes = predict_amplitudes(replace(record, amplitude=before), units, allocations, rung, slope)
            fresh = record.entry[units] == rung
            for gap, is_fresh in zip((record.amplitude[units] - codes).tolist(), fresh.tolist(), strict=True):
                if not -128 <= gap <= 127:
                    message = (
                        "its weights are too small, or spread over more orders of magnitude than a file can hold: an "
                        f"amplitude is {gap} codes from its prediction; leave out the target, or scale the weights"
                    )
                    raise EncodeError(message, code="overflow", where=record.name)
                writer.write(AMPLITUDE + (not is_fresh), gap)
        sections.append(writer.finish())
    return sections


class UnitsReader:
    """A reader of the units sections of a file, rung after rung.

    Attributes:
        records: The coded records as they are at the last rung that was read.
        rungs: The rungs that were read, with their tables, units and exponents.
    """

    def __init__(self, header: Header, limits: Limits = DEFAULT_LIMITS) -> None:
        self._header, self._limits = header, limits
        self._memory = _Memory()
        empty = np.zeros(0, np.int64)
        self.records = tuple(replace(r, entry=empty, precision=empty, amplitude=empty) for r in header.coded)
        self.rungs: list[Rung] = []

    def read_rung(self, data: bytes) -> None:
        """Bring the records to the next rung by the bytes of its section.

        Raises:
            FormatError: ``symbols``: An integer is too long, or bytes are left over. ``units``: A value of a kind, a
                table, a number of units, an exponent or an amplitude is out of range, or a precision has no
                quantizer. ``limit``: There are too many rows or units.
        """
        rung = len(self.rungs)
        reader = IntegerReader(data, f"units of rung {rung}")
        if rung == 0:
            kinds = read_kinds(reader, dict.fromkeys(record.kind for record in self.records))
            self.records = tuple(replace(record, kind=kinds[record.kind]) for record in self.records)
        allocation = read_tables(
            reader, {record.kind for record in self.records}, len(self._header.quantizers), self._limits
        )
        units = self._read_counts(reader)
        exponents = read_exponents(reader, self.records)
        self.rungs.append(replace(self._header.rungs[rung], allocation=allocation, units=units, exponents=exponents))
        grown = []
        for record, number, own in zip(self.records, units, exponents, strict=True):
            fresh = number - record.units
            record = replace(
                record,
                exponents=own,
                entry=np.concatenate((record.entry, np.full(fresh, rung, np.int64))),
                precision=np.concatenate((record.precision, np.zeros(fresh, np.int64))),
                amplitude=np.concatenate((record.amplitude, np.zeros(fresh, np.int64))),
            )
            grown.append(record)
        self._read_precisions(reader, grown, rung)
        self._read_amplitudes(reader, grown, rung)
        reader.finish()
        self.records = tuple(grown)

    def _read_precisions(self, reader: IntegerReader, records: Sequence[CodedRecord], rung: int) -> None:
        """Read the precisions of the units that start at a rung."""
        fresh = [np.flatnonzero(record.entry == rung) for record in records]
        roles = np.concatenate([np.empty(0, np.int64), *(PRECISION + np.minimum(units, 2) for units in fresh)])
        gaps = iter(reader.read_many(roles.tolist()).tolist())
        for record in records:
            for unit, predicted in _predictions(record, rung, self._memory):
                record.precision[unit] = (predicted + next(gaps)) % 256
            self._memory.remember(record)

    def _read_amplitudes(self, reader: IntegerReader, records: Sequence[CodedRecord], rung: int) -> None:
        """Read the amplitudes of the units that start or gain a layer at a rung."""
        allocations = [step.allocation for step in self.rungs]
        touched = [np.flatnonzero(touched_units(record, allocations, rung)) for record in records]
        is_old = [record.entry[units] != rung for record, units in zip(records, touched, strict=True)]
        gaps = reader.read_many((AMPLITUDE + np.concatenate([np.empty(0, bool), *is_old])).tolist())
        start = 0
        for record, units in zip(records, touched, strict=True):
            codes = predict_amplitudes(record, units, allocations, rung, self._header.amplitude_slope)
            codes += gaps[start : start + len(units)]
            if len(codes) and not MIN_CODE <= int(codes.min()) <= int(codes.max()) <= MAX_CODE:
                raise FormatError(f"units of {record.name}: amplitude out of range", code="units")
            record.amplitude[units] = codes
            start += len(units)

    def _read_counts(self, reader: IntegerReader) -> tuple[int, ...]:
        """Read the number of units of each record at the next rung."""
        latest: dict[CodedKind, int] = {}
        counts: list[int] = []
        total = sum(sum(rung.units) for rung in self.rungs)
        for record in self.records:
            kind = record.kind
            base = record.units if self.rungs else latest.get(kind, 0)
            count = base + reader.read(COUNT + min(base, 2))
            is_whole = kind.split == "component" or count in (0, kind.most_units)
            if not (record.units <= count <= kind.most_units and is_whole):
                wanted = f"{record.units} to {kind.most_units}" if kind.split == "component" else "none or all"
                raise FormatError(mismatch(f"units of {record.name}", wanted, count), code="units")
            total += count
            self._limits.require("units", total, "units (sum over all records and rungs)")
            latest[kind] = count
            counts.append(count)
        return tuple(counts)


def _predictions(record: CodedRecord, rung: int, memory: _Memory) -> Iterator[tuple[int, int]]:
    """Yield (unit, prediction of its precision) for the units that start at a rung.

    A prediction uses the precision of the unit before, which the caller fills in between two steps.
    """
    for unit in np.flatnonzero(record.entry == rung).tolist():
        if record.kind.split == "component" and unit:
            yield unit, int(record.precision[unit - 1])
        else:
            yield unit, memory.predict(record.kind, unit)
