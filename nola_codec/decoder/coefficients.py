"""Sections of coefficients -> integer points, record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.container.units import unit_quantizers
from nola_codec.entropy import decode_many
from nola_codec.model import Allocation, LowRankRecord, Quantizer, Runs


@dataclass(frozen=True)
class Coefficients:
    """Integer coefficients of one record: (units or 1, num_basis) for lora_B and lora_A, int32, and their bound."""

    b: npt.NDArray[np.int32]
    a: npt.NDArray[np.int32]
    peak: int


def record_runs(record: LowRankRecord, allocation: tuple[Allocation, Allocation]) -> Runs:
    """Runs of one record: a vector each, those of lora_B first."""
    ids_b, ids_a = unit_quantizers(record, allocation)
    lengths = np.repeat(np.array(record.kind.num_basis, np.int64), (len(ids_b), len(ids_a)))
    return Runs(np.concatenate((ids_b, ids_a)), lengths)


def block_runs(records: Sequence[LowRankRecord], allocation: tuple[Allocation, Allocation]) -> Runs:
    """Runs of a block: its records' one after the other."""
    parts = [record_runs(record, allocation) for record in records]
    return Runs(np.concatenate([p.models for p in parts]), np.concatenate([p.lengths for p in parts]))


class PointTable:
    """All codebooks end to end, so that one gather turns symbols of many quantizers into points."""

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        sizes = np.array([q.codebook.size for q in quantizers], np.int64)
        self._starts = np.cumsum(sizes) - sizes
        points = [p for q in quantizers for p in q.codebook.points]
        self._points = np.array(points if points else [0], np.int32)
        self._peaks = np.array([q.codebook.peak for q in quantizers], np.int64)

    def coefficients(
        self, record: LowRankRecord, symbols: npt.NDArray[Any], allocation: tuple[Allocation, Allocation]
    ) -> Coefficients:
        """Points of one record's symbols, which lie in the order of `record_runs`."""
        ids_b, ids_a = unit_quantizers(record, allocation)
        count_b, count_a = record.kind.num_basis
        cut = len(ids_b) * count_b
        rows_b, rows_a = symbols[:cut].reshape(len(ids_b), count_b), symbols[cut:].reshape(len(ids_a), count_a)
        used = np.concatenate((ids_b, ids_a))
        return Coefficients(
            self._points[rows_b + self._starts[ids_b][:, None].astype(np.int32)],
            self._points[rows_a + self._starts[ids_a][:, None].astype(np.int32)],
            int(self._peaks[used].max(initial=0)),
        )


def decode_symbols(
    coded: Sequence[tuple[int, bytes]],
    blocks: Sequence[Sequence[LowRankRecord]],
    quantizers: Sequence[Quantizer],
    allocation: tuple[Allocation, Allocation],
) -> list[npt.NDArray[Any]]:
    """Symbols of all the blocks' records, in order; views of their blocks' arrays.

    Args:
        coded: (codec id, stored bytes) of each block.
        blocks: The records of each block.
        quantizers: As in `Header`.
        allocation: As in `Header`.

    Raises:
        FormatError: damaged or inconsistent symbols.
    """
    runs = [block_runs(records, allocation) for records in blocks]
    streams = decode_many(coded, runs, [q.model for q in quantizers])
    results = []
    for records, symbols in zip(blocks, streams, strict=True):
        ends = np.cumsum([record_runs(record, allocation).total for record in records])
        results += np.split(symbols, ends[:-1])
    return results
