"""What a units section says before its units: kinds, allocation tables, exponents (specification, "Units sections").

Each integer of a units section has a role; integers of one role share their adaptive probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from nola_codec.container.limits import Limits
from nola_codec.entropy.adaptive import IntegerReader, IntegerWriter
from nola_codec.errors import EncodeError, FormatError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import MAX_EXPONENT, MAX_WEIGHT_CODE, MIN_EXPONENT

_ROWS, _PRECISION_STEP, _QUANTIZER_STEP, _WEIGHT_STEP = range(4)
COUNT, _EXPONENT, PRECISION, LATER_AMPLITUDE, FIRST_AMPLITUDE = 4, 7, 8, 11, 16
"""Roles of integers. COUNT has three, by what the count is predicted to be; PRECISION three, by the number of the unit.
To FIRST_AMPLITUDE, the role of a unit that starts, the quantizer of the unit's first side is added, or -1."""
_KIND_ROLES = (12, 12, 13, 13, 14)
"""Roles of what a kind says of its units: the table of lora_B and of lora_A, the shift of each, and the amplitude."""
_LARGEST = 1 << 14
"""The largest magnitude of the precision of a row, and of the amplitude of a kind."""
_MAX_SHIFT = 1023
_MAX_TABLES = 256


def write_kinds(writer: IntegerWriter, kinds: Iterable[CodedKind]) -> None:
    """Write the tables and the shifts of the sides of each kind, and the constant part of its amplitudes."""
    last = [0] * len(_KIND_ROLES)
    for kind in kinds:
        tables, shifts = [side.table for side in kind.sides], [side.shift for side in kind.sides]
        for place, value in zip(_places(kind), (*tables, *shifts, kind.amplitude), strict=True):
            writer.write(_KIND_ROLES[place], value - last[place])
            last[place] = value


def read_kinds(reader: IntegerReader, kinds: Iterable[CodedKind]) -> dict[CodedKind, CodedKind]:
    """Return the kinds of a header, each with what `write_kinds` wrote. Raises FormatError ``units``."""
    last = [0] * len(_KIND_ROLES)
    made = {}
    kinds = list(kinds)
    steps = iter(reader.read_list([_KIND_ROLES[place] for kind in kinds for place in _places(kind)]))
    for kind in kinds:
        for place in _places(kind):
            last[place] += next(steps)
        tables, shifts, amplitude = last[:2], last[2:4], last[4]
        is_good = all(0 <= table < _MAX_TABLES for table in tables) and abs(amplitude) <= _LARGEST
        if not is_good or any(abs(shift) > _MAX_SHIFT for shift in shifts):
            wanted = f"tables below {_MAX_TABLES}, shifts to {_MAX_SHIFT}, an amplitude to {_LARGEST}"
            raise FormatError(mismatch(kind.template, wanted, last), code="units")
        sides = tuple(
            replace(side, table=tables[number], shift=shifts[number]) for number, side in enumerate(kind.sides)
        )
        made[kind] = replace(kind, sides=sides, amplitude=amplitude)
    return made


def _places(kind: CodedKind) -> tuple[int, ...]:
    """Return the places of a kind's values among those of _KIND_ROLES."""
    return tuple(range(len(_KIND_ROLES))) if kind.is_pair else (0, 2, 4)


def write_tables(writer: IntegerWriter, tables: Sequence[Allocation], kinds: Iterable[CodedKind]) -> None:
    """Write the allocation tables of a rung. Raises ValueError if they are not as many as the kinds name."""
    if len(tables) != _tables_of(kinds):
        raise ValueError(f"{len(tables)} allocation tables, of which the kinds name {_tables_of(kinds)}")
    for table in tables:
        writer.write(_ROWS, len(table))
        before = (-1, -1, 0)
        for row in table:
            writer.write(_PRECISION_STEP, row[0] - before[0] - 1)
            writer.write(_QUANTIZER_STEP, row[1] - before[1] - 1)
            writer.write(_WEIGHT_STEP, row[2] - before[2])
            before = row


