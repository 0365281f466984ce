"""Units sections: precisions and amplitudes as small differences (specification, "Units"), and the layers they imply.

A component's precision is coded when it comes in, as the difference from the component before it; the first one's from
the first of the record before of the same kind. An amplitude is coded as the difference from a prediction: made of the
precision when the unit comes in, of its own last value when a later rung adds a layer to it.
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
"""Prediction of the first precision of a kind's first record."""

Allocations = Sequence[tuple[Allocation, ...]]
"""The allocation tables of each rung."""
_Memory = dict[CodedKind, list[int]]


class Layer(NamedTuple):
    """One quantized layer of one vector, number `vector` of a side; its points count `weight` times."""

    vector: int
    quantizer: int
    weight: int


def lookup(allocation: Allocation, precision: int) -> tuple[int, int, int]:
    """(quantizer id or -1, amplitude offset, code of the weight). Raises FormatError under the first entry."""
    index = bisect_right(allocation, precision, key=lambda entry: entry[0]) - 1
    if index < 0:
        raise FormatError(f"allocation: no quantizer for precision {precision}", code="units")
    return allocation[index][1:]


def _entry(allocations: Allocations, rung: int, kind: CodedKind, side: int, precision: int) -> tuple[int, int, int]:
    own = kind.sides[side]
    return lookup(allocations[rung][own.table], precision + own.shift)


def coded_layers(record: CodedRecord, allocations: Allocations, rung: int, side: int) -> list[Layer]:
    """Layers of a record's vectors of one side that the rung's block holds, in its order.

    A unit that comes in brings the layers of all rungs so far; the others get this rung's.
    """
    kind = record.kind
    layers = []
    for unit in range(record.units) if kind.split == "component" else range(side, record.units, 2):
        entry = int(record.entry[unit])
        if entry > rung:
            break
        for number in range(rung + 1) if entry == rung else (rung,):
            quantizer, _, weight = _entry(allocations, number, kind, side, int(record.precision[unit]))
            if quantizer >= 0:
                layers.append(Layer(unit if kind.split == "component" else 0, quantizer, layer_weight(weight)))
    return layers


def touched(record: CodedRecord, allocations: Allocations, rung: int) -> npt.NDArray[np.bool_]:
    """Whether each unit comes in or gains a layer at a rung, (units,)."""
    return np.array(
        [
            entry == rung
            or any(_entry(allocations, rung, record.kind, side, p)[0] >= 0 for side in record.kind.unit_sides(unit))
            for unit, (entry, p) in enumerate(zip(record.entry.tolist(), record.precision.tolist(), strict=True))
        ],
        bool,
    )


def predicted_amplitude(
    record: CodedRecord, unit: int, allocations: Allocations, rung: int, slope: int, before: int
) -> int:
    """Prediction of a unit's amplitude code at a rung that touches it; `before` is its code at the rung before."""
    precision = int(record.precision[unit])
    fresh = record.entry[unit] == rung
    total = record.kind.amplitude + slope * precision if fresh else before
    for number in range(rung + 1) if fresh else (rung,):
        for side in record.kind.unit_sides(unit):
            total += _entry(allocations, number, record.kind, side, precision)[1]
    return total


def units_to_symbols(
    ladder: Sequence[Sequence[CodedRecord]], allocations: Allocations, slope: int
) -> list[npt.NDArray[np.uint16]]:
    """Symbols of each rung's units section: precisions, then amplitudes.

    Args:
        ladder: The records at each rung. Differences must lie in [-128, 127]; the encoder sees to it.
        allocations: Tables of each rung.
        slope: `Header.amplitude_slope`.
    """
    memory: _Memory = {}
    sections = []
    for rung, records in enumerate(ladder):
        precisions: list[int] = []
        amplitudes: list[int] = []
        for index, record in enumerate(records):
            for unit, reference in _references(record, rung, memory):
                precisions.append(_fold((int(record.precision[unit]) - reference + 128) % 256 - 128))
            _remember(memory, record)
            for unit in np.flatnonzero(touched(record, allocations, rung)).tolist():
                old = ladder[rung - 1][index].amplitude if rung else ()
                before = int(old[unit]) if unit < len(old) else 0
                gap = int(record.amplitude[unit])
                gap -= predicted_amplitude(record, unit, allocations, rung, slope, before)
                if not -128 <= gap <= 127:
                    raise ValueError(f"amplitude of {record.name} is {gap} codes from its prediction")
                amplitudes.append(_fold(gap))
        sections.append(np.array(precisions + amplitudes, np.uint16))
    return sections


def units_runs(precisions: int, amplitudes: int) -> Runs:
    """The runs of a units section."""
    return Runs(np.array([0, 1], np.int64), np.array([precisions, amplitudes], np.int64))


class UnitsReader:
    """Takes the records of a file from rung to rung."""

    def __init__(self, header: Header) -> None:
        self._rungs, self._slope = header.rungs, header.amplitude_slope
        self._allocations = [rung.allocation for rung in header.rungs]
        self._memory: _Memory = {}
        empty = np.zeros(0, np.int64)
        self.records = tuple(replace(r, entry=empty, precision=empty, amplitude=empty) for r in header.coded)

    def runs(self, rung: int) -> Runs:
        """What the section of the next rung holds: a run of precisions, then one of amplitudes."""
        fresh = sum(self._rungs[rung].units) - sum(r.units for r in self.records)
        old = sum(int(touched(r, self._allocations, rung).sum()) for r in self.records) if rung else 0
        return units_runs(fresh, fresh + old)

    def climb(self, rung: int, symbols: npt.NDArray[Any]) -> None:
        """Take the records to the next rung by the symbols of its section.

        Raises:
            FormatError: no quantizer for a precision, or an amplitude out of range.
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
            for unit in np.flatnonzero(touched(record, self._allocations, rung)).tolist():
                before = int(record.amplitude[unit])
                code = next(numbers) + predicted_amplitude(record, unit, self._allocations, rung, self._slope, before)
                if not MIN_CODE <= code <= MAX_CODE:
                    raise FormatError(f"units of {record.name}: amplitude out of range", code="units")
                record.amplitude[unit] = code
        self.records = tuple(
            replace(record, exponents=pair) for record, pair in zip(grown, self._rungs[rung].exponents, strict=True)
        )


def _references(record: CodedRecord, rung: int, memory: _Memory) -> Iterator[tuple[int, int]]:
    """(unit, prediction of its precision) for the units that come in; precisions may be filled in on the way."""
    before = memory.get(record.kind, [START, START])
    for unit in np.flatnonzero(record.entry == rung).tolist():
        if record.kind.split == "factor":
            yield unit, before[unit]
        else:
            yield unit, before[0] if unit == 0 else int(record.precision[unit - 1])


def _remember(memory: _Memory, record: CodedRecord) -> None:
    if record.units:
        values = record.precision.tolist()
        memory[record.kind] = values[:2] if record.kind.split == "factor" else [values[0], START]


def _fold(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unfold(symbols: npt.NDArray[Any]) -> list[int]:
    return [(s >> 1) ^ -(s & 1) for s in symbols.astype(np.int64).tolist()]
