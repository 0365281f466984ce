"""Lay out the bytes of a file: entropy-code its symbols, and write the header around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nola_codec.array_types import SymbolArray
from nola_codec.container.names import split_name
from nola_codec.container.units import pack_units
from nola_codec.container.writer import assemble
from nola_codec.decoder.coefficients import join_runs
from nola_codec.encoder.content import BlockSizes, FileContent
from nola_codec.entropy import adaptive, mixed, rans, raw, smallest
from nola_codec.entropy.blobs import pack_blob
from nola_codec.model.adapter import BaseEntry
from nola_codec.model.header import Header, ReferenceEntry, Rung
from nola_codec.model.quantizers import Runs
from nola_codec.model.records import DrawnKind, DrawnRecord, RawKind, RawRecord
from nola_codec.model.tensors import DTYPE_BYTES, Draw, RawTensor

ALL_CODECS = (raw.id, mixed.id)
_BATCH_SYMBOLS = 12 << 20
"""Symbols handed to the entropy codecs at once: they code sections side by side, but never all of a large file."""
CodedBlocks = Sequence[tuple[int, bytes]]
"""(codec id, bytes) of each block of coefficients that a rung adds to a file."""
_NOISE = bytes(range(7, 7 + 32))
"""Bytes that do not compress, in place of the SHA-256 in an estimate."""


@dataclass(frozen=True)
class Envelope:
    """The fields that go into a header unchanged, and the tensors that are not coded.

    Attributes:
        writer, dialect, generator, seed, config, metadata: The same as in `Header`.
        raw: The carried tensors by name, in the order of the file.
        drawn: For the name of each drawn tensor, its draw and the tensor that the draw makes.
        reference: The name of the reference, or None.
        base: The base model that the adapter was trained on, or None.
    """

    writer: str
    dialect: str
    generator: int
    seed: int
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    raw: Mapping[str, RawTensor]
    drawn: Mapping[str, tuple[Draw, RawTensor]] = field(default_factory=dict)
    reference: ReferenceEntry | None = None
    base: BaseEntry | None = None


@dataclass(frozen=True)
class RungFacts:
    """The part of a header that describes the decoded tensors of a rung.

    Attributes:
        exponents: For each record, the exponent of each side.
        sha256: The decoded SHA-256.
        measured: The measured losses by name.
    """

    exponents: Sequence[tuple[int, ...]]
    sha256: bytes
    measured: Mapping[str, float]


def estimate_bytes(
    content: FileContent, sizes: BlockSizes, envelope: Envelope, raw_sections: Sequence[tuple[int, bytes]]
) -> int:
    """Estimate the size of the file in bytes without entropy coding; the error is a few bytes."""
    models = [q.model for q in content.quantizers]
    rungs, facts = [], []
    for rung, (records, packed, coded) in enumerate(
        zip(content.rungs, sizes.packed_bits, sizes.coded_bits, strict=True)
    ):
        placeholders = []
        for (start, stop), plain_bits, coded_bits in zip(sizes.spans, packed, coded, strict=True):
            runs = join_runs(content.runs[rung][start:stop])
            symbols = int(runs.lengths[[models[m].frequencies is not None for m in runs.models]].sum())
            lanes = (3 << rans.lane_bits(coded_bits / 8, symbols)) + 3 if coded_bits else 0
            size = min((plain_bits + coded_bits) / 8 + lanes, raw.size(runs, models))
            placeholders.append((mixed.id, bytes(int(size))))
        rungs.append(placeholders)
        zeros = [record.exponents for record in records]
        facts.append(RungFacts(zeros, _NOISE, {"nmse": 0.1, "effective_error": 0.1}))
    return len(write_file(content, sizes, rungs, facts, envelope, raw_sections))


def code_rungs(content: FileContent, sizes: BlockSizes, codecs: Sequence[int] = ALL_CODECS) -> list[CodedBlocks]:
    """Entropy-code the coefficients of all rungs.

    Args:
        content: The records and symbols.
        sizes: The blocks of the content.
        codecs: The ids of the entropy codecs to choose from.
    """
    return [_code_blocks(content, sizes, rung, codecs) for rung in range(len(content.rungs))]


def write_file(
    content: FileContent,
    sizes: BlockSizes,
    rungs: Sequence[CodedBlocks],
    facts: Sequence[RungFacts],
    envelope: Envelope,
    raw_sections: Sequence[tuple[int, bytes]],
) -> bytes:
    """Return the bytes of the file: the header, then the sections rung by rung; the first rung has carried tensors."""
    exponents = [own.exponents for own in facts]
    units = pack_units(content.rungs, content.allocations, content.amplitude_slope, exponents)
    sections: list[tuple[int, bytes]] = []
    for number, (own, blocks) in enumerate(zip(units, rungs, strict=True)):
        sections += [(adaptive.id, own), *blocks, *(raw_sections if number == 0 else ())]
    return assemble(_header(content, sizes, facts, envelope), sections)


def pack_raw(tensors: Mapping[str, RawTensor]) -> list[tuple[int, bytes]]:
    """Pack carried tensors into sections (codec id, bytes), in the shortest of the ways of `entropy.blobs`."""
    return [pack_blob(tensor.data, DTYPE_BYTES[tensor.dtype]) for tensor in tensors.values()]


def _code_blocks(content: FileContent, sizes: BlockSizes, rung: int, codecs: Sequence[int]) -> list[tuple[int, bytes]]:
    """Code the blocks of a rung. Their symbols are made here, a batch of blocks at a time."""
    records, models = content.rungs[rung], [q.model for q in content.quantizers]
    coded: list[tuple[int, bytes]] = []
    batch: list[SymbolArray] = []
    runs: list[Runs] = []
    for start, stop in sizes.spans:
        batch.append(np.concatenate(content.symbols[rung][start:stop]))
        runs.append(join_runs(content.runs[rung][start:stop]))
        if sum(map(len, batch)) >= _BATCH_SYMBOLS or stop == len(records):
            coded += smallest(batch, runs, models, codecs)
            batch, runs = [], []
    return coded


def _header(
    content: FileContent,
    sizes: BlockSizes,
    facts: Sequence[RungFacts],
    envelope: Envelope,
) -> Header:
    rungs = tuple(
        Rung(
            allocation=allocation,
            units=tuple(record.units for record in records),
            exponents=tuple(own.exponents),
            decoded_sha256=own.sha256,
            measured=own.measured,
        )
        for records, allocation, own in zip(content.rungs, content.allocations, facts, strict=True)
    )
    coded_records = tuple(
        replace(record, exponents=own) for record, own in zip(content.records, facts[-1].exponents, strict=True)
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
        quantizers=content.quantizers,
        rungs=rungs,
        amplitude_slope=content.amplitude_slope,
        coded=coded_records,
        raw=carried,
        drawn=tuple(
            DrawnRecord(name, DrawnKind(split_name(name)[0], draw)) for name, (draw, _) in envelope.drawn.items()
        ),
        blocks=tuple(stop - start for start, stop in sizes.spans),
        sections=(),
        config=envelope.config,
        metadata=envelope.metadata,
        reference=envelope.reference,
        base=envelope.base,
    )
