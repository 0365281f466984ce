"""The header: `Header` <-> canonical MessagePack map (specification, "Header")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nola_codec.container import canonical, fields
from nola_codec.container.kind_wire import kind_from_wire, kind_to_wire
from nola_codec.container.limits import Limits
from nola_codec.container.names import join_name, pack_varints, split_name, unpack_varints
from nola_codec.container.quantizer_wire import (
    allocation_from_wire,
    quantizer_from_wire,
    quantizer_to_wire,
    side_model_from_wire,
    side_model_to_wire,
)
from nola_codec.errors import FormatError
from nola_codec.model import Header, LowRankKind, LowRankRecord, RawKind, RawRecord, Section
from nola_codec.prng import WORDS_PER_BLOCK
from nola_codec.quant.scales import MAX_EXPONENT, MIN_EXPONENT

KEYS = (
    "allocation", "amplitude_slope", "blocks", "config", "dialect", "exponents", "factors_sha256", "generator",
    "kinds", "measured", "metadata", "numbers", "quantizers", "records", "sections", "seed", "side_models",
    "streams", "units", "writer",
)  # fmt: skip


def pack_header(header: Header) -> bytes:
    """Canonical bytes, not yet compressed. Units' precisions and amplitudes are not in it (section 0 has them)."""
    kinds: dict[LowRankKind | RawKind, int] = {}
    records: list[LowRankRecord | RawRecord] = [*header.lowrank, *header.raw]
    ids = [kinds.setdefault(record.kind, len(kinds)) for record in records]
    streams = [record.stream for record in header.lowrank]
    return canonical.pack(
        {
            "writer": header.writer,
            "dialect": header.dialect,
            "generator": header.generator,
            "seed": header.seed,
            "quantizers": [quantizer_to_wire(q) for q in header.quantizers],
            "allocation": [[list(pair) for pair in side] for side in header.allocation],
            "amplitude_slope": header.amplitude_slope,
            "side_models": [side_model_to_wire(m) for m in header.side_models],
            "kinds": [kind_to_wire(kind) for kind in kinds],
            "records": pack_varints(ids),
            "numbers": pack_varints(_number_differences(records)),
            "streams": None if streams == list(range(len(streams))) else streams,
            "exponents": pack_varints(_differences([e for record in header.lowrank for e in record.exponents], 2)),
            "units": pack_varints([record.units for record in header.lowrank]),
            "blocks": list(header.blocks),
            "sections": [[s.codec, s.offset, s.length, s.crc32] for s in header.sections],
            "factors_sha256": header.factors_sha256,
            "config": header.config,
            "metadata": dict(header.metadata),
            "measured": dict(header.measured),
        }
    )


def unpack_header(data: bytes, limits: Limits) -> Header:
    """Parse and check a header; the records' precisions and amplitudes are zeros of the right length.

    Raises:
        FormatError: with code ``header``, ``limit``, ``generator`` or ``basis``.
    """
    top = fields.mapping(canonical.unpack(data), "header", KEYS)
    quantizers = tuple(quantizer_from_wire(q) for q in fields.listed(top["quantizers"], "quantizers"))
    if len(quantizers) > limits.quantizers:
        raise fields.over("quantizers", limits.quantizers, len(quantizers))
    sides = fields.listed(top["allocation"], "allocation", count=2)
    models = fields.listed(top["side_models"], "side_models", count=2)
    lowrank, raw = _records(top, limits)
    blocks = fields.integers(top["blocks"], "blocks", 1, limits.records)
    if sum(blocks) != len(lowrank):
        raise fields.bad("blocks", f"a sum of {len(lowrank)} records", sum(blocks))
    sections = tuple(_section(s) for s in fields.listed(top["sections"], "sections"))
    if len(sections) > limits.sections:
        raise fields.over("sections", limits.sections, len(sections))
    if len(sections) != 1 + len(blocks) + len(raw):
        raise fields.bad("sections", f"{1 + len(blocks) + len(raw)} of them", len(sections))
    generator = fields.integer(top["generator"], "generator", 0, 255)
    if generator not in WORDS_PER_BLOCK:
        raise FormatError(f"header `generator`: expected one of {sorted(WORDS_PER_BLOCK)}, found {generator}",
                          code="generator")  # fmt: skip
    config = top["config"]
    return Header(
        writer=fields.text(top["writer"], "writer", limits.name),
        dialect=fields.text(top["dialect"], "dialect", limits.name),
        generator=generator,
        seed=fields.integer(top["seed"], "seed", 0, (1 << 64) - 1),
        quantizers=quantizers,
        allocation=(
            allocation_from_wire(sides[0], len(quantizers)),
            allocation_from_wire(sides[1], len(quantizers)),
        ),
        amplitude_slope=fields.integer(top["amplitude_slope"], "amplitude_slope", -64, 64),
        side_models=(side_model_from_wire(models[0]), side_model_from_wire(models[1])),
        lowrank=lowrank,
        raw=raw,
        blocks=blocks,
        sections=sections,
        factors_sha256=fields.binary(top["factors_sha256"], "factors_sha256", count=32),
        config=None if config is None else fields.mapping(config, "config"),
        metadata=_string_map(top["metadata"]),
        measured={
            key: fields.real(value, "measured") for key, value in fields.mapping(top["measured"], "measured").items()
        },
    )


