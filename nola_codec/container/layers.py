"""The layers of a block: which quantizer codes which vector, as precisions and allocation tables say.

A unit's precision is looked up in the allocation table of its side. The row that is found names a quantizer, or none,
and the weight of its points. At a later rung another table adds a layer to a vector, whose points are added to those
before (specification, "Units sections").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nola_codec.array_types import Int64Array
from nola_codec.errors import FormatError
from nola_codec.lazy import numpy as np
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import layer_weight

_SPAN = 1 << 20
"""More than any two precisions differ, with the shifts of sides."""
Allocations = Sequence[tuple[Allocation, ...]]
"""The allocation tables of each rung."""


class Layers(NamedTuple):
    """The layers of some vectors, in the order of their symbols in a block.

    Attributes:
        vectors: The number of each layer's vector, int64 (layers,): on its side, or among those of all sides.
        quantizers: The number of its quantizer, int64 (layers,).
        weights: The factor on the points of the quantizer, int64 (layers,).
    """

    vectors: Int64Array
    quantizers: Int64Array
    weights: Int64Array


class BlockLayers(NamedTuple):
    """The layers of all sides of several records, in the order of their symbols in a block.

    Sides are counted through: those of the first record, then those of the second, and so on.

    Attributes:
        sides: The number of each layer's side, int64 (layers,), ascending.
        own: The layers; vectors are counted on their side.
    """

    sides: Int64Array
    own: Layers


def look_up(allocation: Allocation, precision: int) -> tuple[int, int]:
    """Return (quantizer id or -1, code of the weight) for a precision.

    Raises:
        FormatError: ``units``: The precision lies under the first entry.
    """
    index = bisect_right(allocation, precision, key=lambda entry: entry[0]) - 1
    if index < 0:
        raise FormatError(f"allocation: no quantizer for precision {precision}", code="units")
    return allocation[index][1:]


class _Same:
    """A key that is equal to itself alone, since hashing a table takes as long as reading it."""

    def __init__(self, table: Allocation) -> None:
        self.table = table

    def __hash__(self) -> int:
        return id(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.table is other.table


@lru_cache(maxsize=1024)
def _joined_tables(tables: tuple[_Same, ...]) -> tuple[Int64Array, Int64Array]:
    """Return allocation tables side by side, and the first row of each, int64 (tables,).

    The tables are int64 (3, rows): precisions, quantizers, weights of layers. To the precisions of table i, i times
    `_SPAN` is added, so that all of them ascend.
    """
    counts = [len(same.table) for same in tables]
    rows = [row for same in tables for row in same.table]
    joined = np.ascontiguousarray(np.array(rows, np.int64).reshape(-1, 3).T)
    joined[0] += np.arange(len(tables)).repeat(counts) * _SPAN
    joined[2] = [layer_weight(row[2]) for row in rows]
    return joined, np.cumsum([0, *counts[:-1]])


def look_up_all(tables: Sequence[Allocation], numbers: Int64Array, precisions: Int64Array) -> Int64Array:
    """Look up precisions, each in one of several allocation tables.

    Args:
        tables: The tables.
        numbers: The number of the table for each precision, int64 (precisions,).
        precisions: int64 (precisions,).

    Returns:
        For each precision the row that is found, int64 (3, precisions); see `_joined_tables`.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its table.
    """
    joined, firsts = _joined_tables(tuple(map(_Same, tables)))
    places = joined[0].searchsorted(precisions + numbers * _SPAN, side="right") - 1
    (wrong,) = (places < firsts[numbers]).nonzero()
    if len(wrong):
        look_up(tables[int(numbers[wrong[0]])], int(precisions[wrong[0]]))
    return np.asarray(joined[:, places])


def coded_layers(record: CodedRecord, allocations: Allocations, rung: int, side: int) -> Layers:
    """Return the layers of a record's side that the block of a rung holds, in order.

    The block holds the layers of all rungs so far for a unit that starts at this rung, and the layer of this rung for
    the other units. The layers of one unit follow each other.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its allocation table.
    """
    own = record.kind.sides[side]
    units = record.kind.side_units(side, record.units)
    part = slice(units.start, units.stop)
    return _find_layers(record.precision[part] + own.shift, record.entry[part], own.table, allocations, rung)


def block_layers(records: Sequence[CodedRecord], allocations: Allocations, rung: int) -> BlockLayers:
    """Return what `coded_layers` returns for all sides of several records; the records of a kind go together.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its allocation table.
    """
    first_sides = np.cumsum([0, *(len(record.kind.sides) for record in records)])
    sides, parts = [np.zeros(0, np.int64)], [Layers(*[np.zeros(0, np.int64)] * 3)]
    for family in group_by_kind(records):
        owners = first_sides[family.owners]
        for number, own in enumerate(family.kind.sides):
            rows, vectors = family.vectors(number)
            found = _find_layers(family.precision[rows] + own.shift, family.entry[rows], own.table, allocations, rung)
            sides.append(owners[rows][found.vectors] + number)
            parts.append(found._replace(vectors=vectors[found.vectors]))
    joined = np.concatenate(sides)
    order = joined.argsort(kind="stable")  # each side has its layers in order already
    return BlockLayers(joined[order], Layers(*(np.concatenate(each)[order] for each in zip(*parts, strict=True))))


@dataclass(frozen=True)
class Family:
    """The units of all records of one kind, in arrays: those of the first record, then those of the second, and so on.

    Attributes:
        kind: The kind.
        owners: The number of the record of each unit, int64 (units,).
        units: The number of each unit in its record, int64 (units,).
        counts: The number of units of its record, int64 (units,).
        places: The place of each unit among the units of all records, int64 (units,).
        entry: As in `CodedRecord`, int64 (units,).
        precision: As in `CodedRecord`, int64 (units,).
        amplitude: As in `CodedRecord`, int64 (units,).
    """

    kind: CodedKind
    owners: Int64Array
    units: Int64Array
    counts: Int64Array
    places: Int64Array
    entry: Int64Array
    precision: Int64Array
    amplitude: Int64Array

    def vectors(self, side: int) -> tuple[Int64Array, Int64Array]:
        """Return the places of the units that have a vector on a side, and the numbers of the vectors, int64 each."""
        if self.kind.split == "component":
            return np.arange(len(self.units)), self.units
        shares = self.counts // len(self.kind.sides)
        vectors = self.units - side * shares
        (rows,) = ((vectors >= 0) & (vectors < shares)).nonzero()
        return rows, vectors[rows]


def group_by_kind(records: Sequence[CodedRecord]) -> list[Family]:
    """Return the families of records. Records belong together if their kinds are the same object."""
    starts = np.cumsum([0, *(record.units for record in records)])
    members: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        members.setdefault(id(record.kind), []).append(number)
    families = []
    for numbers in members.values():
        own = [records[number] for number in numbers]
        counts = np.array([record.units for record in own], np.int64)
        units = count_within(counts)
        families.append(
            Family(
                own[0].kind,
                np.array(numbers, np.int64).repeat(counts),
                units,
                counts.repeat(counts),
                starts[numbers].repeat(counts) + units,
                np.concatenate([record.entry for record in own]),
                np.concatenate([record.precision for record in own]),
                np.concatenate([record.amplitude for record in own]),
            )
        )
    return families


def count_within(counts: Int64Array) -> Int64Array:
    """Return 0, 1, ... for each count, one after the other: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = counts.cumsum()
    return np.asarray(np.arange(int(counts.sum())) - (ends - counts).repeat(counts))


def _find_layers(precision: Int64Array, entry: Int64Array, table: int, allocations: Allocations, rung: int) -> Layers:
    """Return the layers of vectors by their precisions, with the shift of the side, and by the rungs of their units."""
    if len(allocations) == 1:  # nearly every file: each unit starts here, and has one layer or none
        rows, numbers = np.arange(len(entry)), np.zeros(len(entry), np.int64)
    else:
        fresh = entry == rung
        counts = np.where(fresh, rung + 1, entry < rung)
        rows = np.arange(len(entry)).repeat(counts)
        numbers = np.where(fresh[rows], count_within(counts), rung)
    found = look_up_all([tables[table] for tables in allocations[: rung + 1]], numbers, precision[rows])
    (kept,) = (found[1] >= 0).nonzero()
    return Layers(rows[kept], found[1, kept], found[-1, kept])
