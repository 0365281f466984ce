"""Write a `Header` as a canonical MessagePack map, and parse it (specification, "Header")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from nola_codec.container import canonical, fields
from nola_codec.container.kind_wire import RECORD_ORDER, kind_from_wire, kind_to_wire, record_type
from nola_codec.container.limits import Limits
from nola_codec.container.names import join_name, split_name
from nola_codec.container.prelude import DRAWN_FLAG, REFERENCE_FLAG
from nola_codec.container.quantizer_wire import (
    quantizer_from_wire,
    quantizer_to_wire,
)
from nola_codec.container.work import count_work
from nola_codec.model.adapter import BaseEntry
from nola_codec.model.header import MAX_GAIN, Header, ReferenceEntry, Rung, Section
from nola_codec.model.records import (
    CodedKind,
    CodedRecord,
    DrawnKind,
    DrawnRecord,
    Kind,
    RawKind,
    RawRecord,
    Record,
)
from nola_codec.prng import generator_name

_Records = tuple[tuple[CodedRecord, ...], tuple[RawRecord, ...], tuple[DrawnRecord, ...]]
_MOST_KEPT = 4096
"""The most records of a header whose records are kept for the next file."""

KEYS = (
    "amplitude_slope", "blocks", "config", "dialect", "generator", "kinds", "metadata", "numbers", "quantizers",
    "records", "rungs", "sections", "seed", "streams", "writer",
)  # fmt: skip


def pack_header(header: Header) -> bytes:
    """Return the canonical bytes of a header, not compressed.

    They do not hold what is in the units sections: tables, exponents, and the units of each record.
    """
    kinds: dict[Kind, int] = {}
    records: list[Record] = [*header.coded, *header.raw, *header.drawn]
    ids = [kinds.setdefault(record.kind, len(kinds)) for record in records]
    streams = [record.stream for record in header.coded]
    reference = {} if header.reference is None else {"reference": _reference_to_wire(header.reference)}
    base = {} if header.base is None else {"base": _base_to_wire(header.base)}
    return canonical.pack(
        {
            **reference,
            **base,
            "writer": header.writer,
            "dialect": header.dialect,
            "generator": header.generator,
            "seed": header.seed,
            "quantizers": [quantizer_to_wire(q) for q in header.quantizers],
            "rungs": [[rung.decoded_sha256, dict(rung.measured)] for rung in header.rungs],
            "amplitude_slope": header.amplitude_slope,
            "kinds": [kind_to_wire(kind) for kind in kinds],
            "records": ids,
            "numbers": _number_differences(records),
            "streams": None if streams == list(range(len(streams))) else streams,
            "blocks": list(header.blocks),
            "sections": [[s.codec, s.length, s.crc32] for s in header.sections],
            "config": header.config,
            "metadata": dict(header.metadata),
        }
    )


def unpack_header(data: bytes, limits: Limits, flags: int = 0) -> Header:
    """Parse and check a header. Its records have no units until the units sections are read.

    Args:
        data: The plain header.
        limits: Bounds on what the header may declare.
        flags: The required flags of the prelude: the header has what they say, and nothing that they do not say.

    Raises:
        FormatError: ``header``, ``limit``, ``generator`` or ``basis``: A field has a wrong value.
    """
    top = fields.mapping(canonical.unpack(data, limits), "header")
    keys = (*KEYS, *(("reference",) if flags & REFERENCE_FLAG else ()), *(("base",) if "base" in top else ()))
    top = fields.mapping(top, "header", keys)
    reference = _reference_from_wire(top["reference"], limits) if flags & REFERENCE_FLAG else None
    quantizers = tuple(quantizer_from_wire(q) for q in fields.items(top["quantizers"], "quantizers"))
    limits.require("quantizers", len(quantizers), "header `quantizers`")
    coded, raw, drawn = _records(top, limits)
    if reference is None and any(record.kind.split == "difference" for record in coded):
        raise fields.header_error("kinds form", "no difference form in a file without a reference", 2)
    if bool(drawn) != bool(flags & DRAWN_FLAG):
        raise fields.header_error("kinds", "drawn records if required flag 1 is set, else none", len(drawn))
    rungs = tuple(_rung_from_wire(wire) for wire in fields.items(top["rungs"], "rungs"))
    blocks = fields.integers(top["blocks"], "blocks", 1, limits.records)
    if sum(blocks) != len(coded):
        raise fields.header_error("blocks", f"a sum of {len(coded)} records", sum(blocks))
    sections = _sections(top["sections"])
    limits.require("sections", len(sections), "header `sections`")
    wanted = len(rungs) * (1 + len(blocks)) + len(raw)
    if len(sections) != wanted:
        raise fields.header_error("sections", f"{wanted} of them", len(sections))
    generator = fields.integer(top["generator"], "generator", 0, 255)
    generator_name(generator)
    config = top["config"]
    return Header(
        writer=fields.text(top["writer"], "writer", limits),
        dialect=fields.text(top["dialect"], "dialect", limits),
        generator=generator,
        seed=fields.integer(top["seed"], "seed", 0, (1 << 64) - 1),
        quantizers=quantizers,
        rungs=rungs,
        amplitude_slope=fields.integer(top["amplitude_slope"], "amplitude_slope", -64, 64),
        coded=coded,
        raw=raw,
        drawn=drawn,
        blocks=blocks,
        sections=sections,
        config=None if config is None else fields.mapping(config, "config"),
        metadata=_string_map(top["metadata"], limits),
        reference=reference,
        base=_base_from_wire(top["base"], limits) if "base" in top else None,
    )


def _base_to_wire(entry: BaseEntry) -> list[Any]:
    return [entry.name, entry.revision, entry.sha256]


def _base_from_wire(value: Any, limits: Limits) -> BaseEntry:
    name, revision, sha256 = fields.items(value, "base", count=3)
    return BaseEntry(
        fields.text(name, "base name", limits),
        fields.text(revision, "base revision", limits),
        fields.binary(sha256, "base sha256", count=32),
    )


def _reference_to_wire(entry: ReferenceEntry) -> list[Any]:
    return [entry.sha256, entry.files, list(entry.gains), entry.name]


def _reference_from_wire(value: Any, limits: Limits) -> ReferenceEntry:
    sha256, files, gains, name = fields.items(value, "reference", count=4)
    first, second = fields.integers(gains, "reference gains", 0, MAX_GAIN, count=2)
    name = fields.text(name, "reference name", limits)
    if name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise fields.header_error("reference name", "a file name without directories", name)
    files = fields.integer(files, "reference files", 0, (1 << 31) - 1)
    limits.require("chain", files, "header `reference files`")
    return ReferenceEntry(fields.binary(sha256, "reference sha256", count=32), files, (first, second), name)


def _rung_from_wire(value: Any) -> Rung:
    sha256, measured = fields.items(value, "rungs", count=2)
    return Rung(
        allocation=(),
        units=(),
        exponents=(),
        decoded_sha256=fields.binary(sha256, "decoded_sha256", count=32),
        measured={key: fields.real(v, "measured") for key, v in fields.mapping(measured, "measured").items()},
    )


def _records(top: Mapping[str, Any], limits: Limits) -> _Records:
    rungs = len(fields.items(top["rungs"], "rungs"))
    if not 1 <= rungs <= limits.rungs:
        raise fields.header_error("rungs", f"1 to {limits.rungs} of them", rungs)
    dialect = fields.text(top["dialect"], "dialect", limits)
    parts = [top[name] for name in ("kinds", "records", "numbers", "streams")]
    if len(fields.items(top["records"], "records")) > _MOST_KEPT:
        return _parse_records(parts, rungs, dialect, limits)
    return _kept_records(canonical.repack(parts), rungs, dialect, limits)


# Files of one fine-tuning recipe have the same records, and a server opens thousands of them.
@lru_cache(maxsize=4)
def _kept_records(parts: bytes, rungs: int, dialect: str, limits: Limits) -> _Records:
    return _parse_records(canonical.unpack(parts, limits), rungs, dialect, limits)


def _parse_records(parts: Sequence[Any], rungs: int, dialect: str, limits: Limits) -> _Records:
    """Return the records of the fields `kinds`, `records`, `numbers` and `streams` of a header."""
    kind_wires, kind_numbers, numbers, streams = parts
    wires = fields.items(kind_wires, "kinds")
    limits.require("kinds", len(wires), "header `kinds`")
    kinds = [kind_from_wire(kind, limits) for kind in wires]
    if len(set(kinds)) != len(kinds):
        raise fields.header_error("kinds", "distinct kinds", "the same kind twice")
    ids = fields.integers(kind_numbers, "records", 0, limits.kinds)
    limits.require("records", len(ids), "header `records`")
    seen = 0
    for number in ids:  # kinds are listed in order of first use, each at least once
        fields.integer(number, "records", 0, min(seen, len(kinds) - 1))
        seen = max(seen, number + 1)
    if seen != len(kinds):
        raise fields.header_error("kinds", f"{seen}, as many as are used", len(kinds))
    chosen = [kinds[number] for number in ids]
    names = _names(numbers, ids, chosen, limits)
    families = [kind for kind in chosen if isinstance(kind, CodedKind)]
    order = [record_type(kind) for kind in chosen]
    if order != sorted(order, key=RECORD_ORDER.index):
        raise fields.header_error("records", "low-rank records, then vectors, carried and drawn ones", "another order")
    count_work(kinds, ids, rungs, dialect).check(limits)
    coded = _coded_records(streams, names, families)
    named = list(zip(names, chosen, strict=True))
    raw = tuple(RawRecord(name, kind) for name, kind in named if isinstance(kind, RawKind))
    drawn = tuple(DrawnRecord(name, kind) for name, kind in named if isinstance(kind, DrawnKind))
    return coded, raw, drawn


def _coded_records(listed: Any, names: Sequence[str], families: Sequence[CodedKind]) -> tuple[CodedRecord, ...]:
    count = len(families)
    streams: Sequence[int] = range(count)
    if listed is not None:
        streams = fields.integers(listed, "streams", 0, (1 << 31) - 1, count=count)
    return tuple(
        CodedRecord(name, kind, stream, (0,) * len(kind.sides))
        for name, kind, stream in zip(names[:count], families, streams, strict=True)
    )


def _names(value: Any, ids: Sequence[int], kinds: Sequence[Kind], limits: Limits) -> list[str]:
    holes = [kind.template.count("#") for kind in kinds]
    steps = iter(fields.integers(value, "numbers", 1 - 10**9, 10**9 - 1, count=sum(holes)))
    last: dict[int, list[int]] = {}
    names = []
    characters = 0
    for number, kind, count in zip(ids, kinds, holes, strict=True):
        before = last.get(number, [0] * count)
        last[number] = [fields.integer(b + next(steps), "numbers", 0, 10**9 - 1) for b in before]
        names.append(fields.text(join_name(kind.template, last[number]), "name", limits))
        characters += len(names[-1])
        limits.require("name_characters", characters, "header `records` (characters of all names)")
    if len(set(names)) != len(names):
        raise fields.header_error("records", "unique names", "the same name twice")
    return names


def _number_differences(records: Sequence[Record]) -> list[int]:
    last: dict[Kind, tuple[int, ...]] = {}
    out: list[int] = []
    for record in records:
        _, numbers = split_name(record.name)
        before = last.get(record.kind, (0,) * len(numbers))
        out.extend(n - b for n, b in zip(numbers, before, strict=True))
        last[record.kind] = numbers
    return out


def _sections(value: Any) -> tuple[Section, ...]:
    offset, made = 0, []
    for item in fields.items(value, "sections"):
        codec, length, crc = fields.integers(item, "sections", 0, (1 << 63) - 1, count=3)
        made.append(Section(codec, offset, length, fields.integer(crc, "sections crc32", 0, (1 << 32) - 1)))
        offset += length
    return tuple(made)


def _string_map(value: Any, limits: Limits) -> dict[str, str]:
    items = fields.mapping(value, "metadata")
    return {key: fields.text(item, "metadata", limits, "metadata") for key, item in items.items()}
