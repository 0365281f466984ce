"""Quantized bank -> material: the component form, each singular component a pair of vectors of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.encoder.material import MadeOnDemand, Material, Symbols
from nola_codec.fit.allocation import P_LOW, Plan, ladder, precision_shift
from nola_codec.fit.bank import Bank
from nola_codec.fit.quantize import Quantized
from nola_codec.model import Allocation, LoraModule, LowRankKind, LowRankRecord
from nola_codec.quant.scales import MAX_CODE, MIN_CODE

_GAP = 127  # widest difference from a prediction that section 0 can say


def spread(
    modules: Sequence[LoraModule], streams: Sequence[int], bank: Bank, plan: Plan, quantized: Quantized, basis: int
) -> Material:
    """Lay quantized units out as records.

    A unit's amplitude is rounded to a sixteenth of an octave around a prediction from its precision; the prediction's
    constants are fitted here (medians), by kind and by quantizer.
    """
    allocation, numbers = _allocation(plan, quantized)
    kinds = [_kind(module, basis) for module in modules]
    slope, amplitudes, constants, offsets = _predict(quantized, bank, kinds)
    allocation = (_with_offsets(allocation[0], offsets), allocation[1])
    by_module: list[list[int]] = [[] for _ in modules]
    for position, unit in enumerate(quantized.kept):
        by_module[int(bank.module[unit])].append(position)
    units = [np.array(positions, np.int64) for positions in by_module]
    records = [
        LowRankRecord(
            module.name,
            replace(kind, amplitude=constants[kind]),
            stream,
            (0, 0),
            quantized.precision[own],
            amplitudes[own],
        )
        for module, kind, stream, own in zip(modules, kinds, streams, units, strict=True)
    ]
    quantizers = tuple(quantized.quantizers[rung] for rung in numbers)
    return Material(
        tuple(records),
        _level_symbols(replace(bank, matrices=({}, {})), quantized, units),  # without the coefficients' memory
        tuple(q for q in quantizers if q is not None),
        allocation,
        slope,
    )


def _level_symbols(bank: Bank, quantized: Quantized, units: Sequence[npt.NDArray[np.int64]]) -> MadeOnDemand:
    """Symbols of each record, made of its units' levels."""
    halves = np.array([0 if q is None else q.codebook.size // 2 for q in quantized.quantizers], np.int16)

    def make(index: int) -> Symbols:
        own = units[index]
        if not len(own):
            return np.empty(0, np.uint8)
        kept = quantized.kept[own]
        parts = []
        for side in (0, 1):
            levels = quantized.levels[side][int(bank.lengths[side][kept[0]])][bank.rows[side][kept]]
            parts.append((levels + halves[quantized.rung[side][own]][:, None]).astype(np.uint8).reshape(-1))
        return np.concatenate(parts)

    return MadeOnDemand(len(units), make)


def _kind(module: LoraModule, basis: int) -> LowRankKind:
    rows, columns = module.lora_B.shape[0], module.lora_A.shape[1]
    template, _ = split_name(module.name)
    return LowRankKind(
        template=template,
        layout=module.layout,
        b_shape=module.b_shape,
        a_shape=module.a_shape,
        scaling=module.scaling,
        fan_in_fan_out=module.fan_in_fan_out,
        dtype=module.dtype,
        basis=basis_by_id(basis).id,
        split="component",
        num_basis=(rows, columns),
        shift=(precision_shift(rows), precision_shift(columns)),
    )


def _allocation(plan: Plan, quantized: Quantized) -> tuple[tuple[Allocation, Allocation], list[int]]:
    """Allocation tables with their used entries only, and the rungs that the file's quantizer ids stand for."""
    used = sorted({int(r) for r in np.unique(quantized.rung)})
    number = {rung: i for i, rung in enumerate(used)}
    tables: list[Allocation] = []
    for side in (0, 1):
        steps = ladder(plan.objective, side)
        needed = {int(r) for r in np.unique(quantized.rung[side])}
        entries: list[tuple[int, int, int]] = []
        for position, rung in enumerate(steps.rung.tolist()):
            if rung in needed and (not entries or entries[-1][1] != number[rung]):
                entries.append((position + P_LOW, number[rung], 0))
        tables.append(tuple(entries))
    return (tables[0], tables[1]), used


def _with_offsets(allocation: Allocation, offsets: dict[int, int]) -> Allocation:
    return tuple((precision, quantizer, offsets.get(quantizer, 0)) for precision, quantizer, _ in allocation)


def _predict(
    quantized: Quantized, bank: Bank, kinds: Sequence[LowRankKind]
) -> tuple[int, npt.NDArray[np.int64], dict[LowRankKind, int], dict[int, int]]:
    """Slope, rounded amplitudes, constant of each kind, offset of each quantizer id of lora_B's side."""
    used = sorted({int(r) for r in np.unique(quantized.rung)})
    ids = np.searchsorted(used, quantized.rung[0]) if len(used) else np.zeros(0, np.int64)
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    family = np.array([numbers[k] for k in kinds], np.int64)[bank.module[quantized.kept]]
    exact = quantized.amplitude
    best: tuple[float, int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
    for slope in (2, 0, -2):
        rest = exact - slope * quantized.precision
        constants, offsets = np.zeros(len(numbers)), np.zeros(len(used))
        for _ in range(3):
            constants = _medians(rest - offsets[ids], family, len(numbers))
            offsets = _medians(rest - constants[family], ids, len(used))
        whole = np.rint(constants).astype(np.int64), np.rint(offsets).astype(np.int64)
        misfit = float(np.abs(rest - whole[0][family] - whole[1][ids]).sum())
        if best is None or misfit < best[0]:
            best = (misfit, slope, *whole)
    assert best is not None
    _, slope, constants_i, offsets_i = best
    predicted = slope * quantized.precision + constants_i[family] + offsets_i[ids]
    codes = np.clip(np.rint(exact).astype(np.int64), predicted - _GAP, predicted + _GAP)
    codes = np.clip(codes, MIN_CODE, MAX_CODE)
    return (
        slope,
        codes,
        {kind: int(constants_i[number]) for kind, number in numbers.items()},
        {i: int(o) for i, o in enumerate(offsets_i)},
    )


def _medians(values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    return np.array([np.median(values[groups == g]) if (groups == g).any() else 0.0 for g in range(count)])
