"""Quantized bank -> material: the component form, each singular component a pair of vectors of its own, and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array, SymbolArray
from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.encoder.material import MadeOnDemand, Material
from nola_codec.fit.allocation import P_LOW, Plan, coder_class, ladder, precision_shift, precision_shifts
from nola_codec.fit.bank import Bank, roles_of
from nola_codec.fit.quantize import Quantized
from nola_codec.model.adapter import Codable
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord, coded_sides
from nola_codec.quant.scales import MAX_CODE, MIN_CODE
from nola_codec.stores.dtypes import coded_dtype

_GAP = 127
"""Widest difference from a prediction that a units section can say."""


def spread(
    items: Sequence[Codable], streams: Sequence[int], bank: Bank, plan: Plan, quantized: Quantized, basis: int
) -> Material:
    """Lay quantized units out as records.

    A unit's amplitude is rounded to a sixteenth of an octave around a prediction from its precision; the prediction's
    constants are fitted here (medians), by kind and by entry of lora_B's allocation.
    """
    tables = _Tables(bank, plan, quantized)
    kinds = [_kind(item, basis, tables.numbers) for item in items]
    slope, constants, amplitudes, offsets = _predict(quantized, bank, kinds, tables)
    own = units_of_records(quantized, bank, len(items))
    rungs = range(quantized.rungs)
    records = [
        [
            CodedRecord(
                item.name,
                replace(kind, amplitude=constants[kind]),
                stream,
                (0,) * len(kind.sides),
                quantized.entry[units[quantized.entry[units] <= rung]],
                quantized.precision[units[quantized.entry[units] <= rung]],
                amplitudes[rung, units[quantized.entry[units] <= rung]],
            )
            for item, kind, stream, units in zip(items, kinds, streams, own, strict=True)
        ]
        for rung in rungs
    ]
    squares = [
        tuple(
            quantized.squares[rung][: len(kind.sides), units[quantized.entry[units] <= rung]].reshape(-1)
            for kind, units in zip(kinds, own, strict=True)
        )
        for rung in rungs
    ]
    lean = replace(bank, matrices=({}, {}))  # without the coefficients' memory
    return Material(
        tuple(tuple(r) for r in records),
        tuple(MadeOnDemand(len(own), partial(_symbols, lean, quantized, own, rung)) for rung in rungs),
        tuple(squares),
        quantized.quantizers,
        [tables.allocation(rung, offsets) for rung in rungs],
        slope,
    )


def units_of_records(quantized: Quantized, bank: Bank, records: int) -> list[Int64Array]:
    """Positions of the kept units of each record: those that come in first, and of these the strongest, first."""
    order = np.lexsort((bank.component[quantized.kept], quantized.entry, bank.record[quantized.kept]))
    bounds = np.searchsorted(bank.record[quantized.kept][order], np.arange(records + 1))
    return [order[a:b] for a, b in pairwise(bounds)]


def _symbols(bank: Bank, quantized: Quantized, own: Sequence[Int64Array], rung: int, index: int) -> SymbolArray:
    """SymbolArray of one record in one rung's block, in the order of `coded_layers`."""
    parts = []
    for side in (0, 1):
        for unit in own[index].tolist():
            entry = int(quantized.entry[unit])
            layers = range(rung + 1) if entry == rung else (rung,) if entry < rung else ()
            coded = [layer for layer in layers if quantized.quantizer[layer, side, unit] >= 0]
            parts += [quantized.symbols(bank, layer, side, unit) for layer in coded]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _kind(item: Codable, basis: int, numbers: dict[tuple[int, int], int]) -> CodedKind:
    template, _ = split_name(item.name)
    tables = [numbers[r, coder_class(r, n)] for r, n in zip(roles_of(item), item.vector_lengths, strict=False)]
    return CodedKind(
        template=template,
        layout=item.layout,
        scaling=item.scaling,
        fan_in_fan_out=item.fan_in_fan_out,
        dtype=coded_dtype(item.dtype),
        basis=basis_by_id(basis).id,
        sides=coded_sides(item.stored_shapes, tables=tables, shifts=[precision_shift(n) for n in item.vector_lengths]),
    )


