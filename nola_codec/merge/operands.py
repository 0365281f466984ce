"""Files of a merge: decoded, and with the place in a base model that each of their deltas has."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nola_codec.adapters import dialect_of
from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.arrays import Arrays, arrays_on
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.adapters import assembled
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import Decoded
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.deltas import RowDelta, StackedDelta
from nola_codec.merge.places import WeightShapes, grouped_deltas
from nola_codec.merge.plan import MergePlan, plan_merge
from nola_codec.merge.row_deltas import row_delta
from nola_codec.model.adapter import Adapter
from nola_codec.model.records import LowRankKind
from nola_codec.stores.files import display_name

Weighted = Source | tuple[Source, float]


@dataclass(frozen=True)
class MergeFile:
    """A file of a merge, decoded.

    Attributes:
        name: For messages.
        weight: Of all its deltas.
        digests: SHA-256 of its content and of what it decodes to, which tells rungs apart.
        adapter: What it decodes to.
        parts: By delta, its records; the experts of one parameter are one delta of several parts.
        decoded: By record, its integers.
        kinds: By record, of the low-rank ones.
        xp: Where `decoded` is.
    """

    name: str
    weight: float
    digests: tuple[str, str]
    adapter: Adapter
    parts: Mapping[str, Sequence[AdapterDelta]]
    decoded: Mapping[str, Decoded]
    kinds: Mapping[str, LowRankKind]
    xp: Arrays

    def delta(self, name: str, shape: tuple[int, ...], transposed: bool) -> RowDelta:
        """What the file adds to a weight of that shape by one of its deltas.

        Raises:
            AdapterError: ``unmerge-files``: it has no such delta.
        """
        if name not in self.parts:
            raise AdapterError("the file has no such module", code="unmerge-files", where=f"{self.name}: {name}")
        parts = self.parts[name]
        if len(parts) == 1:
            return row_delta(parts[0], self.decoded, self.kinds, self.xp, shape, transposed=transposed)
        turned = parts[0].shape != shape[1:]  # experts lie (out, in), or the other way round
        slices = [row_delta(p, self.decoded, self.kinds, self.xp, shape[1:], transposed=turned) for p in parts]
        return StackedDelta(slices)


@dataclass(frozen=True)
class Operand:
    """A file and its place in a base model."""

    file: MergeFile
    plan: MergePlan

    @property
    def weight(self) -> float:
        """Of all its deltas."""
        return self.file.weight

    def delta(self, weight: str, shape: tuple[int, ...]) -> RowDelta | None:
        """What the file adds to a weight; None where nothing."""
        match = self.plan.matches.get(weight)
        return None if match is None else self.file.delta(match.module, shape, match.transposed)


def decode_file(source: Weighted, rung: int | None, device: object) -> MergeFile:
    """Decode a file and check its digest.

    Raises:
        AdapterError: ``merge-weight``; ``not-nola``.
        FormatError, ChecksumMismatch: the file is damaged.
    """
    source, weight = source if isinstance(source, tuple) else (source, 1.0)
    name = display_name(source)
    if not math.isfinite(weight):
        raise AdapterError(f"the weight {weight} is not a finite number", code="merge-weight", where=name)
    if isinstance(source, str | os.PathLike) and (Path(source).is_dir() or Path(source).suffix == ".safetensors"):
        message = "is an adapter, not a .nola file; a merge is exact only on decoded integers: `encode` it first"
        raise AdapterError(message, code="not-nola", where=name)
    xp = arrays_on(device)
    with open_container(source, rung=rung) as container:
        container.check_content()
        return merge_file(Decoder(container, xp), name, weight)


def merge_file(decoder: Decoder, name: str, weight: float = 1.0) -> MergeFile:
    """An open file, decoded and checked. Raises FormatError, ChecksumMismatch: it is damaged."""
    header = decoder.header
    factors, vectors = decoder.checked()
    adapter = assembled(decoder, factors, vectors)
    names = [record.name for record in header.coded]
    return MergeFile(
        name,
        weight,
        (decoder.container.prelude.content_sha256.hex(), header.factors_sha256.hex()),
        adapter,
        grouped_deltas(adapter),
        dict(zip(names, [*factors, *vectors], strict=True)),
        {record.name: record.kind for record in header.lowrank},
        decoder.xp,
    )


def fit(file: MergeFile, checkpoint: Checkpoint) -> Operand:
    """Find the place of each delta. Raises AdapterError: as `merge_targets`, `plan_merge`, or ``merge-weight``."""
    dialect = dialect_of(file.adapter)
    targets = dialect.merge_targets(file.adapter, file.parts, WeightShapes.of(checkpoint), file.name)
    raw = dialect.model_tensors(file.adapter)
    if raw and file.weight != 1:
        message = f"carries {next(iter(raw))}, which is not a delta and cannot be weighted by {file.weight}"
        raise AdapterError(message, code="merge-weight", where=file.name)
    config, stays_tied = dialect.merge_config(file.adapter), dialect.changes_stored_weights
    return Operand(file, plan_merge(checkpoint, targets, raw, config, stays_tied=stays_tied))
