"""Find what the coefficients of each record cost, and how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.decoder.coefficients import Coefficients, Dequantizer, record_runs
from nola_codec.decoder.decoder import Decoder
from nola_codec.model.quantizers import Codebook, Quantizer, Trellis
from nola_codec.model.records import CodedRecord
from nola_codec.progress import Progress
from nola_codec.reporting.places import split_name

BINS = 33
"""The number of bars of a histogram; the middle one is for zero."""
BINS_PER_RMS = 4
"""Bars for one root mean square."""


@dataclass(frozen=True)
class RecordCost:
    """The cost of the coefficients of one record.

    Attributes:
        name: The name of the record.
        coefficients: The number of its coefficients.
        ideal_bits: The code length of its symbols by the frequencies of their quantizers.
        stored_bytes: Its part of the sections of its block, which are divided in proportion to the code lengths.
    """

    name: str
    coefficients: int
    ideal_bits: float
    stored_bytes: float


@dataclass(frozen=True)
class QuantizerUse:
    """What one quantizer of the file was used for.

    Attributes:
        number: The number of the quantizer.
        description: What it is, in words.
        symbols: The number of symbols that it has in the file.
        ideal_bits: Their code length by the frequencies of the quantizer.
        bits_each: The same for one symbol; 0 without symbols.
    """

    number: int
    description: str
    symbols: int
    ideal_bits: float
    bits_each: float


@dataclass(frozen=True)
class CoefficientHistogram:
    """The coefficients of one module type, each divided by the root mean square of its vector.

    Attributes:
        name: The module type.
        counts: The number of coefficients in each of the BINS bars, which are 1 / BINS_PER_RMS wide. The middle of
            the middle bar is 0, and the outer bars hold all that lies beyond.
        zeros: The number of coefficients that are 0.
        ideal_bits: The code length of the coefficients.
        stored_bytes: What they take in the file.
        zero_share: The share of the coefficients that are 0.
        ideal_bits_each: The code length of one coefficient.
        stored_bits_each: The bits that one coefficient takes in the file.
    """

    name: str
    counts: tuple[int, ...]
    zeros: int
    ideal_bits: float
    stored_bytes: float
    zero_share: float
    ideal_bits_each: float
    stored_bits_each: float


@dataclass(frozen=True)
class CoefficientCosts:
    """What `measure_coefficients` found.

    Attributes:
        records: The cost of each coded record, in the order of the file.
        quantizers: The use of each quantizer, by its number.
        histograms: The histogram of each module type, the one with most bytes first.
    """

    records: tuple[RecordCost, ...]
    quantizers: tuple[QuantizerUse, ...]
    histograms: tuple[CoefficientHistogram, ...]


def measure_coefficients(decoder: Decoder, most_types: int, progress: Progress | None = None) -> CoefficientCosts:
    """Decode the coefficients block by block, and say what they cost.

    Args:
        decoder: The decoder of the file.
        most_types: The number of module types whose histograms are returned.
        progress: Called as (stage, blocks done, blocks).

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
    """
    header = decoder.header
    tally = _Tally(header.quantizers, [rung.allocation for rung in header.rungs])
    starts = np.cumsum([0, *header.blocks]).tolist()
    for block in range(len(header.blocks)):
        if progress is not None:
            progress("reading coefficients", block, len(header.blocks))
        lengths = [header.sections[header.units_section(r) + 1 + block].length for r in range(len(header.rungs))]
        tally.add(header.coded[starts[block] : starts[block + 1]], decoder.symbols([block]), lengths)
    histograms = sorted(tally.histograms(), key=lambda each: (-each.stored_bytes, each.name))[:most_types]
    return CoefficientCosts(tuple(tally.records), tally.uses(), tuple(histograms))


class _Tally:
    """What was found in the blocks so far."""

    def __init__(self, quantizers: Sequence[Quantizer], allocations: Sequence[Any]) -> None:
        self.records: list[RecordCost] = []
        self._quantizers, self._allocations = quantizers, allocations
        self._dequantizer = Dequantizer(quantizers, allocations)
        self._bits = [_code_lengths(quantizer) for quantizer in quantizers]
        self._all_bits = np.concatenate([*self._bits, np.zeros(0)])
        self._firsts = np.cumsum([0, *(len(bits) for bits in self._bits)])  # where the symbols of each one begin
        self._counts = np.zeros(self._firsts[-1], np.int64)  # how often each symbol of each quantizer was met
        self._types: dict[str, tuple[Int64Array, list[float]]] = {}  # bars; zeros, bits and bytes

    def add(
        self, records: Sequence[CodedRecord], symbols: Sequence[Sequence[npt.NDArray[Any]]], lengths: Sequence[int]
    ) -> None:
        """Add the records of a block; `lengths` has the bytes of its section in each rung."""
        bits = np.zeros((len(lengths), len(records)))
        for number, record in enumerate(records):
            for rung, own in enumerate(symbols[number]):
                runs = record_runs(record, self._quantizers, self._allocations, rung)
                places = self._firsts[runs.models].repeat(runs.lengths) + own
                bits[rung, number] = self._all_bits[places].sum()
                np.add.at(self._counts, places, 1)
        stored = _divide(lengths, bits)
        for number, (record, made) in enumerate(
            zip(records, self._dequantizer.coefficients(records, symbols), strict=True)
        ):
            count = sum(side.size for side in made.sides)
            cost = RecordCost(record.name, count, float(bits[:, number].sum()), float(stored[number]))
            self.records.append(cost)
            self._add_to_type(cost, made)

    def _add_to_type(self, cost: RecordCost, made: Coefficients) -> None:
        _, name = split_name(cost.name)
        bars, sums = self._types.setdefault(name, (np.zeros(BINS, np.int64), [0.0, 0.0, 0.0]))
        for side in made.sides:
            values = side.astype(np.float64)
            size = np.sqrt(np.square(values).mean(axis=1, keepdims=True)) if values.size else np.ones((len(values), 1))
            places = np.rint(BINS_PER_RMS * values / np.where(size > 0, size, 1))
            bars += np.bincount((places.clip(-(BINS // 2), BINS // 2) + BINS // 2).astype(np.int64).ravel(), None, BINS)
            sums[0] += int((side == 0).sum())
        sums[1] += cost.ideal_bits
        sums[2] += cost.stored_bytes

    def histograms(self) -> list[CoefficientHistogram]:
        """Return the histogram of each module type."""
        found = []
        for name, (bars, (zeros, bits, stored)) in self._types.items():
            count = max(int(bars.sum()), 1)
            each = (zeros / count, bits / count, 8 * stored / count)
            found.append(CoefficientHistogram(name, tuple(bars.tolist()), int(zeros), bits, stored, *each))
        return found

    def uses(self) -> tuple[QuantizerUse, ...]:
        """Return the use of each quantizer."""
        found = []
        for number, (quantizer, bits) in enumerate(zip(self._quantizers, self._bits, strict=True)):
            counts = self._counts[self._firsts[number] : self._firsts[number + 1]]
            symbols, whole = int(counts.sum()), float(counts @ bits)
            found.append(QuantizerUse(number, _describe(quantizer), symbols, whole, whole / max(symbols, 1)))
        return tuple(found)


def _code_lengths(quantizer: Quantizer) -> Float64Array:
    """Return the bits of each symbol, float64 (symbols,): by its frequency, or equal where there are none."""
    if quantizer.frequencies is None:
        return np.full(quantizer.codebook.size, math.log2(quantizer.codebook.size))
    frequencies = np.array(quantizer.frequencies, np.float64)
    return np.asarray(np.log2(frequencies.sum() / frequencies))


def _divide(lengths: Sequence[int], bits: Float64Array) -> Float64Array:
    """Return the part of each record of all sections of its block, in bytes, float64 (records,)."""
    totals = bits.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, bits / np.where(totals > 0, totals, 1), 1 / max(bits.shape[1], 1))
    return np.asarray(np.array(lengths, np.float64) @ shares)


def _describe(quantizer: Quantizer) -> str:
    book = quantizer.codebook
    if isinstance(book, Codebook):
        return f"codebook of {book.size} points"
    if isinstance(book, Trellis):
        return f"trellis, {book.bits} bit{'s' if book.bits > 1 else ''} for {book.stride} coefficients"
    return f"dependent codebooks of {book.size} points"
