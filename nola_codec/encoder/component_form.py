"""Component form: turn a quantized canonical form into the content of a file.

Each singular component becomes a pair of vectors with a basis and a precision of its own. Each tensor that is coded as
a vector has a basis and a precision of its own as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.encoder.content import DraftSymbols, FileContent
from nola_codec.encoder.job import EncodeJob
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import (
    P_LOW,
    PRECISION_STEPS,
    RatePlan,
    coder_class,
    precision_shift,
    precision_shifts,
    rate_table,
)
from nola_codec.fit.canonical_form import CARRIED, CanonicalForm, roles_of
from nola_codec.fit.quantize import QuantizedForm
from nola_codec.model.adapter import Codable
from nola_codec.model.header import Allocation
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.quant.scales import MAX_CODE, MIN_CODE
from nola_codec.stores.dtypes import coded_dtype

_GAP = 127
"""The greatest difference between an amplitude and what those of its entry suggest."""
_LARGE_GAP = 5
"""The difference from which on an amplitude is only rounded: a smaller one would hardly save bits."""


def component_content(job: EncodeJob, form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm) -> FileContent:
    """Return the content of a file with the quantized units as records.

    Amplitudes are rounded to sixteenths of an octave, and written as differences from a prediction by the precision.
    The constants of the prediction are fitted here, by kind. The differences gather in groups, one for each entry of
    lora_B's allocation table, and few of them cost less; so an amplitude moves towards the median of its group where
    the bits that this saves are worth more than what it loses.

    The content reads its symbols from the levels of `quantized` at each access. It does not hold the matrices of
    `form`.
    """
    tables = _AllocationTables(form, plan, quantized)
    kinds = [
        _kind(item, job.basis, tables.numbers, is_difference=index in form.differences)
        for index, item in enumerate(job.items)
    ]
    worth = _worth_of_amplitudes(job, form, plan, quantized)
    amplitudes = _predict_amplitudes(job, quantized, form, kinds, tables, worth)
    units = units_of_records(quantized, form, len(job.items))
    lean = form.without_matrices()
    rungs, squares = [], []
    for rung in range(quantized.rungs):
        there = [own[quantized.entry[own] <= rung] for own in units]  # units of each record that the rung has
        rungs.append(
            tuple(
                CodedRecord(
                    item.name,
                    replace(kind, amplitude=amplitudes.constants[kind]),
                    stream,
                    (0,) * len(kind.sides),
                    quantized.entry[own],
                    quantized.precision[own],
                    amplitudes.codes[rung, own],
                )
                for item, kind, stream, own in zip(job.items, kinds, job.streams, there, strict=True)
            )
        )
        squares.append(
            tuple(
                quantized.squares[rung][: 1 if kind.split == "difference" else len(kind.sides), own].reshape(-1)
                for kind, own in zip(kinds, there, strict=True)
            )
        )
    return FileContent(
        rungs=tuple(rungs),
        symbols=tuple(DraftSymbols(quantized, lean, units, rung) for rung in range(quantized.rungs)),
        squares=tuple(squares),
        quantizers=quantized.quantizers,
        allocations=[tables.allocation(rung) for rung in range(quantized.rungs)],
        amplitude_slope=amplitudes.slope,
    )


def units_of_records(quantized: QuantizedForm, form: CanonicalForm, records: int) -> list[Int64Array]:
    """Return, for each record, the positions of its units among the kept units, by first rung and then by strength."""
    order = np.lexsort((form.component[quantized.kept], quantized.entry, form.record[quantized.kept]))
    bounds = np.searchsorted(form.record[quantized.kept][order], np.arange(records + 1))
    return [order[a:b] for a, b in pairwise(bounds)]


def amplitude_codes(quantized: QuantizedForm, form: CanonicalForm, records: Sequence[CodedRecord]) -> Int64Array:
    """Return the amplitude codes of all kept units from a rung's records, int64 (kept,); 0 before a unit starts."""
    codes = np.zeros(len(quantized.kept), np.int64)
    for units, record in zip(units_of_records(quantized, form, len(records)), records, strict=True):
        codes[units[: record.units]] = record.amplitude
    return codes


def _kind(item: Codable, basis: int, numbers: dict[tuple[int, int, bool], int], *, is_difference: bool) -> CodedKind:
    """Return the kind of an item's record; `numbers` are those of `_AllocationTables`."""
    template, _ = split_name(item.name)
    alone = is_difference or not item.is_pair
    tables = [numbers[r, coder_class(r, n), alone] for r, n in zip(roles_of(item), item.vector_lengths, strict=False)]
    split: Split = "difference" if is_difference else "component"
    return CodedKind(
        template=template,
        layout=item.layout,
        scaling=item.scaling,
        fan_in_fan_out=item.fan_in_fan_out,
        dtype=coded_dtype(item.dtype),
        basis=basis_by_id(basis).id,
        split=split,
        sides=coded_sides(
            item.stored_shapes, split, tables=tables, shifts=[precision_shift(n) for n in item.vector_lengths]
        ),
    )


