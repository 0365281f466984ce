"""Material -> the bytes of a file, and what those bytes decode to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.container.reader import STORED, ZSTD
from nola_codec.container.units import units_runs, units_to_symbols
from nola_codec.container.writer import assemble
from nola_codec.decoder.coefficients import Coefficients, PointTable, block_runs, record_runs
from nola_codec.decoder.decoder import FactorsDigest
from nola_codec.decoder.factors import Factors, synthesize_factors
from nola_codec.encoder.material import Material, side_models
from nola_codec.entropy import rans, smallest
from nola_codec.entropy.frames import compress
from nola_codec.entropy.raw import size as raw_size
from nola_codec.model import Header, LowRankRecord, RawKind, RawRecord, RawTensor
from nola_codec.quant.scales import fitting_exponent

BLOCK_BYTES = 48 << 10
"""Coded size at which a block is closed: a reader of one tensor reads no more than its block."""

_NOISE = bytes(range(7, 7 + 32))
"""Stands for a digest, which does not compress."""

_HEADROOM = 3
"""Octaves that a factor may leave unused of int16 so that the file's factors share one exponent."""


@dataclass(frozen=True)
class Envelope:
    """What goes into a header unchanged."""

    writer: str
    dialect: str
    generator: int
    seed: int
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    raw: Mapping[str, RawTensor]


def estimate_bytes(material: Material, envelope: Envelope, raw_sections: Sequence[tuple[int, bytes]]) -> int:
    """Size that `build` will make, without entropy coding; within a few bytes of it."""
    coefficients = 0.0
    models = [q.model for q in material.quantizers]
    blocks = plan_blocks(material)
    for start, stop in blocks:
        runs = block_runs(material.records[start:stop], material.allocation)
        symbols = np.concatenate(material.symbols[start:stop])
        bits = _ideal_bits(symbols, runs, material)
        lanes = 1 << rans.lane_bits(bits / 8, runs.total)
        coefficients += min(bits / 8 + 2 * lanes + 3, raw_size(runs, models))
    side = units_to_symbols(material.records, material.allocation, material.amplitude_slope)
    placeholder = [(2, b"\0" * int(coefficients / max(1, len(blocks))))] * len(blocks)
    ((_, coded),) = smallest([side], [units_runs(material.records)], side_models(side))
    header = _header(material, envelope, [(0, 0)] * len(material.records), [b - a for a, b in blocks], _NOISE)
    header = replace(header, measured={"nmse": 0.1, "effective_error": 0.1})
    return len(assemble(header, [(2, coded), *placeholder, *raw_sections]))


@dataclass(frozen=True)
class Parts:
    """Everything of a file that is known before its errors are measured."""

    factors: list[Factors]
    exponents: list[tuple[int, int]]
    units: tuple[int, bytes]
    blocks: list[tuple[int, bytes]]
    block_records: list[int]
    sha256: bytes


def code_parts(material: Material, envelope: Envelope, codecs: Sequence[int] = (0, 1, 2)) -> Parts:
    """Entropy-code, and decode by the decoder's own arithmetic.

    Args:
        material: Records and symbols.
        envelope: Header fields.
        codecs: Entropy codecs to choose from.
    """
    models = [q.model for q in material.quantizers]
    spans = plan_blocks(material)

    streams = [np.concatenate(material.symbols[start:stop]) for start, stop in spans]
    runs = [block_runs(material.records[start:stop], material.allocation) for start, stop in spans]
    blocks = smallest(streams, runs, models, codecs)
    del streams
    side = units_to_symbols(material.records, material.allocation, material.amplitude_slope)
    (units,) = smallest([side], [units_runs(material.records)], side_models(side), codecs)
    table = PointTable(material.quantizers)
    points = [
        table.coefficients(record, symbols, material.allocation)
        for record, symbols in zip(material.records, material.symbols, strict=True)
    ]
    exponents, factors = _fit_exponents(material, points, envelope)
    digest = FactorsDigest()
    for item in factors:
        digest.update(item, NUMPY)
    for tensor in envelope.raw.values():
        digest.update_raw(tensor)
    return Parts(factors, exponents, units, blocks, [b - a for a, b in spans], digest.digest())


def write_parts(
    parts: Parts,
    material: Material,
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
    measured: Mapping[str, float],
) -> bytes:
    """The file; `measured` is stored in the header as it is."""
    header = _header(material, envelope, parts.exponents, parts.block_records, parts.sha256)
    return assemble(replace(header, measured=measured), [parts.units, *parts.blocks, *raw_sections])


def pack_raw(tensors: Mapping[str, RawTensor]) -> list[tuple[int, bytes]]:
    """Sections of raw tensors: zstd where it pays."""
    sections = []
    for tensor in tensors.values():
        packed = compress(tensor.data)
        sections.append((ZSTD, packed) if len(packed) < len(tensor.data) else (STORED, tensor.data))
    return sections


