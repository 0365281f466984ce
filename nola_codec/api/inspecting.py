"""`inspect`: what a file holds, read from its first few hundred bytes; nothing is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nola_codec.adapters import Dialect, find_dialect
from nola_codec.adapters.registry import UNKNOWN
from nola_codec.api.arguments import require_source
from nola_codec.basis import basis_by_id
from nola_codec.container.limits import INSPECT_LIMITS, Limits
from nola_codec.container.names import natural_key
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.decoder.carried_forms import CODED, INT8, is_reduced
from nola_codec.entropy import CODECS
from nola_codec.errors import NolaError
from nola_codec.model.header import GAIN_ONE, Header
from nola_codec.model.records import CodedRecord
from nola_codec.prng import generator_name
from nola_codec.rendering import (
    render_error,
    render_error_name,
    render_largest,
    render_named_table,
    render_row,
    render_scalings,
    render_size,
    render_size_in_fp16,
    render_verdict,
)


@dataclass(frozen=True)
class TensorFacts:
    """One record of a file. Fields that a kind of record does not have are None.

    Attributes:
        name: Module path of a low-rank record; key of any other tensor.
        record: ``lowrank``, ``vector``, ``raw`` (a carried tensor) or ``drawn``.
        shape: (out, in, ...) of delta_W; of any other tensor its own.
        layout: Kind of layer, for ``lowrank``.
        rank: Rank of the source, for ``lowrank``.
        scaling: Factor of ``lora_B @ lora_A``, for ``lowrank``.
        dtype: Type of the numbers in the source.
        units: How many components, vectors or factors are coded.
        coefficients: How many coefficients are coded.
        stream: Stream of the generator that the basis is drawn from.
        bytes: Size of a carried tensor; 0 for a drawn one.
        stored: Bytes that a carried tensor takes in the file.
        method: Distribution of a drawn tensor.
        seed: Seed of a drawn tensor.
    """

    name: str
    record: str
    shape: tuple[int, ...]
    layout: str | None = None
    rank: int | None = None
    scaling: float | None = None
    dtype: str | None = None
    units: int | None = None
    coefficients: int | None = None
    stream: int | None = None
    bytes: int | None = None
    stored: int | None = None
    method: str | None = None
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class FileFacts:
    """The contents of a file. `print(facts)` shows what the command line shows.

    Attributes:
        name: The path, or what else the file was read from.
        format_version, format_revision: Version of the file format.
        draft: True if the format version is a draft.
        writer: Program that wrote the file.
        dialect: Dialect of the adapter.
        method: The method of PEFT, such as ``VeRA``; empty for LoRA and other dialects.
        scalings: The different scalings of the modules, sorted.
        scale_origin: The place that they came from, as in `EncodeReport`; empty if there is no scaling.
        base_model: The base model that the adapter names, or None.
        base_revision: Revision of the base model, or None.
        bytes: Size of the file.
        parameters: Numbers in the adapter.
        ratio: How many times smaller than the parameters in fp16.
        generator: Pseudo-random generator of the bases.
        seed: Seed of the bases.
        bases: Names of the bases.
        form: The forms of the coded records: ``component``, ``factor``, ``difference``.
        reference: For a file that holds the difference to an earlier version: ``sha256``, ``files`` below it, its
            ``name`` and the ``gains``; else None.
        quantizers: How many quantizers the file has.
        entropy: Names of the entropy codecs.
        coefficients: How many coefficients are coded.
        bits_per_coefficient: Bytes of the coefficients' sections, in bits for each.
        bytes_by_part: Bytes of the header, the units, the coefficients and the carried tensors.
        measured: Errors that the encoder measured, by name.
        rungs: For each rung of a progressive file: ``bytes`` that a reader needs, and the errors measured there.
        config: Configuration of the adapter, or None.
        metadata: Metadata of the adapter's file.
        content_sha256: Hash over the rest of the file that is stored in its prelude, 16 bytes in hexadecimal.
        decoded_sha256: Hash of everything the file decodes to, hexadecimal.
        signed_by: The public key that a signature names, in hexadecimal, which only `verify` checks; None without one.
        tensors: Records, in the order of the file, by kind.
    """

    name: str
    format_version: int
    format_revision: int
    draft: bool
    writer: str
    dialect: str
    method: str
    scalings: tuple[float, ...]
    scale_origin: str
    base_model: str | None
    base_revision: str | None
    bytes: int
    parameters: int
    ratio: float
    generator: str
    seed: int
    bases: tuple[str, ...]
    form: tuple[str, ...]
    reference: Mapping[str, Any] | None
    quantizers: int
    entropy: tuple[str, ...]
    coefficients: int
    bits_per_coefficient: float
    bytes_by_part: Mapping[str, int]
    measured: Mapping[str, float]
    rungs: tuple[Mapping[str, float], ...]
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    content_sha256: str
    decoded_sha256: str
    signed_by: str | None
    tensors: tuple[TensorFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        plain = asdict(self)
        return {**plain, "tensors": [tensor.to_dict() for tensor in self.tensors]}

    @property
    def is_trained(self) -> bool:
        """True if the file was trained on data, so that the errors of its weights say nothing of what it does."""
        return "loss" in self.measured or "distance" in self.measured

    @property
    def verdict(self) -> str:
        """The size of the file, and what to expect of its task, in a sentence of one line."""
        from nola_codec.api.expecting import find_outlook

        return render_verdict(self.bytes, self.ratio, find_outlook(self))

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(render_row(label, value, 16) for label, value in _lines(self))])

    def tensor_table(self, order: str = "file", width: int | None = None) -> str:
        """Every record as a line of a table.

        Args:
            order: One of `ORDERS`: ``file`` (as stored), ``name`` (numbers by their value), ``coefficients`` (the most
                of them first; carried tensors follow, the largest first) or ``kept`` (the fewest units first).
            width: Columns of the screen. If a row is wider, each name stands on a line of its own. None stands for
                any width.

        Raises:
            NolaError: ``option``: The order is unknown.
        """
        if order not in ORDERS:
            raise NolaError(f"order: expected {', '.join(ORDERS)}, found {order!r}", code="option")
        rows = [["shape", "rank", "kept", "coefficients", "name"]]
        for item in sorted(self.tensors, key=ORDERS[order]):
            shape = "x".join(map(str, item.shape))
            if item.record == "raw":
                rows.append([f"{shape} {item.dtype}", "", "", render_size(item.stored or 0), item.name])
            elif item.record == "drawn":
                rows.append([f"{shape} {item.dtype}", "drawn", "", f"seed {item.seed}", item.name])
            else:
                rank = str(item.rank) if item.record == "lowrank" else "vector"
                rows.append([shape, rank, str(item.units), f"{item.coefficients:,}", item.name])
        return "\n".join(render_named_table(rows, right=(1, 2, 3), width=width))


ORDERS: Mapping[str, Callable[[TensorFacts], Any]] = {
    "file": lambda item: 0,
    "name": lambda item: natural_key(item.name),
    "coefficients": lambda item: (-(item.coefficients or 0), -(item.stored or 0)),
    "kept": lambda item: (item.units is None, item.units),
}
"""The orders of a table of tensors: for each name a key to sort by. Equal tensors stay in the order of the file."""


def inspect(source: Source, *, limits: Limits | None = None) -> FileFacts:
    """Describe a file: versions, sizes, generator, measured errors, and every tensor.

    Args:
        source: The `.nola` file.
        limits: What the file may declare. None stands for `INSPECT_LIMITS`, which are far lower than those of other
            functions, with the changes of the environment variable NOLA_LIMITS.

    Raises:
        AdapterError: ``source-type``.
        FormatError, ChecksumMismatch: Prelude or header are not well-formed. Sections are not read.
    """
    require_source(source)
    with open_container(source, limits, default_limits=INSPECT_LIMITS) as container:
        return _facts(container)


def _scalings(header: Header) -> tuple[float, ...]:
    """Return the different scalings of the pairs, sorted. The parts of a LoHa or LoKr have none of their own."""
    from nola_codec.adapters.dialects.lycoris_keys import PART

    return tuple(sorted({low.kind.scaling for low in header.pairs if PART.fullmatch(low.name) is None}))


def _method(header: Header) -> str:
    """Return the title of the dialect's variant for the configuration; empty if the dialect itself is meant."""
    dialect = _dialect(header)
    variant = dialect.variant(header.config)
    return "" if variant is dialect else variant.title


