"""`merge`: one or several `.nola` files into the weights of a model, exact and resumable."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nola_codec.adapters import delta as delta_dialect
from nola_codec.adapters.checkpoint import WEIGHTS_NAME, Checkpoint
from nola_codec.adapters.deltas import Delta as AdapterDelta
from nola_codec.adapters.files import display_name, require_free
from nola_codec.adapters.merged_model import MergeReport, OpenWeight, check_places, merge_directory
from nola_codec.adapters.merging import MergePlan, combine_plans, plan_merge
from nola_codec.adapters.places import merge_targets, merged_tensors
from nola_codec.adapters.streaming import PIECE_BYTES, ChangeRows
from nola_codec.api.modules import assembled, row_delta
from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.deltas import Delta, StackedDelta, WeightedSum
from nola_codec.decoder.factors import Decoded
from nola_codec.decoder.rounding import add_rows
from nola_codec.encoder.options import Progress
from nola_codec.errors import AdapterError
from nola_codec.model import LowRankKind

Weighted = Source | tuple[Source, float]


def merge(
    sources: Sequence[Weighted],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> MergeReport:
    """Write a model directory with the deltas of one or more files added to its weights.

    Each delta is computed as for one file, multiplied by its file's weight, added in the order given, then added to the
    weight it belongs to: float64, one rounding each, and at last one rounding to the weight's dtype. The bits depend
    neither on threads nor shards. Run again after it was killed, it keeps what was finished.

    Args:
        sources: `.nola` files, or pairs of file and weight; a weight not given is 1.
        base: A model directory of Transformers, or of a component of Diffusers; or a lone safetensors file, which is
            merged without a resume.
        out: The merged model, a directory; for a lone file a path that ends in ``.safetensors``.
        rung: Of progressive files: as if they ended with this rung, counted from 0.
        device: Where factors are synthesized; it changes no bit.
        overwrite: Replace `out`, if it is a model directory.
        progress: Called as (stage, done, total).
        piece_bytes: Worked on at once by a thread; it changes no bit.

    Returns:
        How many shards were written and how many an earlier, killed run had finished.

    Raises:
        FormatError, ChecksumMismatch: a file is damaged, or the decoded digest is not the encoder's.
        AdapterError: ``base-mismatch`` and others when the base does not fit; ``merge-conflict``, ``merge-weight`` for
            what cannot be combined; ``not-nola``: the arithmetic is exact only on decoded integers.
        OutputExists: `out` is there and `overwrite` is false.
    """
    if Path(base).is_file():
        return _merge_file(
            sources, Path(base), Path(out), rung=rung, device=device, overwrite=overwrite, progress=progress
        )
    # Not Path.resolve, which raises for a link to itself.
    check_places(Path(os.path.realpath(base)), Path(os.path.realpath(out)), overwrite=overwrite)
    checkpoint = Checkpoint(base)
    operands = [_open(source, checkpoint, rung, device) for source in sources]
    if not operands:
        raise AdapterError("no file to merge", code="not-found")
    plan = combine_plans([operand.plan for operand in operands], [operand.name for operand in operands])
    done = 0

    def count(_: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("merge", done, len(plan.matches))

    return merge_directory(
        base,
        out,
        plan,
        _weight_opener(operands),
        key=_key(operands),
        overwrite=overwrite,
        on_weight=count,
        piece_bytes=piece_bytes,
    )


def _merge_file(sources: Sequence[Weighted], base: Path, out: Path, *, overwrite: bool, **options: Any) -> MergeReport:
    """`merge` of a lone file: as a directory of its own, beside the output."""
    if out.suffix != ".safetensors":
        message = "the base is a lone file: give a path that ends in .safetensors"
        raise AdapterError(message, code="needs-file", where=str(out))
    require_free(out, overwrite=overwrite)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        model = Path(staging) / "base"
        model.mkdir()
        (model / WEIGHTS_NAME).symlink_to(base.resolve())
        report = merge(sources, model, Path(staging) / "merged", **options)
        os.replace(report.output / WEIGHTS_NAME, out)
    return replace(report, output=out)


@dataclass(frozen=True)
class _Operand:
    """A file of a merge, decoded.

    Attributes:
        name: For messages.
        weight: Of all its deltas.
        digests: Of its content and of what it decodes to.
        plan: What it changes.
        parts: By delta, its records; see `merge_targets`.
        decoded: By record name, what it decodes to.
        kinds: By record name, of the low-rank ones.
        xp: Where `decoded` is.
    """

    name: str
    weight: float
    digests: tuple[str, str]
    plan: MergePlan
    parts: Mapping[str, Sequence[AdapterDelta]]
    decoded: Mapping[str, Decoded]
    kinds: Mapping[str, LowRankKind]
    xp: Arrays

    def delta(self, weight: str, shape: tuple[int, ...]) -> Delta | None:
        """What the file adds to a weight; None where nothing."""
        match = self.plan.matches.get(weight)
        if match is None:
            return None
        parts = self.parts[match.module]
        if len(parts) > 1:
            # Slices are (out, in), or the other way round.
            turned = parts[0].shape != shape[1:]
            return StackedDelta([self._rows(part, shape[1:], turned) for part in parts])
        return self._rows(parts[0], shape, match.transposed)

    def _rows(self, part: AdapterDelta, shape: tuple[int, ...], transposed: bool) -> Delta:
        return row_delta(part, self.decoded, self.kinds, self.xp, shape, transposed=transposed)


def _open(source: Weighted, checkpoint: Checkpoint, rung: int | None, device: object) -> _Operand:
    source, weight = source if isinstance(source, tuple) else (source, 1.0)
    name = display_name(source)
    if not math.isfinite(weight):
        raise AdapterError(f"the weight {weight} is not a finite number", code="merge-weight", where=name)
    _refuse_adapters(source, name)
    xp: Arrays = NUMPY if str(device) == "cpu" else TorchArrays(device)
    with open_container(source, rung=rung) as container:
        container.check_content()
        decoder = Decoder(container, xp)
        header = decoder.header
        factors, vectors = decoder.checked()
        adapter = assembled(decoder, factors, vectors)
        targets = merge_targets(adapter, checkpoint)
        raw = merged_tensors(adapter)
        if raw and weight != 1:
            message = f"carries {next(iter(raw))}, which is not a delta and cannot be weighted by {weight}"
            raise AdapterError(message, code="merge-weight", where=name)
        config = header.config if header.dialect == "peft" else None
        wanted = [target for target, _ in targets.values()]
        plan = plan_merge(checkpoint, wanted, raw, config, stays_tied=header.dialect == delta_dialect.name)
        names = [record.name for record in header.coded]
        return _Operand(
            name,
            weight,
            (container.prelude.content_sha256.hex(), header.factors_sha256.hex()),
            plan,
            {target: parts for target, (_, parts) in targets.items()},
            dict(zip(names, [*factors, *vectors], strict=True)),
            {record.name: record.kind for record in header.lowrank},
            xp,
        )


def _refuse_adapters(source: Source, name: str) -> None:
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    if path.is_dir() or path.suffix == ".safetensors":
        message = "is an adapter, not a .nola file; a merge is exact only on decoded integers: `encode` it first"
        raise AdapterError(message, code="not-nola", where=name)


def _key(operands: Sequence[_Operand]) -> str:
    """Of all that decides the deltas; the factors' digest tells rungs apart."""
    return json.dumps([[*o.digests, float(o.weight).hex()] for o in operands])


def _weight_opener(operands: Sequence[_Operand]) -> OpenWeight:
    def open_weight(name: str, dtype: str, shape: tuple[int, ...]) -> ChangeRows:
        found = [(operand.delta(name, shape), operand.weight) for operand in operands]
        terms = [(delta, weight) for delta, weight in found if delta is not None]
        total: Delta = terms[0][0] if len(terms) == 1 and terms[0][1] == 1 else WeightedSum(terms)

        def change(data: memoryview, start: int, stop: int) -> None:
            add_rows(data, dtype, total, start, stop, where=name)

        return change

    return open_weight