def read_tables(
    reader: IntegerReader, kinds: Collection[CodedKind], quantizers: int, limits: Limits
) -> tuple[Allocation, ...]:
    """Return the allocation tables of a rung: as many as the kinds name.

    Raises:
        FormatError: ``units``: Precisions do not ascend, or a quantizer or a weight is out of range;
            ``limit``: There are too many rows.
    """
    made: list[Allocation] = []
    total = 0
    for number in range(_tables_of(kinds)):
        count = reader.read(_ROWS)
        if count < 0:
            raise FormatError(mismatch(f"allocation table {number}", "a number of rows", count), code="units")
        total += count
        limits.require("rows", total, "allocation rows")
        rows: list[tuple[int, int, int]] = []
        before = (-1, -1, 0)
        steps = iter(reader.read_list([_PRECISION_STEP, _QUANTIZER_STEP, _WEIGHT_STEP] * count))
        for step, quantizer_step, weight_step in zip(steps, steps, steps, strict=True):
            precision, quantizer = before[0] + 1 + step, before[1] + 1 + quantizer_step
            before = precision, quantizer, before[2] + weight_step
            is_good = -1 <= quantizer < quantizers and 0 <= before[2] <= MAX_WEIGHT_CODE and abs(precision) <= _LARGEST
            if not is_good or (rows and precision <= rows[-1][0]):
                wanted = f"ascending precisions, quantizers below {quantizers}, and weights up to {MAX_WEIGHT_CODE}"
                raise FormatError(mismatch(f"allocation table {number}", wanted, before), code="units")
            rows.append(before)
        made.append(tuple(rows))
    return tuple(made)


def _tables_of(kinds: Iterable[CodedKind]) -> int:
    """Return the number of allocation tables that kinds name."""
    return 1 + max((side.table for kind in kinds for side in kind.sides), default=-1)


def write_exponents(writer: IntegerWriter, exponents: Sequence[tuple[int, ...]]) -> None:
    """Write the exponents of the sides of each record.

    Raises:
        EncodeError: ``overflow``: An exponent is out of range.
    """
    last = [0, 0]
    for own in exponents:
        for side, exponent in enumerate(own):
            if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
                message = (
                    f"the weights are too {'large' if exponent > 0 else 'small'}: factors have 16 bits and an exponent "
                    f"from {MIN_EXPONENT} to {MAX_EXPONENT}, and these need {exponent}"
                )
                raise EncodeError(message, code="overflow")
            writer.write(_EXPONENT, exponent - last[side])
            last[side] = exponent


def read_exponents(reader: IntegerReader, records: Sequence[CodedRecord]) -> tuple[tuple[int, ...], ...]:
    """Return the exponents of the sides of each record. Raises FormatError ``units`` if one is out of range."""
    sides = np.array([len(record.kind.sides) for record in records], np.int64)
    gaps = reader.read_many(np.full(int(sides.sum()), _EXPONENT))
    ends = sides.cumsum()
    is_second = np.zeros(len(gaps), bool)
    is_second[ends[sides == 2] - 1] = True
    values = np.empty_like(gaps)
    values[is_second], values[~is_second] = gaps[is_second].cumsum(), gaps[~is_second].cumsum()
    (wrong,) = ((values < MIN_EXPONENT) | (values > MAX_EXPONENT)).nonzero()
    if len(wrong):
        name = records[int(ends.searchsorted(wrong[0], side="right"))].name
        wanted = f"{MIN_EXPONENT} to {MAX_EXPONENT}"
        raise FormatError(mismatch(f"exponent of {name}", wanted, int(values[wrong[0]])), code="units")
    listed = values.tolist()
    return tuple(tuple(listed[end - count : end]) for end, count in zip(ends.tolist(), sides.tolist(), strict=True))
