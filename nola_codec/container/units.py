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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.container.fields import limit_error
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
from nola_codec.errors import FormatError, mismatch
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
        self._of_kind: dict[CodedKind, list[int]] = {}
        self._latest = START

    def remember(self, record: CodedRecord) -> None:
        """Note a record as it is at a rung."""
        if record.units:
            self._of_kind[record.kind] = record.precision.tolist()
            self._latest = int(record.precision[0])

    def predict(self, kind: CodedKind, unit: int) -> int:
        """Return the prediction for a unit that has no unit before it in its record."""
        return self._of_kind[kind][unit] if kind in self._of_kind else self._latest


class Layer(NamedTuple):
    """One layer of one vector.

    Attributes:
        vector: The number of the vector on its side.
        quantizer: The number of the quantizer.
        weight: The factor on the points of the quantizer.
    """

    vector: int
    quantizer: int
    weight: int


def look_up(allocation: Allocation, precision: int) -> tuple[int, int, int]:
    """Return (quantizer id or -1, amplitude offset, code of the weight) for a precision.

    Raises:
        FormatError: ``units``: The precision lies under the first entry.
    """
    index = bisect_right(allocation, precision, key=lambda entry: entry[0]) - 1
    if index < 0:
        raise FormatError(f"allocation: no quantizer for precision {precision}", code="units")
    return allocation[index][1:]


def _entry(allocations: Allocations, rung: int, kind: CodedKind, side: int, precision: int) -> tuple[int, int, int]:
    own = kind.sides[side]
    return look_up(allocations[rung][own.table], precision + own.shift)


def coded_layers(record: CodedRecord, allocations: Allocations, rung: int, side: int) -> list[Layer]:
    """Return the layers of a record's side that the block of a rung holds, in order.

    The block holds the layers of all rungs so far for a unit that starts at this rung, and the layer of this rung for
    the other units.
    """
    kind = record.kind
    layers = []
    for vector, unit in enumerate(kind.side_units(side, record.units)):
        entry = int(record.entry[unit])
        if entry > rung:
            break
        for number in range(rung + 1) if entry == rung else (rung,):
            quantizer, _, weight = _entry(allocations, number, kind, side, int(record.precision[unit]))
            if quantizer >= 0:
                layers.append(Layer(vector, quantizer, layer_weight(weight)))
    return layers


def touched_units(record: CodedRecord, allocations: Allocations, rung: int) -> npt.NDArray[np.bool_]:
    """Return True for each unit that starts or gains a layer at a rung, bool (units,)."""
    return np.array(
        [
            entry == rung
            or any(_entry(allocations, rung, record.kind, side, p)[0] >= 0 for side in record.kind.unit_sides(unit))
            for unit, (entry, p) in enumerate(zip(record.entry.tolist(), record.precision.tolist(), strict=True))
        ],
        bool,
    )


def predict_amplitude(
    record: CodedRecord, unit: int, allocations: Allocations, rung: int, slope: int, before: int
) -> int:
    """Return the predicted amplitude code of a unit at a rung that starts it or adds a layer to it.

    `before` is its code at the rung before.
    """
    precision = int(record.precision[unit])
    fresh = record.entry[unit] == rung
    total = record.kind.amplitude + slope * precision if fresh else before
    for number in range(rung + 1) if fresh else (rung,):
        for side in record.kind.unit_sides(unit):
            total += _entry(allocations, number, record.kind, side, precision)[1]
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
        ValueError: The difference of an amplitude is out of range, or there are not as many tables as kinds name.
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
            for unit in np.flatnonzero(touched_units(record, allocations, rung)).tolist():
                fresh = int(record.entry[unit]) == rung
                before = 0 if fresh else int(rungs[rung - 1][index].amplitude[unit])
                gap = int(record.amplitude[unit])
                gap -= predict_amplitude(record, unit, allocations, rung, slope, before)
                if not -128 <= gap <= 127:
                    raise ValueError(f"amplitude of {record.name} is {gap} codes from its prediction")
                writer.write(AMPLITUDE + (not fresh), gap)
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
            for unit, predicted in _predictions(record, rung, self._memory):
                record.precision[unit] = (predicted + reader.read(PRECISION + min(unit, 2))) % 256
            self._memory.remember(record)
            grown.append(record)
        allocations = [step.allocation for step in self.rungs]
        for record in grown:
            for unit in np.flatnonzero(touched_units(record, allocations, rung)).tolist():
                code = predict_amplitude(
                    record, unit, allocations, rung, self._header.amplitude_slope, int(record.amplitude[unit])
                )
                code += reader.read(AMPLITUDE + (int(record.entry[unit]) != rung))
                if not MIN_CODE <= code <= MAX_CODE:
                    raise FormatError(f"units of {record.name}: amplitude out of range", code="units")
                record.amplitude[unit] = code
        reader.finish()
        self.records = tuple(grown)

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
            if total > self._limits.units:
                raise limit_error("units (sum over all records and rungs)", self._limits.units, total)
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