class _Tables:
    """Allocation tables: one for each role and class of lengths.

    Attributes:
        numbers: Table number of each (role, coder class).
        place: int64 (2, kept): precision with which each unit looks its table up.
        table: int64 (2, kept): number of that table, -1 on a side that the unit has not.
    """

    def __init__(self, bank: Bank, plan: Plan, quantized: Quantized) -> None:
        groups = [group for side in (0, 1) for group in bank.groups(side, np.arange(bank.units))]
        classes = sorted({(role, coder_class(role, length)) for role, length, _ in groups})
        self.numbers = {pair: number for number, pair in enumerate(classes)}
        lengths = bank.lengths[:, quantized.kept]
        self.place = quantized.precision[None, :] + precision_shifts(np.maximum(lengths, 1))
        self.table = np.full(lengths.shape, -1, np.int64)
        for side in (0, 1):
            for role, length, own in bank.groups(side, quantized.kept):
                self.table[side, own] = self.numbers[role, coder_class(role, length)]
        self._quantized = quantized
        # Entries: a new one wherever the chain of coders changes, over the precisions that occur.
        self.starts: list[list[int]] = []
        for number, (role, stride) in enumerate(classes):
            used = self.place[self.table == number]
            low, high = (int(used.min()), int(used.max())) if used.size else (0, 0)
            chains = ladder(plan.objectives, role, stride, plan.steps).coder.T
            inside = np.clip(np.arange(low, high + 1) - P_LOW, 0, len(chains) - 1)
            changes = [low + i for i in range(1, len(inside)) if (chains[inside[i]] != chains[inside[i - 1]]).any()]
            self.starts.append([low, *changes])

    def entry(self, side: int) -> tuple[Int64Array, Int64Array]:
        """(table, entry) of each kept unit."""
        entries = np.zeros(self.place.shape[1], np.int64)
        for number, starts in enumerate(self.starts):
            own = self.table[side] == number
            entries[own] = np.searchsorted(starts, self.place[side, own], side="right") - 1
        return self.table[side], entries

    def allocation(self, rung: int, offsets: dict[tuple[int, int, int], int]) -> tuple[Allocation, ...]:
        """The tables of a rung; entries equal to the one before are left out."""
        layers: dict[tuple[int, int], tuple[int, int]] = {}
        for side in (0, 1):
            table, entry = self.entry(side)
            quantizer, weight = self._quantized.quantizer[rung, side], self._quantized.weight[rung, side]
            for pair, q, w in zip(
                zip(table.tolist(), entry.tolist(), strict=True), quantizer.tolist(), weight.tolist(), strict=True
            ):
                if pair[0] >= 0:
                    layers[pair] = (q, w if q >= 0 else 0)
        made: list[Allocation] = []
        for number, starts in enumerate(self.starts):
            rows: list[tuple[int, int, int, int]] = []
            for index, start in enumerate(starts):
                if (number, index) not in layers:
                    continue
                quantizer, weight = layers[number, index]
                offset = offsets.get((rung, number, index), 0)
                if not rows or rows[-1][1:] != (quantizer, offset, weight):
                    rows.append((start, quantizer, offset, weight))
            made.append(tuple(rows))
        return tuple(made)


def _predict(
    quantized: Quantized, bank: Bank, kinds: Sequence[CodedKind], tables: _Tables
) -> tuple[int, dict[CodedKind, int], Int64Array, dict[tuple[int, int, int], int]]:
    """Slope, constant of each kind, rounded amplitudes (rungs, kept), offsets of lora_B's entries by rung."""
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    family = np.array([numbers[k] for k in kinds], np.int64)[bank.record[quantized.kept]]
    table, entry = tables.entry(0)
    pairs = sorted(set(zip(table.tolist(), entry.tolist(), strict=True)))
    index = {pair: i for i, pair in enumerate(pairs)}
    ids = np.array([index[p] for p in zip(table.tolist(), entry.tolist(), strict=True)], np.int64)
    slope, constants, offsets = _fit_first(quantized, family, ids, len(numbers), len(pairs))
    amplitudes = np.zeros((quantized.rungs, len(ids)), np.int64)
    said = {(0, *pair): int(offsets[i]) for pair, i in index.items()}
    reached = offsets[ids]
    for rung in range(quantized.rungs):
        fresh, old = quantized.entry == rung, quantized.entry < rung
        moved = old & (quantized.quantizer[rung] >= 0).any(axis=0)
        base = np.where(fresh, slope * quantized.precision + constants[family] + reached, amplitudes[max(rung - 1, 0)])
        if rung:
            step = np.rint(_medians((quantized.amplitude[rung] - base)[fresh | moved], ids[fresh | moved], len(pairs)))
            said |= {(rung, *pair): int(step[i]) for pair, i in index.items()}
            base = base + step[ids]
            reached = reached + step[ids]
        codes = np.clip(np.rint(quantized.amplitude[rung]), base - _GAP, base + _GAP)
        codes = np.clip(codes, MIN_CODE, MAX_CODE).astype(np.int64)
        amplitudes[rung] = np.where(fresh | moved, codes, amplitudes[max(rung - 1, 0)])
    return slope, {kind: int(constants[number]) for kind, number in numbers.items()}, amplitudes, said


def _fit_first(
    quantized: Quantized, family: Int64Array, ids: Int64Array, families: int, entries: int
) -> tuple[int, Int64Array, Int64Array]:
    """Slope, constants and offsets that best predict the amplitudes with which units come in, at whatever rung."""
    exact, precision = quantized.amplitude[quantized.entry, np.arange(len(ids))], quantized.precision
    own, pair = family, ids
    best: tuple[float, int, Int64Array, Int64Array] | None = None
    for slope in (2, 0, -2):
        rest = exact - slope * precision
        constants, offsets = np.zeros(families), np.zeros(entries)
        for _ in range(3):
            constants = _medians(rest - offsets[pair], own, families)
            offsets = _medians(rest - constants[own], pair, entries)
        whole = np.rint(constants).astype(np.int64), np.rint(offsets).astype(np.int64)
        misfit = float(np.abs(rest - whole[0][own] - whole[1][pair]).sum())
        if best is None or misfit < best[0]:
            best = (misfit, slope, *whole)
    assert best is not None
    return best[1:]


def _medians(values: Float64Array, groups: Int64Array, count: int) -> Float64Array:
    return np.array([np.median(values[groups == g]) if (groups == g).any() else 0.0 for g in range(count)])
