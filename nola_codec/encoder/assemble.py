"""Material -> the bytes of a file, and what those bytes decode to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from nola_codec.decoder.coefficients import PointTable, block_runs
from nola_codec.decoder.decoder import FactorsDigest
from nola_codec.decoder.factors import Factors, synthesize_factors
from nola_codec.encoder.material import MadeOnDemand, Material, Survey, side_models
from nola_codec.entropy import rans, raw, smallest
from nola_codec.entropy.frames import compress
from nola_codec.model import Header, LowRankRecord, RawKind, RawRecord, RawTensor
from nola_codec.parallel import parallel_map
from nola_codec.quant.scales import fitting_exponent

_PORTION = 1 << 20
"""Elements synthesized by one thread at a time."""

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


def estimate_bytes(
    material: Material, surveyed: Survey, envelope: Envelope, raw_sections: Sequence[tuple[int, bytes]]
) -> int:
    """Size that the file will have, without entropy coding; within a few bytes of it."""
    models = [q.model for q in material.quantizers]
    placeholders = []
    for (start, stop), ideal in zip(surveyed.spans, surveyed.ideal_bytes, strict=True):
        runs = block_runs(material.records[start:stop], material.allocation)
        coded = ideal + (3 << rans.lane_bits(ideal, runs.total)) + 3
        placeholders.append((rans.id, bytes(int(min(coded, raw.size(runs, models))))))
    side = units_to_symbols(material.records, material.allocation, material.amplitude_slope)
    (units,) = smallest([side], [units_runs(material.records)], side_models(side))
    counts = [stop - start for start, stop in surveyed.spans]
    header = _header(material, envelope, [(0, 0)] * len(material.records), counts, _NOISE)
    header = replace(header, measured={"nmse": 0.1, "effective_error": 0.1})
    return len(assemble(header, [units, *placeholders, *raw_sections]))


@dataclass(frozen=True)
class Parts:
    """Everything of a file that is known before its errors are measured."""

    exponents: list[tuple[int, int]]
    units: tuple[int, bytes]
    blocks: list[tuple[int, bytes]]
    block_records: list[int]
    sha256: bytes


def code_parts(
    material: Material,
    surveyed: Survey,
    envelope: Envelope,
    consume: Callable[[int, Factors], None],
    codecs: Sequence[int] = (0, 1, 2),
) -> Parts:
    """Entropy-code, and decode by the decoder's own arithmetic.

    Args:
        material: Records and symbols.
        surveyed: Its survey.
        envelope: Header fields.
        consume: Called with (record index, decoded factors), in order.
        codecs: Entropy codecs to choose from.
    """
    models = [q.model for q in material.quantizers]
    runs = [block_runs(material.records[start:stop], material.allocation) for start, stop in surveyed.spans]
    blocks = smallest(_block_streams(material, surveyed), runs, models, codecs)
    side = units_to_symbols(material.records, material.allocation, material.amplitude_slope)
    (units,) = smallest([side], [units_runs(material.records)], side_models(side), codecs)
    digest = FactorsDigest()
    exponents = []
    for index, (pair, factors) in enumerate(_decoded(material, surveyed, envelope)):
        digest.update(factors, NUMPY)
        consume(index, factors)
        exponents.append(pair)
    for tensor in envelope.raw.values():
        digest.update_raw(tensor)
    return Parts(exponents, units, blocks, [stop - start for start, stop in surveyed.spans], digest.digest())


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


def _block_streams(material: Material, surveyed: Survey) -> MadeOnDemand:
    """Symbols of each block."""
    return MadeOnDemand(
        len(surveyed.spans), lambda block: np.concatenate(material.symbols[slice(*surveyed.spans[block])])
    )


def _decoded(material: Material, surveyed: Survey, envelope: Envelope) -> Iterator[tuple[tuple[int, int], Factors]]:
    """(exponents, factors) of each record, in order.

    A first guess takes the peak of a vector to be six times its root mean square; a record that saturates int16 is
    raised and made again. Factors share the file's largest exponent where that leaves at most _HEADROOM octaves unused.
    """
    guess = _first_exponents(material, surveyed)
    table = PointTable(material.quantizers)

    def make(span: tuple[int, int]) -> list[tuple[tuple[int, int], Factors]]:
        pending = list(range(*span))
        points = {i: table.coefficients(material.records[i], material.symbols[i], material.allocation) for i in pending}
        done: dict[int, Factors] = {}
        while pending:
            records = [replace(material.records[i], exponents=(int(guess[i, 0]), int(guess[i, 1]))) for i in pending]
            made = synthesize_factors(
                records, [points[i] for i in pending], generator=envelope.generator, seed=envelope.seed, xp=NUMPY
            )
            for index, factors in zip(pending, made, strict=True):
                done[index] = factors
                guess[index] += [_saturated(factors.lora_B), _saturated(factors.lora_A)]
            pending = [i for i in pending if tuple(guess[i]) != done[i].exponents]
        return [(done[i].exponents, done[i]) for i in range(*span)]

    for portion in parallel_map(make, _portions(material)):
        yield from portion


def _first_exponents(material: Material, surveyed: Survey) -> npt.NDArray[np.int64]:
    guess = np.zeros((len(material.records), 2), np.int64)
    coded = np.array([r.units > 0 for r in material.records], bool)
    for index, (record, squares) in enumerate(zip(material.records, surveyed.squares, strict=True)):
        for side, part in enumerate(np.split(squares, 2)):
            length = record.kind.vector_lengths[side]
            rms = np.sqrt(part * (basis_by_id(record.kind.basis).norm2(length) / length))
            codes = record.amplitude if record.kind.split == "component" else record.amplitude[side : side + 1]
            guess[index, side] = fitting_exponent(6 * rms, codes)
    if coded.any():
        for side in (0, 1):
            common = int(guess[coded, side].max())
            guess[~coded | (guess[:, side] >= common - _HEADROOM), side] = common
    return guess


def _portions(material: Material) -> list[tuple[int, int]]:
    """Spans of records of about _PORTION elements together."""
    spans = []
    start = weight = 0
    for index, record in enumerate(material.records):
        weight += record.kind.rank * (record.kind.rows + record.kind.columns)
        if weight >= _PORTION or index == len(material.records) - 1:
            spans.append((start, index + 1))
            start, weight = index + 1, 0
    return spans


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
    carried = tuple(
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
        raw=carried,
        blocks=tuple(blocks),
        sections=(),
        factors_sha256=sha256,
        config=envelope.config,
        metadata=envelope.metadata,
        measured={},
    )
