"""Write and read units sections: precisions and amplitudes as small differences (specification, "Units sections").

The section of a rung holds the precision of each unit that starts at the rung, as the difference from the unit before
it in the record. For the first unit of a record it is the difference from the first unit of the last record of the same
kind; in the factor form and the difference form, that of any unit is the difference from the same unit of that record.
An amplitude is written as the difference from a prediction. At the rung where the unit starts, the precision predicts
it; at a later rung that adds a layer, the amplitude before does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.errors import FormatError
from nola_codec.model.header import Allocation, Header
from nola_codec.model.quantizers import Runs
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import MAX_CODE, MIN_CODE, layer_weight

START = 128
"""The prediction of the first precision in the first record of a kind."""

Allocations = Sequence[tuple[Allocation, ...]]
"""The allocation tables of each rung."""
_Memory = dict[CodedKind, list[int]]


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


def units_to_symbols(
    rungs: Sequence[Sequence[CodedRecord]], allocations: Allocations, slope: int
) -> list[npt.NDArray[np.uint16]]:
    """Return the symbols of each rung's units section: precisions, then amplitudes.

    Args:
        rungs: The records at each rung. The encoder keeps differences of amplitudes in [-128, 127].
        allocations: The allocation tables of each rung.
        slope: The `amplitude_slope` of the header.

    Raises:
        ValueError: The difference of an amplitude is out of range.
    """
    memory: _Memory = {}
    sections = []
    for rung, records in enumerate(rungs):
        precisions: list[int] = []
        amplitudes: list[int] = []
        for index, record in enumerate(records):
            for unit, reference in _references(record, rung, memory):
                precisions.append(_fold((int(record.precision[unit]) - reference + 128) % 256 - 128))
            _remember(memory, record)
            for unit in np.flatnonzero(touched_units(record, allocations, rung)).tolist():
                old = rungs[rung - 1][index].amplitude if rung else ()
                before = int(old[unit]) if unit < len(old) else 0
                gap = int(record.amplitude[unit])
                gap -= predict_amplitude(record, unit, allocations, rung, slope, before)
                if not -128 <= gap <= 127:
                    raise ValueError(f"amplitude of {record.name} is {gap} codes from its prediction")
                amplitudes.append(_fold(gap))
        sections.append(np.array(precisions + amplitudes, np.uint16))
    return sections


def units_runs(precisions: int, amplitudes: int) -> Runs:
    """Return the two runs of a units section, of these lengths."""
    return Runs(np.array([0, 1], np.int64), np.array([precisions, amplitudes], np.int64))


class UnitsReader:
    """A reader of the units sections of a file, rung after rung.

    Attributes:
        records: The coded records as they are at the last rung that was read.
    """

    def __init__(self, header: Header) -> None:
        self._rungs, self._slope = header.rungs, header.amplitude_slope
        self._allocations = [rung.allocation for rung in header.rungs]
        self._memory: _Memory = {}
        empty = np.zeros(0, np.int64)
        self.records = tuple(replace(r, entry=empty, precision=empty, amplitude=empty) for r in header.coded)

    def runs(self, rung: int) -> Runs:
        """Return the runs of the next rung's section: one of precisions, then one of amplitudes."""
        fresh = sum(self._rungs[rung].units) - sum(r.units for r in self.records)
        old = sum(int(touched_units(r, self._allocations, rung).sum()) for r in self.records) if rung else 0
        return units_runs(fresh, fresh + old)

    def read_rung(self, rung: int, symbols: npt.NDArray[Any]) -> None:
        """Bring the records to the next rung by the symbols of its section.

        Raises:
            FormatError: ``units``: A precision has no quantizer, or an amplitude is out of range.
        """
        numbers = iter(_unfold(symbols))
        grown = []
        for record, number in zip(self.records, self._rungs[rung].units, strict=True):
            fresh = number - record.units
            record = replace(
                record,
                entry=np.concatenate((record.entry, np.full(fresh, rung, np.int64))),
                precision=np.concatenate((record.precision, np.zeros(fresh, np.int64))),
                amplitude=np.concatenate((record.amplitude, np.zeros(fresh, np.int64))),
            )
            for unit, reference in _references(record, rung, self._memory):
                record.precision[unit] = (reference + next(numbers)) % 256
            _remember(self._memory, record)
            grown.append(record)
        for record in grown:
            for unit in np.flatnonzero(touched_units(record, self._allocations, rung)).tolist():
                before = int(record.amplitude[unit])
                code = next(numbers) + predict_amplitude(record, unit, self._allocations, rung, self._slope, before)
                if not MIN_CODE <= code <= MAX_CODE:
                    raise FormatError(f"units of {record.name}: amplitude out of range", code="units")
                record.amplitude[unit] = code
        self.records = tuple(
            replace(record, exponents=pair) for record, pair in zip(grown, self._rungs[rung].exponents, strict=True)
        )


def _references(record: CodedRecord, rung: int, memory: _Memory) -> Iterator[tuple[int, int]]:
    """Yield (unit, prediction of its precision) for the units that start at a rung.

    A prediction uses the precision of the unit before, which the caller fills in between two steps.
    """
    before = memory.get(record.kind)
    for unit in np.flatnonzero(record.entry == rung).tolist():
        if record.kind.split == "component" and unit:
            yield unit, int(record.precision[unit - 1])
        else:
            yield unit, START if before is None else before[unit]


def _remember(memory: _Memory, record: CodedRecord) -> None:
    if record.units:
        values = record.precision.tolist()
        memory[record.kind] = values[:1] if record.kind.split == "component" else values


def _fold(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unfold(symbols: npt.NDArray[Any]) -> list[int]:
    return [(s >> 1) ^ -(s & 1) for s in symbols.astype(np.int64).tolist()]
