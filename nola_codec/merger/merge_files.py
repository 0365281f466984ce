"""Decode and check a `.nola` file for a merge, and sort its records by delta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.arrays import Arrays, arrays_on
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.container.limits import Limits
from nola_codec.container.reader import open_container
from nola_codec.decoder.adapters import build_adapter, count_records
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.deltas import RowDelta, StackedDelta
from nola_codec.merger.places import grouped_deltas
from nola_codec.merger.request import WeightedSource
from nola_codec.merger.row_deltas import row_delta
from nola_codec.model.adapter import Adapter, BaseEntry
from nola_codec.model.records import CodedKind
from nola_codec.progress import Progress
from nola_codec.references.finding import References, open_decoder
from nola_codec.stores.files import display_name


@dataclass(frozen=True)
class MergeFile:
    """A decoded file.

    Attributes:
        name: The file's name, for messages.
        weight: The number that all its deltas are multiplied by.
        hashes: The content SHA-256 and the decoded SHA-256, hexadecimal. The second differs from rung to rung.
        adapter: The adapter that the file decodes to.
        parts: The records of each delta, by its name; the experts of one parameter are one delta of several parts.
        decoded: The decoded integers of each record, by its name.
        kinds: The kind of each low-rank record, by its name.
        xp: The arrays that `decoded` is made of.
        base: The base model that the file names, if it names one.
    """

    name: str
    weight: float
    hashes: tuple[str, str]
    adapter: Adapter
    parts: Mapping[str, Sequence[AdapterDelta]]
    decoded: Mapping[str, DecodedRecord]
    kinds: Mapping[str, CodedKind]
    xp: Arrays
    base: BaseEntry | None = None

    @property
    def key(self) -> list[str]:
        """All that the deltas depend on: the hashes, and the weight as a hexadecimal float."""
        return [*self.hashes, float(self.weight).hex()]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a delta in its own orientation: (out, in), or (experts, out, in).

        Raises:
            AdapterError: ``unmerge-files``: the file has no such delta.
        """
        if name not in self.parts:
            raise AdapterError("the file has no such module", code="unmerge-files", where=f"{self.name}: {name}")
        parts = self.parts[name]
        return parts[0].shape if len(parts) == 1 else (len(parts), *parts[0].shape)

    def delta(self, name: str, shape: tuple[int, ...], transposed: bool) -> RowDelta:
        """Return one delta as the rows that are added to a weight.

        Args:
            name: The name of the delta.
            shape: The shape of the weight.
            transposed: True if the weight is stored (in, out).

        Raises:
            AdapterError: ``unmerge-files``: the file has no such delta.
        """
        self.shape_of(name)
        parts = self.parts[name]
        if len(parts) == 1:
            return row_delta(parts[0], self.decoded, self.kinds, self.xp, shape, transposed=transposed)
        turned = transposed or parts[0].shape != shape[1:]  # the experts of a parameter may all be stored (in, out)
        slices = [row_delta(p, self.decoded, self.kinds, self.xp, shape[1:], transposed=turned) for p in parts]
        return StackedDelta(slices)


def require_base(files: Sequence[MergeFile], checkpoint: Checkpoint) -> None:
    """Raise AdapterError ``other-base`` if a file names a base model, and this is another one.

    The fingerprint of the base is only made if a file names one.
    """
    named = [file for file in files if file.base is not None]
    found = checkpoint.fingerprint() if named else b""
    for file in named:
        assert file.base is not None
        if file.base.sha256 != found:
            base = " ".join(filter(None, (file.base.name, file.base.revision))) or "a base model without a name"
            message = (
                f"made for {base}, whose weights are others than those of {checkpoint.directory} (fingerprint "
                f"{file.base.sha256.hex()[:16]}, found {found.hex()[:16]}); merge into that model, or give --any-base "
                "(any_base=True) if this one will do, such as the same weights in another dtype"
            )
            raise AdapterError(message, code="other-base", where=file.name)


def decode_source(
    source: WeightedSource,
    rung: int | None,
    device: object,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> MergeFile:
    """Decode a file, and compare its content SHA-256 and its decoded SHA-256.

    Args:
        source: The file, or the file and its weight.
        rung: The rung to decode, counted from 0; None is the last.
        device: The device that factors are synthesized on.
        progress: Called as (stage, done, total), or None.
        references: Where the earlier version is that the file needs, if it needs one (`references.finding`).
        limits: What the file may declare; None as in `open_container`.

    Raises:
        AdapterError: ``merge-weight``: the weight is not finite; ``not-nola``; ``unknown-rung``.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    source, weight = source if isinstance(source, tuple) else (source, 1.0)
    name = display_name(source)
    if not math.isfinite(weight):
        raise AdapterError(f"the weight {weight} is not a finite number", code="merge-weight", where=name)
    xp = arrays_on(device)
    with open_container(source, limits, rung=rung) as container:
        container.check_content()
        return decode_merge_file(open_decoder(container, xp, references), name, weight, progress)


def decode_merge_file(decoder: Decoder, name: str, weight: float = 1.0, progress: Progress | None = None) -> MergeFile:
    """Decode an open file, and compare its decoded SHA-256.

    Args:
        decoder: The open file.
        name: The file's name, for messages.
        weight: The number that all its deltas are multiplied by.
        progress: Called as (stage, done, total), or None.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
    """
    header = decoder.header
    records = decoder.decode_all(count_records(decoder, progress))
    adapter = build_adapter(decoder, records)
    names = [record.name for record in header.coded]
    return MergeFile(
        name,
        weight,
        (decoder.container.prelude.content_sha256.hex(), header.decoded_sha256.hex()),
        adapter,
        grouped_deltas(adapter),
        dict(zip(names, records, strict=True)),
        {record.name: record.kind for record in header.pairs},
        decoder.xp,
        header.base,
    )