def plan_blocks(material: Material) -> list[tuple[int, int]]:
    """Spans of records; a block closes when its ideal size reaches BLOCK_BYTES."""
    costs = [
        -np.log2(np.array(q.frequencies) / rans.TOTAL)
        if q.frequencies
        else np.full(q.codebook.size, q.codebook.num_bits)
        for q in material.quantizers
    ]
    spans = []
    start, weight = 0, 0.0
    for index, (record, symbols) in enumerate(zip(material.records, material.symbols, strict=True)):
        runs = record_runs(record, material.allocation)
        position = 0
        for model, length in zip(runs.models.tolist(), runs.lengths.tolist(), strict=True):
            counts = np.bincount(symbols[position : position + length], minlength=len(costs[model]))
            weight += float(counts @ costs[model]) / 8
            position += length
        if weight >= BLOCK_BYTES:
            spans.append((start, index + 1))
            start, weight = index + 1, 0.0
    if start < len(material.records):
        spans.append((start, len(material.records)))
    return spans


def _ideal_bits(symbols: npt.NDArray[np.uint16], runs: Any, material: Material) -> float:
    total = 0.0
    which = np.repeat(runs.models, runs.lengths)
    for model, quantizer in enumerate(material.quantizers):
        counts = np.bincount(symbols[which == model], minlength=quantizer.codebook.size)
        if quantizer.frequencies is None:
            total += float(counts.sum()) * quantizer.codebook.num_bits
        else:
            total += rans.coded_bits(counts, quantizer.frequencies)
    return total


def _fit_exponents(
    material: Material, points: Sequence[Coefficients], envelope: Envelope
) -> tuple[list[tuple[int, int]], list[Factors]]:
    """Exponents at which no int16 saturates, and the factors there.

    A first guess takes the peak of a vector to be six times its root mean square; records that saturate are raised and
    made again. Factors share the file's largest exponent where that leaves at most _HEADROOM octaves unused.
    """
    guess = np.zeros((len(material.records), 2), np.int64)
    coded = np.array([r.units > 0 for r in material.records], bool)
    for index, (record, item) in enumerate(zip(material.records, points, strict=True)):
        for side, rows in enumerate((item.b, item.a)):
            length = record.kind.vector_lengths[side]
            rms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1) * basis_by_id(record.kind.basis).norm2(length))
            guess[index, side] = fitting_exponent(6 * rms / np.sqrt(length), _codes(record, side))
    if coded.any():
        for side in (0, 1):
            common = int(guess[coded, side].max())
            guess[~coded | (guess[:, side] >= common - _HEADROOM), side] = common
    factors: list[Factors | None] = [None] * len(material.records)
    pending = list(range(len(material.records)))
    while pending:
        records = [replace(material.records[i], exponents=(int(guess[i, 0]), int(guess[i, 1]))) for i in pending]
        made = synthesize_factors(
            records, [points[i] for i in pending], generator=envelope.generator, seed=envelope.seed, xp=NUMPY
        )
        again = []
        for index, result in zip(pending, made, strict=True):
            full = [_saturated(result.lora_B), _saturated(result.lora_A)]
            guess[index] += full
            if any(full):
                again.append(index)
            else:
                factors[index] = result
        pending = again
    return [(int(b), int(a)) for b, a in guess], [f for f in factors if f is not None]


def _codes(record: LowRankRecord, side: int) -> npt.NDArray[np.int64]:
    return record.amplitude if record.kind.split == "component" else record.amplitude[side : side + 1]


def _saturated(factor: npt.NDArray[np.int16]) -> bool:
    return bool(factor.size) and (int(factor.max()) == 32767 or int(factor.min()) == -32768)


def _header(
    material: Material,
    envelope: Envelope,
    exponents: Sequence[tuple[int, int]],
    blocks: Sequence[int],
    sha256: bytes,
) -> Header:
    side = units_to_symbols(material.records, material.allocation, material.amplitude_slope)
    records: list[LowRankRecord] = [
        replace(record, exponents=pair) for record, pair in zip(material.records, exponents, strict=True)
    ]
    raw = tuple(
        RawRecord(name, RawKind(split_name(name)[0], tensor.dtype, tensor.shape))
        for name, tensor in envelope.raw.items()
    )
    return Header(
        writer=envelope.writer,
        dialect=envelope.dialect,
        generator=envelope.generator,
        seed=envelope.seed,
        quantizers=material.quantizers,
        allocation=material.allocation,
        amplitude_slope=material.amplitude_slope,
        side_models=side_models(side),
        lowrank=tuple(records),
        raw=raw,
        blocks=tuple(blocks),
        sections=(),
        factors_sha256=sha256,
        config=envelope.config,
        metadata=envelope.metadata,
        measured={},
    )
