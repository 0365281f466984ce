"""Write and read units sections: what a rung says of its records (specification, "Units sections").

The section of rung 0 begins with what the kinds say of units. Each section then holds the allocation tables, the number
of units and the exponents of each record, and the precision and the amplitude of units. All of them are integers,
written as differences from a prediction, each with a role, and coded by `entropy.adaptive`. The precision of a record's
first unit is predicted by the first unit of the last record of the same kind, that of another unit by the unit before;
each rung predicts from its own records alone.
An amplitude is predicted by the precision at the rung where the unit starts, and its role is that of a quantizer, since
the amplitudes of units of one quantizer lie together; at a later rung that adds a layer, the amplitude before predicts
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nola_codec.container.layers import Allocations, JoinedUnits, count_within, join_units, look_up_all
from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.container.unit_tables import (
    COUNT,
    FIRST_AMPLITUDE,
    LATER_AMPLITUDE,
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
from nola_codec.lazy import numpy as np
from nola_codec.model.header import Allocation, Header, Rung
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import MAX_CODE, MIN_CODE

if TYPE_CHECKING:
    import numpy.typing as npt

_FEW_RECORDS = 4096
"""Records whose numbers of units are read without a kernel in less time than NumPy takes to load."""
START = 128
"""The prediction of the first precision of a rung."""
MOST_GAP = 511
"""The greatest difference between an amplitude and its prediction that is written; the least is -MOST_GAP - 1."""


class _Memory:
    """The precisions of the latest record of each kind that has units at a rung, and of the latest of any kind."""

    def __init__(self) -> None:
        self._numbers: dict[CodedKind, int] = {}
        self._known: dict[int, tuple[CodedKind, int]] = {}  # by identity, since a kind is slow to hash
        self._of_kind: dict[int, npt.NDArray[np.int64]] = {}
        self._latest = START

    def remember(self, record: CodedRecord) -> None:
        """Note a record as it is at a rung."""
        if record.units:
            self._of_kind[self._number(record.kind)] = record.precision
            self._latest = int(record.precision[0])

    def predict(self, kind: CodedKind, unit: int) -> int:
        """Return the prediction for a unit that has no unit before it in its record."""
        known = self._of_kind.get(self._number(kind))
        return self._latest if known is None else int(known[unit])

    def _number(self, kind: CodedKind) -> int:
        """Return a number of a kind, the same for equal kinds."""
        found = self._known.get(id(kind))
        if found is None:
            found = self._known[id(kind)] = kind, self._numbers.setdefault(kind, len(self._numbers))
        return found[1]


def touched_units(units: JoinedUnits, allocations: Allocations, rung: int) -> npt.NDArray[np.bool_]:
    """Return True for each unit that starts or gains a layer at a rung, bool (units,)."""
    touched: npt.NDArray[np.bool_] = units.entry == rung
    if not touched.all():
        vectors = units.vectors
        (rows,) = (~touched[vectors.units]).nonzero()
        owners = vectors.units[rows]
        found = look_up_all(allocations[rung], vectors.tables[rows], units.precision[owners] + vectors.shifts[rows])
        touched[owners[found[1] >= 0]] = True
    return touched


def predict_amplitudes(units: JoinedUnits, rung: int, slope: int) -> npt.NDArray[np.int64]:
    """Return the predicted amplitude code of each unit at a rung that starts it or adds a layer to it, int64 (units,).

    Args:
        units: The units, with the amplitudes of the rung before for those that started earlier.
        rung: The rung, counted from 0.
        slope: The `amplitude_slope` of the header.
    """
    first = units.of_kinds([kind.amplitude for kind in units.kinds]) + slope * units.precision
    return np.where(units.entry == rung, first, units.amplitude)


def amplitude_roles(units: JoinedUnits, tables: Sequence[Allocation], rung: int) -> npt.NDArray[np.int64]:
    """Return the role of the amplitude of each unit at a rung that starts it or adds a layer to it, int64 (units,).

    The role of a unit that starts names the quantizer of its first vector.

    Args:
        units: The units.
        tables: The allocation tables of the rung.
        rung: The rung, counted from 0.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its allocation table.
    """
    roles = np.full(len(units.precision), LATER_AMPLITUDE, np.int64)
    vectors = units.vectors
    is_first = vectors.firsts & (units.entry[vectors.units] == rung)
    owners = vectors.units[is_first]
    found = look_up_all(tables, vectors.tables[is_first], units.precision[owners] + vectors.shifts[is_first])
    roles[owners] = FIRST_AMPLITUDE + found[1]
    return roles


def pack_units(
    rungs: Sequence[Sequence[CodedRecord]],
    allocations: Allocations,
    slope: int,
    exponents: Sequence[Sequence[tuple[int, ...]]],
) -> list[bytes]:
    """Return the units section of each rung.

    Args:
        rungs: The records at each rung.
        allocations: The allocation tables of each rung.
        slope: The `amplitude_slope` of the header.
        exponents: For each rung and record, the exponents of its sides.

    Raises:
        EncodeError: ``overflow``: The difference of an amplitude or an exponent is out of range.
        ValueError: There are not as many tables as kinds name.
    """
    sections = []
    for rung, records in enumerate(rungs):
        writer, memory = IntegerWriter(), _Memory()
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
        units = join_units(records)
        before = units.amplitude.copy()
        for index, start in enumerate((units.counts.cumsum() - units.counts).tolist() if rung else []):
            earlier = rungs[rung - 1][index].amplitude
            before[start : start + len(earlier)] = earlier
        gaps = units.amplitude - predict_amplitudes(replace(units, amplitude=before), rung, slope)
        (touched,) = touched_units(units, allocations, rung).nonzero()
        roles = amplitude_roles(units, allocations[rung], rung)[touched]
        for unit, gap, role in zip(touched.tolist(), gaps[touched].tolist(), roles.tolist(), strict=True):
            if not -MOST_GAP - 1 <= gap <= MOST_GAP:
                message = (
                    "its weights are too small, or spread over more orders of magnitude than a file can hold: an "
                    f"amplitude is {gap} codes from its prediction; leave out the target, or scale the weights"
                )
                raise EncodeError(message, code="overflow", where=units.unit_owner(unit).name)
            writer.write(role, gap)
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
        self.records = header.coded
        self.rungs: list[Rung] = []
        self._kinds: dict[int, CodedKind] = {}  # by the identity of the kind that the header has
        self._total_units = self._look_ups = 0

    def read_rung(self, data: bytes) -> None:
        """Bring the records to the next rung by the bytes of its section.

        Raises:
            FormatError: ``symbols``: An integer is too long, or bytes are left over. ``units``: A value of a kind, a
                table, a number of units, an exponent or an amplitude is out of range, or a precision has no
                quantizer. ``limit``: There are too many rows or units.
        """
        rung = len(self.rungs)
        reader = IntegerReader(data, f"units of rung {rung}")
        allocation, units = self._begin_rung(reader)
        exponents = read_exponents(reader, self.records)
        self.rungs.append(replace(self._header.rungs[rung], allocation=allocation, units=units, exponents=exponents))
        self.records = self._grow(units, exponents, rung)
        self._read_precisions(reader, rung)
        self._read_amplitudes(reader, rung)
        reader.finish()

    def count_rung(self, data: bytes) -> None:
        """Read only the beginning of the next rung's section: `rungs` then has its tables and numbers of units.

        Neither NumPy nor a kernel is loaded if there are few records. A reader that counted a rung cannot read one.

        Raises:
            FormatError: As in `read_rung`.
        """
        rung = len(self.rungs)
        reader = IntegerReader(data, f"units of rung {rung}", is_short=len(self.records) < _FEW_RECORDS)
        allocation, units = self._begin_rung(reader)
        self.rungs.append(replace(self._header.rungs[rung], allocation=allocation, units=units))

    def _begin_rung(self, reader: IntegerReader) -> tuple[tuple[Allocation, ...], tuple[int, ...]]:
        """Read the kinds, the allocation tables and the numbers of units, with which a section begins."""
        if not self.rungs:
            distinct = {id(record.kind): record.kind for record in self.records}
            read = read_kinds(reader, dict.fromkeys(distinct.values()))
            self._kinds = {number: read[kind] for number, kind in distinct.items()}
        allocation = read_tables(reader, self._kinds.values(), len(self._header.quantizers), self._limits)
        return allocation, self._read_counts(reader)

    def _grow(self, units: Sequence[int], exponents: Sequence[tuple[int, ...]], rung: int) -> tuple[CodedRecord, ...]:
        """Return the records with the kinds that were read, and the units of a rung, which have no precision yet.

        The arrays of all records are parts of three arrays of the reader.
        """
        counts = np.array(units, np.int64)
        before = np.array([record.units for record in self.records], np.int64)
        self._entry = np.full(int(counts.sum()), rung, np.int64)
        self._precision, self._amplitude = np.zeros_like(self._entry), np.zeros_like(self._entry)
        self._fresh = count_within(counts) >= before.repeat(counts)
        if rung and self.records:
            for whole, parts in (
                (self._entry, [record.entry for record in self.records]),
                (self._precision, [record.precision for record in self.records]),
                (self._amplitude, [record.amplitude for record in self.records]),
            ):
                whole[~self._fresh] = np.concatenate(parts)
        ends = counts.cumsum().tolist()
        return tuple(
            CodedRecord(
                record.name,
                self._kinds.get(id(record.kind), record.kind),
                record.stream,
                own,
                self._entry[end - count : end],
                self._precision[end - count : end],
                self._amplitude[end - count : end],
            )
            for record, own, count, end in zip(self.records, exponents, units, ends, strict=True)
        )

    def _read_precisions(self, reader: IntegerReader, rung: int) -> None:
        """Read the precisions of the units that start at a rung."""
        units = join_units(self.records)
        numbers = count_within(units.counts)
        gaps = np.zeros(len(numbers), np.int64)
        gaps[self._fresh] = reader.read_many(PRECISION + np.minimum(numbers[self._fresh], 2))
        starts = units.counts.cumsum() - units.counts
        memory = _Memory()
        for record, start in zip(self.records, starts.tolist(), strict=True):
            # The units after the first one of the component form follow below, all together.
            for unit, predicted in _first_predictions(record, rung, memory):
                record.precision[unit] = (predicted + int(gaps[start + unit])) % 256
            memory.remember(record)
        whole = self._precision
        steps = whole - np.concatenate([[0], whole[:-1]])  # from unit to unit
        steps[numbers == 0] = whole[numbers == 0]
        is_next = self._fresh & (numbers > 0)
        if any(kind.split != "component" for kind in units.kinds):
            is_next &= units.of_kinds([kind.split == "component" for kind in units.kinds]) > 0
        steps[is_next] = gaps[is_next]
        sums = steps.cumsum()
        before = np.concatenate([[0], sums])[starts]
        whole[:] = (sums - before.repeat(units.counts)) % 256

    def _read_amplitudes(self, reader: IntegerReader, rung: int) -> None:
        """Read the amplitudes of the units that start or gain a layer at a rung."""
        units = join_units(self.records)
        (touched,) = touched_units(units, [step.allocation for step in self.rungs], rung).nonzero()
        gaps = reader.read_many(amplitude_roles(units, self.rungs[rung].allocation, rung)[touched])
        codes = predict_amplitudes(units, rung, self._header.amplitude_slope)[touched] + gaps
        (wrong,) = ((codes < MIN_CODE) | (codes > MAX_CODE)).nonzero()
        if len(wrong):
            name = units.unit_owner(int(touched[wrong[0]])).name
            raise FormatError(f"units of {name}: amplitude out of range", code="units")
        self._amplitude[touched] = codes

    def _read_counts(self, reader: IntegerReader) -> tuple[int, ...]:
        """Read the number of units of each record at the next rung."""
        kinds = [record.kind for record in self.records]
        if self.rungs:
            least: Sequence[int] = self.rungs[-1].units
            steps = reader.read_list([COUNT + min(before, 2) for before in least])
            counts = tuple(before + step for before, step in zip(least, steps, strict=True))
        else:  # the count of a record is predicted by the record of its kind before
            numbers: dict[int, int] = {}
            groups = [numbers.setdefault(id(kind), len(numbers)) for kind in kinds]
            counts, least = tuple(reader.read_totals(COUNT, groups)), [0] * len(kinds)
        for record, before, count in zip(self.records, least, counts, strict=False):
            kind = record.kind
            is_whole = kind.split == "component" or count in (0, kind.most_units)
            if not (before <= count <= kind.most_units and is_whole):
                wanted = f"{before} to {kind.most_units}" if kind.split == "component" else "none or all"
                raise FormatError(mismatch(f"units of {record.name}", wanted, count), code="units")
            self._total_units += count
            self._limits.require("units", self._total_units, "units (sum over all records and rungs)")
            sides = len(kind.sides) if kind.split == "component" else 1
            self._look_ups += sides * ((count - before) * (len(self.rungs) + 1) + before)
            self._limits.require("look_ups", self._look_ups, "rows that units look up (over all sides and rungs)")
        return counts


def _first_predictions(record: CodedRecord, rung: int, memory: _Memory) -> Iterable[tuple[int, int]]:
    """Return what `_predictions` yields, of the component form for the first unit alone."""
    if record.kind.split != "component":
        return _predictions(record, rung, memory)
    starts_here = record.units and int(record.entry[0]) == rung
    return ((0, memory.predict(record.kind, 0)),) if starts_here else ()


def _predictions(record: CodedRecord, rung: int, memory: _Memory) -> Iterator[tuple[int, int]]:
    """Yield (unit, prediction of its precision) for the units that start at a rung.

    A prediction uses the precision of the unit before, which the caller fills in between two steps.
    """
    for unit in (record.entry == rung).nonzero()[0].tolist():
        if record.kind.split == "component" and unit:
            yield unit, int(record.precision[unit - 1])
        else:
            yield unit, memory.predict(record.kind, unit)
