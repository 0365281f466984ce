"""Random `.nola` files, legal but odd: every quantizer, basis, codec and shape in any mix.

    data = random_file(7)          # the same bytes in every run

They hold random symbols, so they test decoders, not the encoder's choices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.array_types import SymbolArray
from nola_codec.container.layers import Allocations, group_by_kind
from nola_codec.container.units import predict_amplitudes, touched_units
from nola_codec.decoder.coefficients import Dequantizer, record_runs
from nola_codec.encoder.assemble import Envelope, code_rungs, pack_raw, write_file
from nola_codec.encoder.content import BlockSizes, FileContent
from nola_codec.encoder.reconstruct import FactsCollector, decode_rung
from nola_codec.entropy import rans
from nola_codec.errors import FormatError
from nola_codec.model.quantizers import Codebook, Dependent, Quantizer
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.model.tensors import RawTensor
from nola_codec.quant.codebooks import midrise_codebook, midtread_codebook, symmetric_codebook
from nola_codec.quant.trellis import TRELLISES

_LENGTHS = (1, 2, 3, 5, 7, 12, 16, 31, 48, 64, 97, 128, 200, 576, 1024, 1100)


def random_file(number: int) -> bytes:
    """Return file `number`."""
    for attempt in range(20):
        try:
            return _random_file(np.random.default_rng([number, attempt]))
        except FormatError as error:
            if error.code not in ("scale", "bound"):  # amplitudes or coefficients that no file may have
                raise
    raise AssertionError(f"no legal file {number}")


def _random_file(rng: np.random.Generator) -> bytes:
    content = _content(rng)
    raw = {"carried.weight": RawTensor("F16", (3, 5), rng.bytes(30))} if rng.random() < 0.3 else {}
    envelope = Envelope("random", "peft", int(rng.integers(1, 3)), int(rng.integers(0, 1 << 63)), None, {}, raw)
    count = len(content.records)
    cuts = sorted({count, *rng.integers(1, count + 1, int(rng.integers(0, 3))).tolist()})
    sizes = BlockSizes(tuple(zip([0, *cuts[:-1]], cuts, strict=True)), (), ())
    blocks = code_rungs(content, sizes, [(0, 1, 2), (0,), (0, 1)][rng.choice(3, p=(0.7, 0.15, 0.15))])
    facts = []
    for rung in range(len(content.rungs)):
        collector = FactsCollector()
        for decoded in decode_rung(content, envelope, rung):
            collector.add(decoded)
        facts.append(collector.finish(envelope, {}))
    return write_file(content, sizes, blocks, facts, envelope, pack_raw(raw))


def _content(rng: np.random.Generator) -> FileContent:
    rungs = int(rng.choice([1, 1, 1, 2, 3]))
    quantizers = tuple(_quantizer(rng) for _ in range(int(rng.integers(1, 7))))
    kinds = [_kind(rng, number) for number in range(int(rng.integers(1, 4)))]
    chosen = [kinds[int(rng.integers(len(kinds)))] for _ in range(int(rng.integers(1, 9)))]
    tables = 1 + max(side.table for kind in chosen for side in kind.sides)
    allocations = tuple(tuple(_allocation(rng, len(quantizers), rung) for _ in range(tables)) for rung in range(rungs))
    slope = int(rng.integers(-2, 3))
    last = []
    for number, kind in enumerate(sorted(chosen, key=lambda kind: not kind.is_pair)):  # pairs come first
        units = int(rng.integers(0, kind.most_units + 1))
        if kind.split != "component":
            units = kind.most_units if units else 0
        entry = np.sort(rng.integers(0, rungs, units)).astype(np.int64)
        if kind.split != "component":
            entry[:] = entry[:1] if units else 0
        precision = rng.integers(0, 256, units)
        name = kind.template.replace("#", str(number))
        last.append(
            CodedRecord(name, kind, number, (0,) * len(kind.sides), entry, precision, np.zeros(units, np.int64))
        )
    stages: list[tuple[CodedRecord, ...]] = []
    for rung in range(rungs):
        stages.append(tuple(_at_rung(rng, record, allocations, rung, slope, stages) for record in enumerate(last)))
    symbols = tuple(
        tuple(_symbols(rng, record, quantizers, allocations, rung) for record in records)
        for rung, records in enumerate(stages)
    )
    dequantizer = Dequantizer(quantizers, allocations)
    squares = []
    for rung, records in enumerate(stages):
        made = dequantizer.coefficients(records, [list(own) for own in zip(*symbols[: rung + 1], strict=True)])
        squares.append(
            tuple(np.concatenate([(side.astype(np.float64) ** 2).sum(axis=1) for side in c.sides]) for c in made)
        )
    return FileContent(tuple(stages), symbols, tuple(squares), quantizers, allocations, slope)


def _quantizer(rng: np.random.Generator) -> Quantizer:
    choice = int(rng.integers(6))
    if choice == 0:
        return Quantizer(TRELLISES[int(rng.integers(len(TRELLISES)))])
    levels = int(rng.choice([1, 2, 3, 9, 60]))

    def positive() -> tuple[int, ...]:
        return tuple(sorted(rng.choice(np.arange(1, 400), levels, replace=False).tolist()))

    book: Codebook | Dependent
    if choice == 1:
        book = Dependent(int(rng.integers(256)), positive(), positive())
    elif choice == 2:
        book = symmetric_codebook(positive())
    elif choice == 3:
        book = midtread_codebook(int(rng.choice([2, 3, 5, 8, 10, 16])))
    elif choice == 4:
        book = midrise_codebook(int(rng.integers(1, 9)))
    else:
        points = np.sort(rng.choice(np.arange(-500, 500), int(rng.integers(1, 257)), replace=False))
        book = Codebook("points", tuple(points.tolist()))
    if book.size > rans.MAX_ALPHABET or rng.random() < 0.2:
        return Quantizer(book)
    counts = rng.random(book.size) ** 8
    if choice in (1, 2):  # the file holds the frequencies of the levels 0, 1, 2 ... alone
        folded = np.maximum(1, np.floor(counts[book.size // 2 :] / counts.sum() * 1000)).astype(int).tolist()
        folded[0] = rans.TOTAL - 2 * sum(folded[1:])
        return Quantizer(book, (*reversed(folded[1:]), *folded))
    return Quantizer(book, rans.normalize(counts))


def _kind(rng: np.random.Generator, number: int) -> CodedKind:
    split: Split = "component" if rng.random() < 0.75 else "factor"
    basis = int(rng.choice([1, 1, 1, 2, 3]))
    if rng.random() < 0.25:
        split = "component"
        shape = tuple(rng.choice([1, 3, 8, 20], int(rng.integers(0, 3))).tolist())
        shapes: list[tuple[int, ...]] = [shape]
    else:
        out, columns = rng.choice(_LENGTHS, 2).tolist()
        rank = int(rng.integers(1, 6))
        shapes = [(out, rank), (rank, columns)]
    whole = coded_sides(shapes, split)
    lengths = [side.length for side in whole]
    num_basis = None
    if split == "factor" or rng.random() < 0.3 or basis != 1:
        num_basis = [int(rng.integers(1, min(length, 200) + 1)) for length in lengths]
    tables = rng.integers(0, 2, len(lengths)).tolist()
    shifts = rng.integers(-20, 21, len(lengths)).tolist()
    sides = coded_sides(shapes, split, num_basis, tables, shifts)
    return CodedKind("abc"[number] + ".#", "F32", basis, sides, split, amplitude=int(rng.integers(-300, 1)))


def _allocation(rng: np.random.Generator, quantizers: int, rung: int) -> tuple[tuple[int, int, int, int], ...]:
    steps = sorted(rng.choice(np.arange(-19, 270), int(rng.integers(0, 5)), replace=False).tolist())
    weight = 0 if rng.random() < 0.6 else 40
    return tuple(
        (int(step), int(rng.integers(-1, quantizers)), int(rng.integers(-20, 21)), int(rng.integers(0, weight + 1)))
        for step in (-20, *steps)
    )


def _at_rung(
    rng: np.random.Generator,
    numbered: tuple[int, CodedRecord],
    allocations: Allocations,
    rung: int,
    slope: int,
    before: list[tuple[CodedRecord, ...]],
) -> CodedRecord:
    """Return a record as it is at a rung, with amplitudes near those that are predicted."""
    index, record = numbered
    units = int((record.entry <= rung).sum())
    amplitude = np.zeros(units, np.int64)
    if rung:
        amplitude[: before[-1][index].units] = before[-1][index].amplitude
    own = replace(record, entry=record.entry[:units], precision=record.precision[:units], amplitude=amplitude)
    (family,) = group_by_kind([own])
    touched = np.flatnonzero(touched_units(family, allocations, rung))
    amplitude[touched] = predict_amplitudes(family, touched, allocations, rung, slope)
    amplitude[touched] += rng.integers(-60, 61, len(touched))
    return own


def _symbols(
    rng: np.random.Generator, record: CodedRecord, quantizers: Any, allocations: Allocations, rung: int
) -> SymbolArray:
    runs = record_runs(record, quantizers, allocations, rung)
    parts = []
    for model, length in zip(runs.models.tolist(), runs.lengths.tolist(), strict=True):
        size, frequencies = quantizers[model].codebook.size, quantizers[model].frequencies
        share = None if frequencies is None or rng.random() < 0.2 else np.array(frequencies) / rans.TOTAL
        parts.append(rng.choice(size, length, p=share))
    joined = np.concatenate([np.empty(0, np.int64), *parts])
    return joined.astype(np.uint8 if joined.max(initial=0) < 256 and rng.random() < 0.7 else np.uint16)