class _AllocationTables:
    """The allocation tables of a file: one for each role and class of lengths, apart for units of one side.

    Attributes:
        numbers: The number of the table of each (role, coder class, True if the units have one side).
        place: int64 (2, kept): the shifted precision that is looked up in a table for each unit.
        table: int64 (2, kept): the number of that table, -1 on a side that the unit lacks.
        starts: For each table, the precisions at which its entries begin.
    """

    def __init__(self, form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm) -> None:
        groups = [group for side in (0, 1) for group in form.groups(side, np.arange(form.units))]
        alone = form.lengths[1] == 0
        classes = sorted(
            {(role, coder_class(role, length), one) for role, length, own in groups for one in set(alone[own].tolist())}
        )
        self.numbers = {each: number for number, each in enumerate(classes)}
        lengths = form.lengths[:, quantized.kept]
        self.place = quantized.precision[None, :] + precision_shifts(np.maximum(lengths, 1))
        self.table = np.full(lengths.shape, -1, np.int64)
        for side in (0, 1):
            for role, length, own in form.groups(side, quantized.kept):
                for one in set(alone[quantized.kept[own]].tolist()):
                    members = own[alone[quantized.kept[own]] == one]
                    self.table[side, members] = self.numbers[role, coder_class(role, length), one]
        self._quantized = quantized
        # A new entry begins at each precision in use at which the coders of the rungs change.
        self.starts: list[list[int]] = []
        for number, (role, stride, _) in enumerate(classes):
            used = self.place[self.table == number]
            low, high = (int(used.min()), int(used.max())) if used.size else (0, 0)
            chains = rate_table(plan.objectives, role, stride, plan.steps).coder.T
            inside = np.clip(np.arange(low, high + 1) - P_LOW, 0, len(chains) - 1)
            changes = [low + i for i in range(1, len(inside)) if (chains[inside[i]] != chains[inside[i - 1]]).any()]
            self.starts.append([low, *changes])

    def entry(self, side: int) -> tuple[Int64Array, Int64Array]:
        """Return the table and the entry of each kept unit on a side, int64 (kept,) both."""
        entries = np.zeros(self.place.shape[1], np.int64)
        for number, starts in enumerate(self.starts):
            own = self.table[side] == number
            entries[own] = np.searchsorted(starts, self.place[side, own], side="right") - 1
        return self.table[side], entries

    def allocation(self, rung: int) -> tuple[Allocation, ...]:
        """Return the tables of a rung, without entries that equal the one before."""
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
            rows: list[tuple[int, int, int]] = []
            for index, start in enumerate(starts):
                if (number, index) not in layers:
                    continue
                if not rows or rows[-1][1:] != layers[number, index]:
                    rows.append((start, *layers[number, index]))
            made.append(tuple(rows))
        return tuple(made)


@dataclass(frozen=True)
class _Amplitudes:
    """The rounded amplitudes of all units, and the constants that predict them.

    Attributes:
        slope: The number of codes that the prediction rises with each precision.
        constants: The constant of each kind.
        codes: int64 (rungs, kept): the rounded amplitudes.
    """

    slope: int
    constants: dict[CodedKind, int]
    codes: Int64Array


def _predict_amplitudes(
    job: EncodeJob,
    quantized: QuantizedForm,
    form: CanonicalForm,
    kinds: Sequence[CodedKind],
    tables: _AllocationTables,
    worth: Float64Array,
) -> _Amplitudes:
    """Fit the prediction of the amplitudes, and round every amplitude to a code near it.

    At the rung where a unit starts, the prediction is slope * precision + constant of the kind, and at a later rung it
    is the code before. The codes of units of one entry differ from it by about the same, since they have one quantizer.
    """
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    family = np.array([numbers[k] for k in kinds], np.int64)[form.record[quantized.kept]]
    table, entry = tables.entry(0)
    pairs = sorted(set(zip(table.tolist(), entry.tolist(), strict=True)))
    index = {pair: i for i, pair in enumerate(pairs)}
    ids = np.array([index[p] for p in zip(table.tolist(), entry.tolist(), strict=True)], np.int64)
    slope, constants, first = _fit_first(quantized, family, ids, len(numbers), len(pairs))
    codes = np.zeros((quantized.rungs, len(ids)), np.int64)
    reached = first[ids]
    for rung in range(quantized.rungs):
        fresh, old = quantized.entry == rung, quantized.entry < rung
        coded = fresh | (old & (quantized.quantizer[rung] >= 0).any(axis=0))
        base = np.where(fresh, slope * quantized.precision + constants[family] + reached, codes[max(rung - 1, 0)])
        if rung:
            step = np.rint(_medians((quantized.amplitude[rung] - base)[coded], ids[coded], len(pairs)))
            base = base + step[ids]
            reached = reached + step[ids]
        wanted = base + _cheap_gaps(quantized.amplitude[rung] - base, worth[rung])
        near = np.clip(wanted, MIN_CODE, MAX_CODE).astype(np.int64)
        _require_reach(job, form.record[quantized.kept[coded]], (wanted - near)[coded])
        codes[rung] = np.where(coded, near, codes[max(rung - 1, 0)])
    return _Amplitudes(slope, {kind: int(constants[number]) for kind, number in numbers.items()}, codes)


