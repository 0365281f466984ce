"""QuantizedForm form -> material: the component form, each singular component a pair of vectors of its own, and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array, SymbolArray
from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.encoder.content import MadeOnDemand, FileContent
from nola_codec.fit.allocation import P_LOW, RatePlan, coder_class, rate_table, precision_shift, precision_shifts
from nola_codec.fit.canonical_form import CanonicalForm, roles_of
from nola_codec.fit.quantize import QuantizedForm
from nola_codec.model.adapter import Codable, LoraModule
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord, LowRankKind, LowRankRecord, VectorKind, VectorRecord
from nola_codec.quant.scales import MAX_CODE, MIN_CODE
from nola_codec.stores.dtypes import coded_dtype

_GAP = 127
"""Widest difference from a prediction that a units section can say."""


def spread(
    items: Sequence[Codable], streams: Sequence[int], form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm, basis: int
) -> FileContent:
    """Lay quantized units out as records.

    A unit's amplitude is rounded to a sixteenth of an octave around a prediction from its precision; the prediction's
    constants are fitted here (medians), by kind and by entry of lora_B's allocation.
    """
    tables = _Tables(form, plan, quantized)
    kinds = [_kind(item, basis, tables.numbers) for item in items]
    slope, constants, amplitudes, offsets = _predict(quantized, form, kinds, tables)
    own = units_of_records(quantized, form, len(items))
    rungs = range(quantized.rungs)
    records = [
        [
            _record(
                item.name,
                replace(kind, amplitude=constants[kind]),
                stream,
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
            quantized.squares[rung][: len(kind.vector_lengths), units[quantized.entry[units] <= rung]].reshape(-1)
            for kind, units in zip(kinds, own, strict=True)
        )
        for rung in rungs
    ]
    lean = replace(form, matrices=({}, {}))  # without the coefficients' memory
    return FileContent(
        tuple(tuple(r) for r in records),
        tuple(MadeOnDemand(len(own), partial(_symbols, lean, quantized, own, rung)) for rung in rungs),
        tuple(squares),
        quantized.quantizers,
        [tables.allocation(rung, offsets) for rung in rungs],
        slope,
    )


def units_of_records(quantized: QuantizedForm, form: CanonicalForm, records: int) -> list[Int64Array]:
    """Positions of the kept units of each record: those that come in first, and of these the strongest, first."""
    order = np.lexsort((form.component[quantized.kept], quantized.entry, form.record[quantized.kept]))
    bounds = np.searchsorted(form.record[quantized.kept][order], np.arange(records + 1))
    return [order[a:b] for a, b in pairwise(bounds)]


def _record(name: str, kind: CodedKind, stream: int, *units: Int64Array) -> CodedRecord:
    if isinstance(kind, LowRankKind):
        return LowRankRecord(name, kind, stream, (0, 0), *units)
    return VectorRecord(name, kind, stream, (0,), *units)


def _symbols(form: CanonicalForm, quantized: QuantizedForm, own: Sequence[Int64Array], rung: int, index: int) -> SymbolArray:
    """SymbolArray of one record in one rung's block, in the order of `coded_layers`."""
    parts = []
    for side in (0, 1):
        for unit in own[index].tolist():
            entry = int(quantized.entry[unit])
            layers = range(rung + 1) if entry == rung else (rung,) if entry < rung else ()
            coded = [layer for layer in layers if quantized.quantizer[layer, side, unit] >= 0]
            parts += [quantized.symbols(form, layer, side, unit) for layer in coded]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _kind(item: Codable, basis: int, numbers: dict[tuple[int, int], int]) -> CodedKind:
    template, _ = split_name(item.name)
    tables = [numbers[r, coder_class(r, n)] for r, n in zip(roles_of(item), item.vector_lengths, strict=False)]
    if not isinstance(item, LoraModule):
        length = item.values.size
        return VectorKind(
            template=template,
            dtype=coded_dtype(item.dtype),
            shape=item.values.shape,
            basis=basis_by_id(basis).id,
            num_basis=(length,),
            tables=(tables[0],),
            shift=(precision_shift(length),),
        )
    module, (rows, columns) = item, item.vector_lengths
    return LowRankKind(
        template=template,
        layout=module.layout,
        b_shape=module.b_shape,
        a_shape=module.a_shape,
        scaling=module.scaling,
        fan_in_fan_out=module.fan_in_fan_out,
        dtype=coded_dtype(module.dtype),
        basis=basis_by_id(basis).id,
        split="component",
        num_basis=(rows, columns),
        tables=(tables[0], tables[1]),
        shift=(precision_shift(rows), precision_shift(columns)),
    )


class _Tables:
    """Allocation tables: one for each role and class of lengths.

    Attributes:
        numbers: Table number of each (role, coder class).
        place: int64 (2, kept): precision with which each unit looks its table up.
        table: int64 (2, kept): number of that table, -1 on a side that the unit has not.
    """

    def __init__(self, form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm) -> None:
        groups = [group for side in (0, 1) for group in form.groups(side, np.arange(form.units))]
        classes = sorted({(role, coder_class(role, length)) for role, length, _ in groups})
        self.numbers = {pair: number for number, pair in enumerate(classes)}
        lengths = form.lengths[:, quantized.kept]
        self.place = quantized.precision[None, :] + precision_shifts(np.maximum(lengths, 1))
        self.table = np.full(lengths.shape, -1, np.int64)
        for side in (0, 1):
            for role, length, own in form.groups(side, quantized.kept):
                self.table[side, own] = self.numbers[role, coder_class(role, length)]
        self._quantized = quantized
        # Entries: a new one wherever the chain of coders changes, over the precisions that occur.
        self.starts: list[list[int]] = []
        for number, (role, stride) in enumerate(classes):
            used = self.place[self.table == number]
            low, high = (int(used.min()), int(used.max())) if used.size else (0, 0)
            chains = rate_table(plan.objectives, role, stride, plan.steps).coder.T
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
    quantized: QuantizedForm, form: CanonicalForm, kinds: Sequence[CodedKind], tables: _Tables
) -> tuple[int, dict[CodedKind, int], Int64Array, dict[tuple[int, int, int], int]]:
    """Slope, constant of each kind, rounded amplitudes (rungs, kept), offsets of lora_B's entries by rung."""
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    family = np.array([numbers[k] for k in kinds], np.int64)[form.record[quantized.kept]]
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
    quantized: QuantizedForm, family: Int64Array, ids: Int64Array, families: int, entries: int
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