def _facts(container: Container) -> FileFacts:
    header, kept = container.header, container.count_units()
    numbers = _parameters(header) + sum(math.prod(r.kind.shape) for r in header.raw)
    lengths = [s.length for s in header.sections]
    units = [header.units_section(rung) for rung in range(len(header.rungs))]
    blocks = [unit + 1 + block for unit in units for block in range(len(header.blocks))]
    coefficients = sum(_coefficients(r, count) for r, count in zip(header.coded, kept, strict=True))
    codecs = {header.sections[i].codec for i in blocks}
    return FileFacts(
        name=container.name,
        format_version=container.prelude.version,
        format_revision=container.prelude.revision,
        draft=container.prelude.version == 0,
        writer=header.writer,
        dialect=header.dialect,
        method=_method(header),
        scalings=(scalings := _scalings(header)),
        scale_origin=_dialect(header).scale_origin(header.config, header.metadata) if scalings else "",
        base_model=_base_model(header),
        base_revision=(header.config or {}).get("revision"),
        bytes=container.file_length,
        parameters=numbers,
        ratio=2 * numbers / container.file_length,
        generator=generator_name(header.generator),
        seed=header.seed,
        bases=tuple(sorted({basis_by_id(r.kind.basis).name for r in header.coded})),
        form=tuple(sorted({r.kind.split for r in header.coded})),
        reference=_reference(header),
        quantizers=len(header.quantizers),
        entropy=tuple(sorted(CODECS[codec].name for codec in codecs if codec in CODECS)),
        coefficients=coefficients,
        bits_per_coefficient=8 * sum(lengths[i] for i in blocks) / coefficients if coefficients else 0.0,
        bytes_by_part={
            "header": container.header_length,
            "units": sum(lengths[i] for i in units),
            "coefficients": sum(lengths[i] for i in blocks),
            "carried": sum(lengths[header.raw_section(i)] for i in range(len(header.raw))),
        },
        measured=dict(header.measured),
        rungs=tuple(
            {"bytes": container.rung_bytes(rung), **header.rungs[rung].measured} for rung in range(len(header.rungs))
        ),
        config=header.config,
        metadata=dict(header.metadata),
        content_sha256=container.prelude.content_sha256.hex(),
        decoded_sha256=header.decoded_sha256.hex(),
        signed_by=None if container.signature is None else container.signature.public_key.hex(),
        tensors=tuple(_tensors(header, kept)),
    )


