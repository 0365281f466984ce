"""The layers of a block: which quantizer codes which vector, as precisions and allocation tables say.

A unit's precision is looked up in the allocation table of its side. The row that is found names a quantizer, or none,
and the weight of its points. At a later rung another table adds a layer to a vector, whose points are added to those
before (specification, "Units sections").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_codec.array_types import Int64Array
from nola_codec.errors import FormatError
from nola_codec.lazy import numpy as np
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import layer_weight

if TYPE_CHECKING:
    import numpy.typing as npt

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
    tables = np.full(len(units), own.table)
    return _find_layers(record.precision[part] + own.shift, record.entry[part], tables, allocations, rung)


def block_layers(records: Sequence[CodedRecord], allocations: Allocations, rung: int) -> BlockLayers:
    """Return what `coded_layers` returns for all sides of several records, in one look-up.

    Raises:
        FormatError: ``units``: A precision lies under the first entry of its allocation table.
    """
    units = join_units(records)
    vectors = units.vectors
    found = _find_layers(
        units.precision[vectors.units] + vectors.shifts,
        units.entry[vectors.units],
        vectors.tables,
        allocations,
        rung,
    )
    return BlockLayers(vectors.sides[found.vectors], found._replace(vectors=vectors.numbers[found.vectors]))


class UnitVectors(NamedTuple):
    """The vectors of several records: those of the first side of the first record, then those of its second side.

    Attributes:
        sides: The number of each vector's side, counted through as in `BlockLayers`, int64 (vectors,).
        numbers: The number of the vector on its side, int64 (vectors,).
        units: The number of its unit among the units of all records, int64 (vectors,).
        tables, shifts: The table and the shift of its side, int64 (vectors,) each.
        firsts: True for the first vector of a unit, bool (vectors,).
    """

    sides: Int64Array
    numbers: Int64Array
    units: Int64Array
    tables: Int64Array
    shifts: Int64Array
    firsts: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JoinedUnits(Sequence[CodedRecord]):
    """Several records, with their units side by side: those of the first record, then those of the second, and so on.

    Attributes:
        records: The records.
        kinds: Their distinct kinds; two are distinct if they are not the same object.
        kind_numbers: The number of the kind of each record, int64 (records,).
        counts: The number of units of each record, int64 (records,).
        entry, precision, amplitude: As in `CodedRecord`, int64 (units,) each.
    """

    records: Sequence[CodedRecord]
    kinds: Sequence[CodedKind]
    kind_numbers: Int64Array
    counts: Int64Array
    entry: Int64Array
    precision: Int64Array
    amplitude: Int64Array

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def of_kinds(self, values: Sequence[int]) -> Int64Array:
        """Return a number of each kind as a number of each unit, int64 (units,)."""
        return np.array(values, np.int64)[self.kind_numbers].repeat(self.counts)

    @cached_property
    def side_counts(self) -> Int64Array:
        """The number of sides of each record, int64 (records,)."""
        return np.array([len(kind.sides) for kind in self.kinds], np.int64)[self.kind_numbers]

    @cached_property
    def side_numbers(self) -> Int64Array:
        """The number of each side in its record, int64 (sides,)."""
        return count_within(self.side_counts)

    def side_owner(self, side: int) -> CodedRecord:
        """Return the record of a side, by the number of the side among all."""
        return self.records[int(self.side_counts.cumsum().searchsorted(side, side="right"))]

    def unit_owner(self, unit: int) -> CodedRecord:
        """Return the record of a unit, by the number of the unit among all."""
        return self.records[int(self.counts.cumsum().searchsorted(unit, side="right"))]

    @cached_property
    def side_rows(self) -> Int64Array:
        """The number of each side among the sides of all kinds, int64 (sides,)."""
        firsts = np.cumsum([0, *(len(kind.sides) for kind in self.kinds)])[self.kind_numbers]
        return firsts.repeat(self.side_counts) + self.side_numbers

    @cached_property
    def vector_counts(self) -> Int64Array:
        """The number of vectors of each side, int64 (sides,)."""
        shares = np.array([1 if k.split == "component" else len(k.sides) for k in self.kinds], np.int64)
        return (self.counts // shares[self.kind_numbers]).repeat(self.side_counts)

    @cached_property
    def vectors(self) -> UnitVectors:
        """The vectors of all sides."""
        sides = [side for kind in self.kinds for side in kind.sides]
        is_shared = np.array([kind.split == "component" for kind in self.kinds], bool)[self.kind_numbers]
        before = np.where(is_shared.repeat(self.side_counts), 0, self.side_numbers * self.vector_counts)
        firsts = (self.counts.cumsum() - self.counts).repeat(self.side_counts) + before
        numbers = count_within(self.vector_counts)
        rows = self.side_rows.repeat(self.vector_counts)
        return UnitVectors(
            np.arange(len(self.vector_counts)).repeat(self.vector_counts),
            numbers,
            firsts.repeat(self.vector_counts) + numbers,
            np.array([side.table for side in sides], np.int64)[rows],
            np.array([side.shift for side in sides], np.int64)[rows],
            (~is_shared.repeat(self.side_counts) | (self.side_numbers == 0)).repeat(self.vector_counts),
        )


def join_units(records: Sequence[CodedRecord]) -> JoinedUnits:
    """Return records with their units side by side; the same object if they are so already."""
    if isinstance(records, JoinedUnits):
        return records
    distinct: dict[int, int] = {}
    numbers = [distinct.setdefault(id(record.kind), len(distinct)) for record in records]
    kinds = list({id(record.kind): record.kind for record in records}.values())
    none = np.zeros(0, np.int64)
    return JoinedUnits(
        records,
        kinds,
        np.array(numbers, np.int64),
        np.array([len(record.precision) for record in records], np.int64),
        np.concatenate([none, *(record.entry for record in records)]),
        np.concatenate([none, *(record.precision for record in records)]),
        np.concatenate([none, *(record.amplitude for record in records)]),
    )


def count_within(counts: Int64Array) -> Int64Array:
    """Return 0, 1, ... for each count, one after the other: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = counts.cumsum()
    return np.asarray(np.arange(int(counts.sum())) - (ends - counts).repeat(counts))


def _find_layers(
    precision: Int64Array, entry: Int64Array, tables: Int64Array, allocations: Allocations, rung: int
) -> Layers:
    """Return the layers of vectors.

    Args:
        precision: The precision of each vector, with the shift of its side, int64 (vectors,).
        entry: The rung at which its unit starts, int64 (vectors,).
        tables: The allocation table of its side, int64 (vectors,).
        allocations: As in `block_layers`.
        rung: As in `block_layers`.
    """
    steps = allocations[: rung + 1]
    if rung == 0 and len(allocations) == 1:  # nearly every file: each unit starts here, and has one layer or none
        rows, numbers = np.arange(len(entry)), tables
    else:
        fresh = entry == rung
        counts = np.where(fresh, rung + 1, entry < rung)
        rows = np.arange(len(entry)).repeat(counts)
        firsts = np.cumsum([0, *(len(step) for step in steps)])
        numbers = firsts[np.where(fresh[rows], count_within(counts), rung)] + tables[rows]
    found = look_up_all([table for step in steps for table in step], numbers, precision[rows])
    (kept,) = (found[1] >= 0).nonzero()
    return Layers(rows[kept], found[1, kept], found[-1, kept])
