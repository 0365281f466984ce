"""Units sections for `random_files`: what each record has at each rung, and the integers that say so.

The predictions are written down here a third time, from the specification, beside those of the package and of the
reference decoder. A test compares what they read with what was meant here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MANTISSAS = [round(2**15 * 2 ** (i / 32)) for i in range(32)]
Integers = list[tuple[int, int]]
"""(role, value) of each integer of a units section."""
Layer = tuple[int, int, int, int]
"""Side, number of the vector on that side, quantizer, weight."""


class Illegal(Exception):
    """Chance made a file that no encoder may write: another attempt is needed."""


@dataclass
class CodedKind:
    """A kind of coded records.

    Attributes:
        wire: Its array in the header.
        lengths, num_basis: n and k of a vector of each side.
        most_units: The number of units of a record with all its units.
        tables, shifts, amplitude: What the units section of rung 0 says of it.
    """

    wire: list[Any]
    lengths: list[int]
    num_basis: list[int]
    most_units: int
    tables: list[int]
    shifts: list[int]
    amplitude: int

    @property
    def form(self) -> int:
        return 0 if self.wire[0] == 2 else self.wire[7]

    @property
    def basis(self) -> int:
        return self.wire[3] if self.wire[0] == 2 else self.wire[6]

    @property
    def scale_factor(self) -> int:
        """The factor between an amplitude and the scale code."""
        return 2 if self.wire[0] == 2 or self.form == 2 else 1

    def sides_of(self, unit: int) -> Sequence[int]:
        """The sides of a unit."""
        if self.form == 0:
            return range(len(self.lengths))
        return (int(unit >= self.most_units // 2),)

    def vector_of(self, unit: int) -> int:
        """The number of a unit's vector on its side."""
        return unit % (self.most_units // 2) if self.form else unit


@dataclass
class CodedRecord:
    """A coded record as it is at the rung that was written last.

    Attributes:
        kind, kind_number: Its kind, and the number of it.
        numbers: The numbers in its name.
        least_exponents: The least exponent that each side may have, because of a reference.
        starts: The rung at which each unit starts.
        precisions, amplitudes: Of the units that have started.
        exponents: Of its sides at the latest rung.
        layers: What the block of the latest rung holds.
        peaks: For each (side, vector), the sum over its layers of weight times largest point.
    """

    kind: CodedKind
    kind_number: int
    numbers: tuple[int, ...]
    least_exponents: tuple[int, ...]
    starts: list[int]
    precisions: list[int] = field(default_factory=list)
    amplitudes: list[int] = field(default_factory=list)
    exponents: list[int] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    peaks: dict[tuple[int, int], int] = field(default_factory=dict)

    def count(self, rung: int) -> int:
        """The unit count at a rung."""
        return sum(start <= rung for start in self.starts)


class UnitsWriter:
    """Makes up the units of a file, rung by rung."""

    def __init__(
        self, rng: np.random.Generator, records: Sequence[CodedRecord], slope: int, quantizers: Sequence[int]
    ) -> None:
        """Begin before rung 0. `quantizers` has the largest magnitude of each quantizer's points."""
        self._rng, self._records, self._slope, self._peaks = rng, records, slope, quantizers
        self._tables: list[list[list[tuple[int, int, int]]]] = []

    def write(self, rung: int) -> Integers:
        """Return the integers of the next rung's section, and bring the records to that rung."""
        out: Integers = self._kinds() if rung == 0 else []
        most = max((table for r in self._records for table in r.kind.tables), default=-1)
        tables = [self._table() for _ in range(most + 1)]
        self._tables.append(tables)
        out += [item for table in tables for item in _table_integers(table)]
        out += self._counts(rung)
        precisions = self._precisions(rung)
        amplitudes = [item for record in self._records for item in self._amplitudes(record, rung)]
        return out + self._exponents() + precisions + amplitudes

    def _kinds(self) -> Integers:
        out: Integers = []
        tables, shifts, amplitude, seen = [0, 0], [0, 0], 0, set()
        for record in self._records:
            if record.kind_number in seen:
                continue
            seen.add(record.kind_number)
            kind = record.kind
            for role, own, last in ((12, kind.tables, tables), (13, kind.shifts, shifts)):
                for side, value in enumerate(own):
                    out.append((role, value - last[side]))
                    last[side] = value
            out.append((14, kind.amplitude - amplitude))
            amplitude = kind.amplitude
        return out

    def _table(self) -> list[tuple[int, int, int]]:
        rng = self._rng
        steps = sorted(rng.choice(np.arange(-300, 600), int(rng.integers(0, 6)), replace=False).tolist())
        most = int(rng.choice([0, 40, 40, 90]))
        return [
            (int(step), int(rng.integers(-1, len(self._peaks))), int(rng.integers(most + 1)))
            for step in (int(rng.integers(-1100, -1023)), *steps)
        ]

    def _counts(self, rung: int) -> Integers:
        out, counts = [], {}
        for record in self._records:
            own = record.count(rung)
            predicted = record.count(rung - 1) if rung else counts.get(record.kind_number, 0)
            out.append((4 + min(2, predicted), own - predicted))
            counts[record.kind_number] = own
        return out

    def _precisions(self, rung: int) -> Integers:
        out = []
        latest: dict[int, list[int]] = {}
        latest_of_any = 128
        for record in self._records:
            before = latest.get(record.kind_number)
            for unit in range(len(record.precisions), record.count(rung)):
                near = latest_of_any if before is None else before[0]
                wanted = int(self._rng.integers(256)) if self._rng.random() < 0.4 else (near + unit) % 256
                if record.kind.form == 0 and unit:
                    predicted = record.precisions[-1]
                else:
                    predicted = latest_of_any if before is None else before[unit]
                number = wanted - predicted + int(self._rng.choice([0, 0, 0, 256, -256]))
                out.append((8 + min(unit, 2), number))
                record.precisions.append(wanted)
            if record.precisions:
                latest[record.kind_number] = record.precisions
                latest_of_any = record.precisions[0]
        return out

    def _amplitudes(self, record: CodedRecord, rung: int) -> Integers:
        """Return the integers of a record's amplitudes, and set its layers and peaks."""
        kind, out, layers = record.kind, [], []
        for unit, precision in enumerate(record.precisions):
            starts_here = record.starts[unit] == rung
            any_layer, quantizer = False, None
            for side in kind.sides_of(unit):
                for at in range(0 if starts_here else rung, rung + 1):
                    table = self._tables[at][kind.tables[side]]
                    row = max(row for row in table if row[0] <= precision + kind.shifts[side])
                    quantizer = row[1] if at == rung and quantizer is None else quantizer  # of the first side
                    if row[1] >= 0:
                        weight = (MANTISSAS[4 * (row[2] % 8)] << row[2] // 8) >> 15
                        layers.append((side, kind.vector_of(unit), row[1], weight))
                        any_layer = True
            if not starts_here and not any_layer:
                continue
            before = kind.amplitude + self._slope * precision if starts_here else record.amplitudes[unit]
            near = kind.amplitude if starts_here else before
            wanted = int(np.clip(near + self._rng.integers(-60, 61), -4096, 4095))
            out.append((16 + quantizer if starts_here else 11, wanted - before))
            record.amplitudes[unit : unit + 1] = [wanted]
        record.layers = sorted(layers, key=lambda layer: layer[0])
        for side, vector, quantizer, weight in layers:
            record.peaks[side, vector] = record.peaks.get((side, vector), 0) + weight * self._peaks[quantizer]
        return out

    def _exponents(self) -> Integers:
        """Choose exponents so that most elements are of 6 to 16 bits, and return their integers."""
        out, last = [], [0, 0]
        for record in self._records:
            kind = record.kind
            codes = [kind.scale_factor * a for a in record.amplitudes]
            record.exponents = []
            for side in range(len(kind.lengths)):
                peak = max((p for (at, _), p in record.peaks.items() if at == side), default=0)
                wanted = math.log2(0.4 * peak + 1) + _growth(kind, side) + 15.5 - self._rng.uniform(6, 15.5)
                own = [code // 32 for unit, code in enumerate(codes) if side in kind.sides_of(unit)] or [0]
                exponent = int(np.clip(round(wanted), 2, 60)) - 15 + max(own)
                exponent = max(exponent, record.least_exponents[side])
                shifts = [15 - octave + exponent for octave in own]
                if not (-120 <= exponent <= 100 and min(shifts) >= 1 and max(shifts) <= 62):
                    raise Illegal
                record.exponents.append(exponent)
                out.append((7, exponent - last[side]))
                last[side] = exponent
            if bound(kind, max(record.peaks.values(), default=0)) >= 2**46:
                raise Illegal
        return out


def bound(kind: CodedKind, peak: int) -> int:
    """Return the largest magnitude that a sum can have in a record with coefficients of a peak."""
    if peak >= 2**31:
        raise Illegal
    sizes = zip(kind.lengths, kind.num_basis, strict=True)
    return peak * max(math.prod(hadamard(n)) if kind.basis == 1 else k << (15 * (kind.basis == 3)) for n, k in sizes)


def hadamard(n: int) -> tuple[int, int]:
    """Return the block of each of two passes of a Hadamard basis of length n; the second is 1 if there is one pass."""
    power = n & -n
    if power == n or power >= 64:
        return min(power, 4096), 1
    block = 1 if n == 3 else 64 if n >= 64 else 16 if n >= 16 else 4
    return block, block


def _growth(kind: CodedKind, side: int) -> float:
    """Return about how many bits larger elements are than coefficients."""
    n, k = kind.lengths[side], kind.num_basis[side]
    if kind.basis == 1:
        return math.log2(math.prod(hadamard(n)) * k / n) / 2
    return math.log2(k) / 2 + (14.2 if kind.basis == 3 else 0)


def _table_integers(table: Sequence[tuple[int, int, int]]) -> Integers:
    out, before = [(0, len(table))], (-1, -1, 0)
    for row in table:
        out += [(1 + i, row[i] - before[i] - int(i < 2)) for i in range(3)]
        before = row
    return out