def _lines(facts: FileFacts) -> list[tuple[str, str]]:
    """Labels and values of `str(facts)`."""
    draft = ", a draft: readers of later versions may refuse it" if facts.draft else ""
    whole = [tensor for tensor in facts.tensors if not is_reduced(tensor.name)]
    reduced = sum(tensor.name.endswith((CODED, INT8)) for tensor in facts.tensors)
    count = {kind: sum(t.record == kind for t in whole) for kind in ("lowrank", "vector", "raw", "drawn")}
    products = "products" if facts.dialect == "parameters" else "deltas"
    counts = [f"{count['lowrank']} {products}"] if count["lowrank"] or not whole else []
    counts += [f"{count['vector']} vectors"] if count["vector"] else []
    counts += [f"{count['raw']} carried as they came"] if count["raw"] else []
    counts += [f"{reduced} carried, reduced"] if reduced else []
    counts += [f"{count['drawn']} drawn again from a seed"] if count["drawn"] else []
    rate = f"{facts.coefficients:,}, {facts.bits_per_coefficient:.3f} bits each, {', '.join(facts.entropy)}"
    lines = [
        ("file", facts.name),
        ("expectation", _expectation(facts)),
        ("size", render_size_in_fp16(facts.bytes, facts.parameters)),
        ("format", f"version {facts.format_version}.{facts.format_revision}{draft}"),
        ("written by", facts.writer),
        *([("signed by", f"{facts.signed_by} (verify --key checks it)")] if facts.signed_by else []),
        ("dialect", f"{facts.dialect} ({facts.method})" if facts.method else facts.dialect),
        ("base model", facts.base_model or "not named"),
        ("tensors", ", ".join(counts)),
        ("parameters", f"{facts.parameters:,}"),
        ("basis", f"{', '.join(facts.bases) or 'none'}, {facts.generator}, seed {facts.seed}"),
        ("form", ", ".join(facts.form) or "none"),
        *([] if facts.reference is None else [("needs", render_reference(facts.reference))]),
        ("coefficients", rate),
        ("bytes", ", ".join(f"{name} {render_size(size)}" for name, size in facts.bytes_by_part.items() if size)),
        *((render_error_name(name), render_error(value)) for name, value in facts.measured.items()),
        ("decoded SHA-256", facts.decoded_sha256),
    ]
    carried = {tensor.name: tensor.stored for tensor in facts.tensors if tensor.stored is not None}
    if carried:
        lines.append(("carried", render_largest(carried)))
    if facts.scale_origin:
        lines.insert(6, ("scaling", render_scalings(facts.scalings, facts.scale_origin)))
    if len(facts.rungs) > 1:
        for number, rung in enumerate(facts.rungs):
            errors = ", ".join(
                f"{render_error_name(name)} {render_error(value)}" for name, value in rung.items() if name != "bytes"
            )
            lines.append((f"rung {number}", f"{render_size(rung['bytes'])} of the file, {errors}"))
    return lines