def _require_reach(job: EncodeJob, records: Int64Array, beyond: Float64Array) -> None:
    """Raise EncodeError ``overflow`` if an amplitude is far beyond those that a file can hold.

    Args:
        job: The encode.
        records: int64 (units,): the number of each unit's record.
        beyond: float64 (units,): how many codes are missing.
    """
    if len(beyond) and np.abs(beyond).max() > _GAP:
        worst = int(np.abs(beyond).argmax())
        size = "large" if beyond[worst] > 0 else "small"
        message = (
            f"its weights are too {size}, or spread over more orders of magnitude than a file can hold: an amplitude "
            f"is {abs(beyond[worst]):.0f} codes beyond those that there are; leave out the target, or scale the weights"
        )
        raise EncodeError(message, code="overflow", where=job.items[records[worst]].name)


def _worth_of_amplitudes(job: EncodeJob, form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm) -> Float64Array:
    """Return the squared strength of each unit that survives at each rung, in bits, float64 (rungs, kept).

    It is infinite where the plan does not price what is lost: for coded carried tensors, and for vectors that are
    trained on a task, whose amplitudes are trained too.
    """
    price = plan.lagrangian * 2.0 ** (-np.array(plan.steps) / (PRECISION_STEPS / 2))
    worth = (
        form.strength[quantized.kept] ** 2 * np.prod(quantized.survival, axis=1) / np.maximum(price, 1e-300)[:, None]
    )
    exact = (form.roles[0, quantized.kept] == CARRIED) | (job.options.tuner is not None)
    return np.where(exact, np.inf, worth)


def _cheap_gaps(exact: Float64Array, worth: Float64Array) -> Float64Array:
    """Return integers near the exact gaps between amplitudes and predictions that are cheap to write, float64 (kept,).

    Args:
        exact: float64 (kept,): the gaps, in codes.
        worth: float64 (kept,): the squared strength of each unit that survives, in bits; infinite to round and no more.
    """
    gap = np.clip(np.rint(exact), -_GAP, _GAP)
    best, least = gap, np.full(len(gap), np.inf)
    for distance in range(_LARGE_GAP):
        there = np.copysign(np.minimum(distance, np.abs(gap)), gap)
        bits = np.where(there == 0, 0.0, 1.5 + np.abs(there))
        with np.errstate(invalid="ignore"):  # an infinite worth of no loss
            cost = worth * (np.exp2((there - exact) / 16) - 1) ** 2 + bits
        better = cost < least
        best, least = np.where(better, there, best), np.where(better, cost, least)
    return np.where(np.isinf(worth) | (np.abs(gap) >= _LARGE_GAP), gap, best)


def _fit_first(
    quantized: QuantizedForm, family: Int64Array, ids: Int64Array, families: int, entries: int
) -> tuple[int, Int64Array, Int64Array]:
    """Return the slope, constants (families,) and offsets (entries,) that best predict the first amplitudes of units.

    Args:
        quantized: The units with their exact amplitudes.
        family: int64 (kept,): the number of each unit's kind.
        ids: int64 (kept,): the number of each unit's entry.
        families: The number of kinds.
        entries: The number of entries.
    """
    exact, precision = quantized.amplitude[quantized.entry, np.arange(len(ids))], quantized.precision
    best: tuple[float, int, Int64Array, Int64Array] | None = None
    for slope in (2, 0, -2):
        rest = exact - slope * precision
        constants, offsets = np.zeros(families), np.zeros(entries)
        for _ in range(3):
            constants = _medians(rest - offsets[ids], family, families)
            offsets = _medians(rest - constants[family], ids, entries)
        whole = np.rint(constants).astype(np.int64), np.rint(offsets).astype(np.int64)
        usual = int(whole[1][np.bincount(ids).argmax()]) if len(ids) else 0  # 0 costs least, so most units get it
        whole = whole[0] + usual, whole[1] - usual
        misfit = float(np.abs(rest - whole[0][family] - whole[1][ids]).sum())
        if best is None or misfit < best[0]:
            best = (misfit, slope, *whole)
    assert best is not None
    return best[1:]


def _medians(values: Float64Array, groups: Int64Array, count: int) -> Float64Array:
    """Return the median of each group of values, float64 (count,); 0 for an empty group."""
    counts = np.bincount(groups, minlength=count)
    ordered = np.append(values[np.lexsort((values, groups))], 0.0)  # so that an empty last group has a place to look at
    first = np.cumsum(counts) - counts
    middle = (ordered[first + np.maximum(counts - 1, 0) // 2] + ordered[first + counts // 2]) / 2
    return np.where(counts > 0, middle, 0.0)