def _records(top: Mapping[str, Any], limits: Limits) -> tuple[tuple[LowRankRecord, ...], tuple[RawRecord, ...]]:
    wires = fields.listed(top["kinds"], "kinds")
    if len(wires) > limits.kinds:
        raise fields.over("kinds", limits.kinds, len(wires))
    kinds = [kind_from_wire(kind, limits) for kind in wires]
    if len(set(kinds)) != len(kinds):
        raise fields.bad("kinds", "distinct kinds", "the same kind twice")
    packed = fields.binary(top["records"], "records")
    count = sum(byte < 0x80 for byte in packed)
    if count > limits.records:
        raise fields.over("records", limits.records, count)
    ids = unpack_varints(packed, count, "header `records`")
    seen = 0
    for number in ids:  # kinds are listed in order of first use, each at least once
        fields.integer(number, "records", 0, min(seen, len(kinds) - 1))
        seen = max(seen, number + 1)
    if seen != len(kinds):
        raise fields.bad("kinds", f"{seen}, as many as are used", len(kinds))
    chosen = [kinds[number] for number in ids]
    names = _names(top["numbers"], ids, chosen, limits)
    families = [kind for kind in chosen if isinstance(kind, LowRankKind)]
    if any(isinstance(kind, LowRankKind) for kind in chosen[len(families) :]):
        raise fields.bad("records", "low-rank records before raw ones", "another order")
    _check_totals(families, [k for k in chosen if isinstance(k, RawKind)], limits)
    lowrank = _lowrank(top, names, families, limits)
    raw = tuple(RawRecord(name, kind) for name, kind in zip(names, chosen, strict=True) if isinstance(kind, RawKind))
    return lowrank, raw


def _lowrank(
    top: Mapping[str, Any], names: Sequence[str], families: Sequence[LowRankKind], limits: Limits
) -> tuple[LowRankRecord, ...]:
    count = len(families)
    streams: Sequence[int] = range(count)
    if top["streams"] is not None:
        streams = fields.integers(top["streams"], "streams", 0, (1 << 31) - 1, count=count)
    units = unpack_varints(fields.binary(top["units"], "units"), count, "header `units`")
    for kind, number in zip(families, units, strict=True):
        most = kind.rank if kind.split == "component" else 2
        fields.integer(number, "units", 0, most)
        if kind.split == "factor" and number == 1:
            raise fields.bad("units", "0 or 2 for a factor record", number)
    if sum(units) > limits.units:
        raise fields.over("units", limits.units, sum(units))
    steps = unpack_varints(fields.binary(top["exponents"], "exponents"), 2 * count, "header `exponents`")
    exponents = np.cumsum(np.array(steps, np.int64).reshape(-1, 2), axis=0).tolist()
    for pair in exponents:
        fields.integers(pair, "exponents", MIN_EXPONENT, MAX_EXPONENT)
    return tuple(
        LowRankRecord(name, kind, stream, (pair[0], pair[1]), np.zeros(n, np.int64), np.zeros(n, np.int64))
        for name, kind, stream, pair, n in zip(names[:count], families, streams, exponents, units, strict=True)
    )


def _check_totals(lowrank: Sequence[LowRankKind], raw: Sequence[RawKind], limits: Limits) -> None:
    elements = sum(k.rank * (k.rows + k.columns) for k in lowrank) + sum(k.nbytes for k in raw)
    if elements > limits.total_elements:
        raise fields.over("kinds shape (sum over all records)", limits.total_elements, elements)
    coefficients = sum((k.rank if k.split == "component" else 1) * sum(k.num_basis) for k in lowrank)
    if coefficients > limits.coefficients:
        raise fields.over("kinds num_basis (sum over all records)", limits.coefficients, coefficients)


def _names(value: Any, ids: Sequence[int], kinds: Sequence[LowRankKind | RawKind], limits: Limits) -> list[str]:
    holes = [kind.template.count("#") for kind in kinds]
    steps = iter(unpack_varints(fields.binary(value, "numbers"), sum(holes), "header `numbers`"))
    last: dict[int, list[int]] = {}
    names = []
    for number, kind, count in zip(ids, kinds, holes, strict=True):
        before = last.get(number, [0] * count)
        last[number] = [fields.integer(b + next(steps), "numbers", 0, 10**9 - 1) for b in before]
        names.append(fields.text(join_name(kind.template, last[number]), "name", limits.name))
    if len(set(names)) != len(names):
        raise fields.bad("records", "unique names", "the same name twice")
    return names


def _number_differences(records: Sequence[LowRankRecord | RawRecord]) -> list[int]:
    last: dict[LowRankKind | RawKind, tuple[int, ...]] = {}
    out: list[int] = []
    for record in records:
        _, numbers = split_name(record.name)
        before = last.get(record.kind, (0,) * len(numbers))
        out.extend(n - b for n, b in zip(numbers, before, strict=True))
        last[record.kind] = numbers
    return out


def _differences(values: Sequence[int], stride: int) -> list[int]:
    return [v - (values[i - stride] if i >= stride else 0) for i, v in enumerate(values)]


def _section(value: Any) -> Section:
    codec, offset, length, crc = fields.integers(value, "sections", 0, (1 << 63) - 1, count=4)
    fields.integer(crc, "sections crc32", 0, (1 << 32) - 1)
    return Section(codec, offset, length, crc)


def _string_map(value: Any) -> dict[str, str]:
    items = fields.mapping(value, "metadata")
    return {key: fields.text(item, "metadata", 1 << 24) for key, item in items.items()}
