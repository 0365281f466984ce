"""Material -> the bytes of a file, and what those bytes decode to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.basis import basis_by_id
from nola_codec.container.names import split_name
from nola_codec.container.units import units_runs, units_to_symbols
from nola_codec.container.writer import assemble
from nola_codec.decoder.coefficients import block_runs, record_coefficients
from nola_codec.decoder.decoder import DecodedHash
from nola_codec.decoder.factors import DecodedRecord, synthesize_records
from nola_codec.encoder.material import MadeOnDemand, Material, Survey, side_models
from nola_codec.entropy import mixed, rans, raw, smallest
from nola_codec.entropy.blobs import pack_blob
from nola_codec.model.header import Header, Rung
from nola_codec.model.quantizers import SymbolModel
from nola_codec.model.records import CodedRecord, DrawnKind, DrawnRecord, RawKind, RawRecord
from nola_codec.model.tensors import Draw, RawTensor
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
    """What goes into a header unchanged; `drawn` has beside each draw the tensor that it makes."""

    writer: str
    dialect: str
    generator: int
    seed: int
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    raw: Mapping[str, RawTensor]
    drawn: Mapping[str, tuple[Draw, RawTensor]] = field(default_factory=dict)


def estimate_bytes(
    material: Material, surveyed: Survey, envelope: Envelope, raw_sections: Sequence[tuple[int, bytes]]
) -> int:
    """Size that the file will have, without entropy coding; within a few bytes of it."""
    models = [q.model for q in material.quantizers]
    units = _code_units(material)
    steps = []
    for rung, (records, packed, coded) in enumerate(
        zip(material.ladder, surveyed.packed_bits, surveyed.coded_bits, strict=True)
    ):
        placeholders = []
        for (start, stop), plain_bits, coded_bits in zip(surveyed.spans, packed, coded, strict=True):
            runs = block_runs(records[start:stop], material.quantizers, material.allocations, rung)
            symbols = int(runs.lengths[[models[m].frequencies is not None for m in runs.models]].sum())
            lanes = (3 << rans.lane_bits(coded_bits / 8, symbols)) + 3 if coded_bits else 0
            size = min((plain_bits + coded_bits) / 8 + lanes, raw.size(runs, models))
            placeholders.append((mixed.id, bytes(int(size))))
        measured = {"nmse": 0.1, "effective_error": 0.1}
        zeros = [record.exponents for record in records]
        steps.append(RungParts(zeros, units[rung], placeholders, _NOISE, measured))
    counts = [stop - start for start, stop in surveyed.spans]
    return len(write_parts(Parts(steps, counts), material, envelope, raw_sections))


@dataclass(frozen=True)
class RungParts:
    """What is known of a rung when it has been coded and decoded."""

    exponents: list[tuple[int, ...]]
    units: _Units
    blocks: list[tuple[int, bytes]]
    sha256: bytes
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Parts:
    """Everything of a file."""

    rungs: list[RungParts]
    block_records: list[int]


def code_parts(
    material: Material,
    surveyed: Survey,
    envelope: Envelope,
    consume: Callable[[int, int, DecodedRecord], None],
    measured: Callable[[int], Mapping[str, float]],
    codecs: Sequence[int] = (0, 1, 2),
) -> Parts:
    """Entropy-code, and decode by the decoder's own arithmetic.

    Args:
        material: Records and symbols.
        surveyed: Its survey.
        envelope: Header fields.
        consume: Called with (rung, record index, what it decodes to), in order.
        measured: Called with a rung when all of it was consumed: what its header entry shall say.
        codecs: Entropy codecs to choose from.
    """
    models = [q.model for q in material.quantizers]
    units = _code_units(material, codecs)
    parts = []
    for rung, records in enumerate(material.ladder):
        runs = [
            block_runs(records[start:stop], material.quantizers, material.allocations, rung)
            for start, stop in surveyed.spans
        ]
        blocks = smallest(_block_streams(material, surveyed, rung), runs, models, codecs)
        digest = DecodedHash()
        exponents: list[tuple[int, ...]] = []
        for index, decoded in enumerate(_decoded(material, envelope, rung)):
            digest.update(decoded, NUMPY)
            consume(rung, index, decoded)
            exponents.append(decoded.exponents)
        for tensor in (*envelope.raw.values(), *(tensor for _, tensor in envelope.drawn.values())):
            digest.update_raw(tensor)
        parts.append(RungParts(exponents, units[rung], blocks, digest.digest(), measured(rung)))
    return Parts(parts, [stop - start for start, stop in surveyed.spans])


def write_parts(
    parts: Parts, material: Material, envelope: Envelope, raw_sections: Sequence[tuple[int, bytes]]
) -> bytes:
    """The file."""
    sections: list[tuple[int, bytes]] = []
    for rung, part in enumerate(parts.rungs):
        sections += [part.units.coded, *part.blocks, *(raw_sections if rung == 0 else ())]
    return assemble(_header(material, envelope, parts), sections)


@dataclass(frozen=True)
class _Units:
    """A units section."""

    models: tuple[SymbolModel, SymbolModel]
    coded: tuple[int, bytes]


def _code_units(material: Material, codecs: Sequence[int] = (0, 1, 2)) -> list[_Units]:
    """The units section of each rung."""
    made = []
    before = 0
    streams = units_to_symbols(material.ladder, material.allocations, material.amplitude_slope)
    for records, symbols in zip(material.ladder, streams, strict=True):
        total = sum(record.units for record in records)
        models = side_models(symbols, total - before)
        (coded,) = smallest([symbols], [units_runs(total - before, len(symbols) - total + before)], models, codecs)
        made.append(_Units(models, coded))
        before = total
    return made


def pack_raw(tensors: Mapping[str, RawTensor]) -> list[tuple[int, bytes]]:
    """Sections of raw tensors: zstd where it pays."""
    return [pack_blob(tensor.data) for tensor in tensors.values()]


def _block_streams(material: Material, surveyed: Survey, rung: int) -> MadeOnDemand:
    """Symbols of each block of a rung."""
    return MadeOnDemand(
        len(surveyed.spans), lambda block: np.concatenate(material.symbols[rung][slice(*surveyed.spans[block])])
    )


def _decoded(material: Material, envelope: Envelope, rung: int) -> Iterator[DecodedRecord]:
    """Each record decoded at a rung, in order.

    A first guess takes the peak of a vector to be six times its root mean square; a record that saturates int16 is
    raised and made again. Factors share the file's largest exponent where that leaves at most _HEADROOM octaves unused.
    """
    records = material.ladder[rung]
    guess = _first_exponents(records, material.squares[rung])

    def make(span: tuple[int, int]) -> list[DecodedRecord]:
        pending = list(range(*span))
        points = {
            i: record_coefficients(
                records[i], [s[i] for s in material.symbols[: rung + 1]], material.quantizers, material.allocations
            )
            for i in pending
        }
        done: dict[int, DecodedRecord] = {}
        while pending:
            raised = [replace(records[i], exponents=guess[i]) for i in pending]
            made = synthesize_records(
                raised, [points[i] for i in pending], generator=envelope.generator, seed=envelope.seed, xp=NUMPY
            )
            for index, decoded in zip(pending, made, strict=True):
                done[index] = decoded
                guess[index] = tuple(e + _saturated(s) for e, s in zip(guess[index], decoded.sides, strict=True))
            pending = [i for i in pending if guess[i] != done[i].exponents]
        return [done[i] for i in range(*span)]

    for portion in parallel_map(make, _portions(records)):
        yield from portion


def _first_exponents(
    records: Sequence[CodedRecord], all_squares: Sequence[npt.NDArray[np.float64]]
) -> list[tuple[int, ...]]:
    """A guess for each record; those of one side, and those of vectors, have the greatest in common where they can."""
    guess = []
    for record, squares in zip(records, all_squares, strict=True):
        lengths = record.kind.vector_lengths
        own = []
        for side, (length, part) in enumerate(zip(lengths, np.split(squares, len(lengths)), strict=True)):
            rms = np.sqrt(part * (basis_by_id(record.kind.basis).norm2(length) / length))
            own.append(fitting_exponent(6 * rms, record.scale_codes(side)))
        guess.append(own)
    for is_pair, side in ((True, 0), (True, 1), (False, 0)):
        members = [i for i, record in enumerate(records) if record.kind.is_pair == is_pair]
        common = max((guess[i][side] for i in members if records[i].units), default=None)
        if common is not None:
            for i in members:
                if not records[i].units or guess[i][side] >= common - _HEADROOM:
                    guess[i][side] = common
    return [tuple(own) for own in guess]


def _portions(records: Sequence[CodedRecord]) -> list[tuple[int, int]]:
    """Spans of records of about _PORTION elements together."""
    spans = []
    start = weight = 0
    for index, record in enumerate(records):
        weight += record.kind.elements
        if weight >= _PORTION or index == len(records) - 1:
            spans.append((start, index + 1))
            start, weight = index + 1, 0
    return spans


def _saturated(values: npt.NDArray[np.int16]) -> bool:
    return bool(values.size) and (int(values.max()) == 32767 or int(values.min()) == -32768)


def _header(material: Material, envelope: Envelope, parts: Parts) -> Header:
    rungs = tuple(
        Rung(
            allocation=allocation,
            units=tuple(record.units for record in records),
            exponents=tuple(part.exponents),
            side_models=part.units.models,
            decoded_sha256=part.sha256,
            measured=part.measured,
        )
        for records, allocation, part in zip(material.ladder, material.allocations, parts.rungs, strict=True)
    )
    coded = tuple(
        replace(record, exponents=own) for record, own in zip(material.records, parts.rungs[-1].exponents, strict=True)
    )
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
        rungs=rungs,
        amplitude_slope=material.amplitude_slope,
        coded=coded,
        raw=carried,
        drawn=tuple(
            DrawnRecord(name, DrawnKind(split_name(name)[0], draw)) for name, (draw, _) in envelope.drawn.items()
        ),
        blocks=tuple(parts.block_records),
        sections=(),
        config=envelope.config,
        metadata=envelope.metadata,
    )
