"""Section 0: the precision and the amplitude of every unit, as small differences (specification, "Units").

A component's precision is coded as the difference from the component before it; the first one's from the first of
the record before of the same kind. The amplitude is coded as the difference from a prediction made of the precision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.errors import FormatError
from nola_codec.model import Allocation, Header, LowRankKind, LowRankRecord, Runs
from nola_codec.quant.scales import MAX_CODE, MIN_CODE

START = 128
"""Prediction of the first precision of a kind's first record."""


def units_runs(records: Sequence[LowRankRecord]) -> Runs:
    """Section 0 is one run of precisions, then one of amplitudes."""
    total = sum(record.units for record in records)
    return Runs(np.array([0, 1], np.int64), np.array([total, total], np.int64))


def lookup(allocation: Allocation, precision: int) -> tuple[int, int]:
    """(quantizer id, amplitude offset) at a precision. Raises FormatError under the first entry."""
    index = bisect_right(allocation, precision, key=lambda entry: entry[0]) - 1
    if index < 0:
        raise FormatError(f"allocation: no quantizer for precision {precision}", code="units")
    return allocation[index][1], allocation[index][2]


def unit_quantizers(
    record: LowRankRecord, allocation: tuple[Allocation, Allocation]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Quantizer ids of a record's vectors of lora_B and of lora_A, (vectors,) each."""
    kind = record.kind
    sides: list[npt.NDArray[np.int64]] = []
    for side in (0, 1):
        precisions = record.precision if kind.split == "component" else record.precision[side : side + 1]
        ids = [lookup(allocation[side], int(p) + kind.shift[side])[0] for p in precisions]
        sides.append(np.array(ids, np.int64))
    return sides[0], sides[1]


def predicted_amplitude(
    kind: LowRankKind, unit: int, precision: int, allocation: tuple[Allocation, Allocation], slope: int
) -> int:
    """Prediction of a unit's amplitude code."""
    total = kind.amplitude + slope * precision
    for side in (0, 1):
        if kind.split == "component" or unit == side:
            total += lookup(allocation[side], precision + kind.shift[side])[1]
    return total


def units_to_symbols(
    records: Sequence[LowRankRecord], allocation: tuple[Allocation, Allocation], slope: int
) -> npt.NDArray[np.uint16]:
    """Symbols of section 0, (2 * units,). Differences must lie in [-128, 127]; the encoder sees to it."""
    precisions: list[int] = []
    amplitudes: list[int] = []
    last: dict[LowRankKind, list[int]] = {}
    for record in records:
        before = last.get(record.kind, [START, START])
        for unit, (precision, amplitude) in enumerate(
            zip(record.precision.tolist(), record.amplitude.tolist(), strict=True)
        ):
            reference = _reference(record, unit, before, precisions_of=record.precision)
            precisions.append(_fold((precision - reference + 128) % 256 - 128))
            gap = amplitude - predicted_amplitude(record.kind, unit, precision, allocation, slope)
            if not -128 <= gap <= 127:
                raise ValueError(f"amplitude of {record.name} is {gap} codes from its prediction")
            amplitudes.append(_fold(gap))
        _remember(last, record, record.precision)
    return np.array(precisions + amplitudes, np.uint16)


def symbols_to_units(symbols: npt.NDArray[Any], header: Header) -> Header:
    """The header with its records' precisions and amplitudes filled in. Raises FormatError out of range."""
    total = len(symbols) // 2
    codes = [(s >> 1) ^ -(s & 1) for s in symbols.astype(np.int64).tolist()]
    position = 0
    last: dict[LowRankKind, list[int]] = {}
    records = []
    for record in header.lowrank:
        precision = np.zeros(record.units, np.int64)
        amplitude = np.zeros(record.units, np.int64)
        before = last.get(record.kind, [START, START])
        for unit in range(record.units):
            reference = _reference(record, unit, before, precisions_of=precision)
            precision[unit] = (reference + codes[position]) % 256
            amplitude[unit] = codes[total + position] + predicted_amplitude(
                record.kind, unit, int(precision[unit]), header.allocation, header.amplitude_slope
            )
            position += 1
        if record.units and not MIN_CODE <= amplitude.min() <= amplitude.max() <= MAX_CODE:
            raise FormatError(f"units of {record.name}: amplitude out of range", code="units")
        _remember(last, record, precision)
        records.append(replace(record, precision=precision, amplitude=amplitude))
    return replace(header, lowrank=tuple(records))


def _reference(record: LowRankRecord, unit: int, before: Sequence[int], precisions_of: npt.NDArray[np.int64]) -> int:
    if record.kind.split == "factor":
        return before[unit]
    return before[0] if unit == 0 else int(precisions_of[unit - 1])


def _remember(last: dict[LowRankKind, list[int]], record: LowRankRecord, precision: npt.NDArray[np.int64]) -> None:
    if record.units:
        values = precision.tolist()
        last[record.kind] = values[:2] if record.kind.split == "factor" else [values[0], START]


def _fold(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
