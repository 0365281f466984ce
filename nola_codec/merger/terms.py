"""The terms of a weight's delta: which deltas of which files are added to which parts of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.arithmetic.deltas import RowDelta, WeightedSum
from nola_codec.merger.arithmetic.parts import DeltaSlice, JoinedDelta, Region, region_shape, swap_last
from nola_codec.merger.merge_files import MergeFile


@dataclass(frozen=True)
class DeltaTerm:
    """One term of a weight's delta.

    Attributes:
        file: The number of the file.
        delta: The name of the delta in the file.
        transposed: True if the weight is stored (in, out).
        taken: The part of the delta that is added, in the delta's own orientation; empty if it is the whole.
        put: The part of the weight that it is added to; empty if it is the whole.
    """

    file: int
    delta: str
    transposed: bool
    taken: Region = ()
    put: Region = ()

    def as_json(self) -> list[Any]:
        """Return the term as it stands in an undo file."""
        row: list[Any] = [self.file, self.delta, self.transposed]
        return row if not self.taken and not self.put else [*row, list(self.taken), list(self.put)]

    @classmethod
    def parse(cls, value: Any) -> DeltaTerm:
        """Return the term of a list of an undo file.

        Raises:
            AdapterError: ``bad-undo``.
        """
        if not isinstance(value, list) or len(value) not in (3, 5):
            raise AdapterError(mismatch("term", "a list of 3 or 5", value), code="bad-undo")
        file, delta, transposed = value[:3]
        if type(file) is not int or not isinstance(delta, str) or not isinstance(transposed, bool):
            message = mismatch("term", "[file number, module, transposed]", value[:3])
            raise AdapterError(message, code="bad-undo")
        return cls(file, delta, transposed, *(_parse_region(each) for each in value[3:]))


def _parse_region(value: Any) -> Region:
    if not isinstance(value, list) or not all(
        isinstance(each, list) and len(each) == 2 and all(type(n) is int for n in each) for each in value
    ):
        raise AdapterError(mismatch("part", "a list of [start, stop]", value), code="bad-undo")
    return tuple((start, stop) for start, stop in value)


def sum_terms(files: Sequence[MergeFile], terms: Sequence[DeltaTerm], shape: tuple[int, ...]) -> RowDelta:
    """Return the delta of a weight of that shape: each term times its file's weight, added in order.

    The parts that one file adds are put together before they are multiplied.

    Raises:
        AdapterError: ``unmerge-files``: there is no such file, or it has no such delta; ``bad-shape``.
    """
    weighted: list[tuple[RowDelta, float]] = []
    joined: dict[int, list[tuple[Region, RowDelta]]] = {}
    for term in terms:
        if not 0 <= term.file < len(files):
            raise AdapterError(f"there is no file {term.file}", code="unmerge-files", where=term.delta)
        file = files[term.file]
        if not term.put:
            weighted.append((_open_term(file, term, shape), file.weight))
            continue
        if term.file not in joined:
            parts = joined[term.file] = []
            weighted.append((JoinedDelta(parts, shape), file.weight))
        part = _open_term(file, term, region_shape(term.put, shape))
        joined[term.file].append((term.put, part))
    return weighted[0][0] if len(weighted) == 1 and weighted[0][1] == 1 else WeightedSum(weighted)


def _open_term(file: MergeFile, term: DeltaTerm, shape: tuple[int, ...]) -> RowDelta:
    """Return the delta of a term as rows of a tensor of that shape."""
    whole = file.shape_of(term.delta)
    dimensions = len(whole) if not term.taken else min(len(whole), 2)
    while term.put and shape[0] == 1 and len(shape) > dimensions:
        shape = shape[1:]  # the delta of one expert lacks their dimension
    if not term.taken:
        return file.delta(term.delta, shape, term.transposed)
    region = (*term.taken, *((0, size) for size in whole[len(term.taken) :]))
    if term.transposed:
        whole, region = swap_last(whole), swap_last(region)
    region_shape(region, whole)
    return DeltaSlice(file.delta(term.delta, whole, term.transposed), region, shape)