def _expectation(facts: FileFacts) -> str:
    """Return what the expectation of the verdict rests on, or why there is none."""
    from nola_codec.api.expecting import expect_of, find_difference

    expected = expect_of(facts)
    return f"none. {find_difference(facts)}" if expected is None else expected.basis


def _reference(header: Header) -> dict[str, Any] | None:
    """Return what the file says of its reference, or None."""
    entry = header.reference
    if entry is None:
        return None
    gains = [gain / GAIN_ONE for gain in entry.gains]
    return {"sha256": entry.sha256.hex(), "files": entry.files, "name": entry.name, "gains": gains}


def render_reference(reference: Mapping[str, Any], quote: Callable[[str], str] = str) -> str:
    """Return the words for `FileFacts.reference`; `quote` is put around what the file says itself, such as the name."""
    kind = "decoded SHA-256" if reference["files"] else "an adapter that was not coded, SHA-256"
    name = f"{quote(reference['name'])}, " if reference["name"] else ""
    below = reference["files"] - 1
    chain = f", and the {below} file{'' if below == 1 else 's'} below it" if below > 0 else ""
    return f"{name}{kind} {quote(reference['sha256'])}{chain}"


def _base_model(header: Header) -> str | None:
    """Return the base model that the adapter names: in PEFT's or MLX's configuration, or in kohya's metadata."""
    return _dialect(header).base_model(header.config or {}, header.metadata)


def _dialect(header: Header) -> Dialect:
    """The file's dialect; for one that is not known here, the rules that hold for all dialects."""
    return find_dialect(header.dialect) or UNKNOWN


def _tensors(header: Header, kept: Sequence[int]) -> Iterator[TensorFacts]:
    """Yield the records of a file; `kept` has the number of units of each coded record."""
    for low, units in zip(header.pairs, kept, strict=False):
        yield TensorFacts(
            low.name, "lowrank", (low.kind.product_shape[0], *low.kind.stored_shapes[1][1:]), layout=low.kind.layout,
            rank=low.kind.rank, scaling=low.kind.scaling, units=units, coefficients=_coefficients(low, units),
            stream=low.stream,
        )  # fmt: skip
    for vector, units in zip(header.vectors, kept[len(header.pairs) :], strict=True):
        yield TensorFacts(
            vector.name, "vector", vector.kind.stored_shapes[0], dtype=vector.kind.dtype, units=units,
            coefficients=_coefficients(vector, units), stream=vector.stream,
        )  # fmt: skip
    for number, raw in enumerate(header.raw):
        yield TensorFacts(
            raw.name, "raw", raw.kind.shape, dtype=raw.kind.dtype, bytes=raw.kind.nbytes,
            stored=header.sections[header.raw_section(number)].length,
        )  # fmt: skip
    for drawn in header.drawn:
        draw = drawn.kind.draw
        yield TensorFacts(
            drawn.name, "drawn", draw.shape, dtype=draw.dtype, bytes=0, method=draw.method, seed=draw.seed
        )


def _parameters(header: Header) -> int:
    """Numbers in the factors and vectors; for the dialects `delta` and `parameters`, in the weights that they make."""
    dialect = _dialect(header)
    if not dialect.holds_whole_weights:
        return sum(r.kind.elements for r in header.coded)
    weights = {dialect.weight_of_record(r.name): r.kind.elements for r in header.vectors}
    weights |= {r.name: math.prod(r.kind.product_shape) for r in header.pairs}
    return sum(weights.values())


def _coefficients(record: CodedRecord, units: int) -> int:
    return record.kind.vectors(units) * sum(record.kind.num_basis)
