"""`merge`: one or several `.nola` files into the weights of a model, exact and resumable."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nola_codec.adapters.checkpoint import Checkpoint
from nola_codec.adapters.files import display_name
from nola_codec.adapters.merged_model import MergeReport, OpenWeight, Undoing, check_places, merge_directory
from nola_codec.adapters.merging import MergePlan, combine_plans, plan_merge
from nola_codec.adapters.streaming import PIECE_BYTES, ChangeRows
from nola_codec.adapters.undo import Index, decode_residual, encode_residual
from nola_codec.adapters.unmerged_model import Restore, unmerge_directory
from nola_codec.api.modules import merge_target
from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.deltas import Delta, WeightedSum, factor_delta
from nola_codec.decoder.factors import Factors
from nola_codec.decoder.rounding import add_bits, add_rows, subtract_bits, take_rows
from nola_codec.encoder.options import Progress
from nola_codec.errors import AdapterError
from nola_codec.model import Header, RawTensor

Weighted = Source | tuple[Source, float]


def merge(
    sources: Sequence[Weighted],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    keep_undo: bool = False,
    progress: Progress | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> MergeReport:
    """Write a model directory with the deltas of one or more files added to its weights.

    Each delta is computed as for one file, multiplied by its file's weight, added in the order given, then added to the
    weight it belongs to: float64, one rounding each, and at last one rounding to the weight's dtype. The bits depend
    neither on threads nor shards. Run again after it was killed, it keeps what was finished.

    Args:
        sources: `.nola` files, or pairs of file and weight; a weight not given is 1.
        base: A model directory of Transformers, or of a component of Diffusers.
        out: The merged model.
        rung: Of progressive files: as if they ended with this rung, counted from 0.
        device: Where factors are synthesized; it changes no bit.
        overwrite: Replace `out`, if it is a model directory.
        keep_undo: Write ``nola_undo.bin`` beside the weights, with which `unmerge` restores the base to the bit.
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
    check_places(Path(base).resolve(), Path(out).resolve(), overwrite=overwrite)
    checkpoint = Checkpoint(base)
    operands = [_fit(_decode(source, rung, device), checkpoint) for source in sources]
    if not operands:
        raise AdapterError("no file to merge", code="not-found")
    plan = combine_plans([operand.plan for operand in operands], [operand.file.name for operand in operands])
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
        keep=_undoing(operands, plan) if keep_undo else None,
        piece_bytes=piece_bytes,
    )


@dataclass(frozen=True)
class _Decoded:
    """A file of a merge, decoded."""

    name: str
    weight: float
    header: Header
    content: str
    raw: Mapping[str, RawTensor]
    factors: Sequence[Factors]
    xp: Arrays

    def delta(self, module: str, shape: tuple[int, ...], transposed: bool) -> Delta:
        """What the file adds to a weight of that shape by one of its modules."""
        found = [i for i, record in enumerate(self.header.lowrank) if record.name == module]
        if not found:
            raise AdapterError("the file has no such module", code="unmerge-files", where=f"{self.name}: {module}")
        kind = self.header.lowrank[found[0]].kind
        return factor_delta(self.factors[found[0]], kind, self.xp, shape, transposed=transposed)


@dataclass(frozen=True)
class _Operand:
    """A file and its place in a base model."""

    file: _Decoded
    plan: MergePlan

    @property
    def weight(self) -> float:
        return self.file.weight

    def delta(self, weight: str, shape: tuple[int, ...]) -> Delta | None:
        """What the file adds to a weight; None where nothing."""
        match = self.plan.matches.get(weight)
        return None if match is None else self.file.delta(match.module, shape, match.transposed)


def _decode(source: Weighted, rung: int | None, device: object) -> _Decoded:
    source, weight = source if isinstance(source, tuple) else (source, 1.0)
    name = display_name(source)
    if not math.isfinite(weight):
        raise AdapterError(f"the weight {weight} is not a finite number", code="merge-weight", where=name)
    _refuse_adapters(source, name)
    xp: Arrays = NUMPY if str(device) == "cpu" else TorchArrays(device)
    with open_container(source, rung=rung) as container:
        container.check_content()
        decoder = Decoder(container, xp)
        raw = {record.name: decoder.raw(i) for i, record in enumerate(decoder.header.raw)}
        content = container.prelude.content_sha256.hex()
        return _Decoded(name, weight, decoder.header, content, raw, decoder.checked(), xp)


def _fit(file: _Decoded, checkpoint: Checkpoint) -> _Operand:
    if file.raw and file.weight != 1:
        message = f"carries {next(iter(file.raw))}, which is not a delta and cannot be weighted by {file.weight}"
        raise AdapterError(message, code="merge-weight", where=file.name)
    targets = [merge_target(record) for record in file.header.lowrank]
    return _Operand(file, plan_merge(checkpoint, targets, file.raw, file.header.config))


def _refuse_adapters(source: Source, name: str) -> None:
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    if path.is_dir() or path.suffix == ".safetensors":
        message = "is an adapter, not a .nola file; a merge is exact only on decoded integers: `encode` it first"
        raise AdapterError(message, code="not-nola", where=name)


def _key(operands: Sequence[_Operand]) -> str:
    """Of all that decides the deltas; the factors' digest tells rungs apart."""
    files = [operand.file for operand in operands]
    return json.dumps([[f.content, f.header.factors_sha256.hex(), float(f.weight).hex()] for f in files])


def _total(operands: Sequence[_Operand], name: str, shape: tuple[int, ...]) -> Delta:
    """What all files together add to a weight."""
    found = [(operand.delta(name, shape), operand.weight) for operand in operands]
    return _weighted([(delta, weight) for delta, weight in found if delta is not None])


def _weighted(terms: list[tuple[Delta, float]]) -> Delta:
    return terms[0][0] if len(terms) == 1 and terms[0][1] == 1 else WeightedSum(terms)


def _weight_opener(operands: Sequence[_Operand]) -> OpenWeight:
    def open_weight(name: str, dtype: str, shape: tuple[int, ...]) -> ChangeRows:
        total = _total(operands, name, shape)

        def change(data: memoryview, start: int, stop: int) -> None:
            add_rows(data, dtype, total, start, stop, where=name)

        return change

    return open_weight


def _undoing(operands: Sequence[_Operand], plan: MergePlan) -> Undoing:
    """Merges rows, takes the delta off again, and saves what that does not bring back."""

    def recorder(name: str, dtype: str, shape: tuple[int, ...], save: Callable[[int, int, bytes], None]) -> ChangeRows:
        total = _total(operands, name, shape)

        def change(data: memoryview, start: int, stop: int) -> None:
            base = memoryview(bytearray(data))
            add_rows(data, dtype, total, start, stop, where=name)
            back = memoryview(bytearray(data))
            take_rows(back, dtype, total, start, stop)
            subtract_bits(base, back, dtype)
            save(start, stop, encode_residual(base, dtype))

        return change

    terms = {
        name: [
            [number, operand.plan.matches[name].module, operand.plan.matches[name].transposed]
            for number, operand in enumerate(operands)
            if name in operand.plan.matches
        ]
        for name in plan.matches
    }
    return Undoing(recorder, json.loads(_key(operands)), terms)


def unmerge(
    sources: Sequence[Weighted],
    merged: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Write the base model out of a model that was merged with `keep_undo`: its shards byte for byte.

    Args:
        sources: The same files and weights, in the same order, as they were merged with.
        merged: The merged model.
        out: The base model.
        rung: As the files were merged with.
        overwrite: Replace `out`, if it is a model directory.

    Raises:
        AdapterError: ``no-undo``: the model was merged without; ``unmerge-files``: with other files or weights;
            ``unmerge-mismatch``: the merged model was changed since.
        OutputExists: `out` is there and `overwrite` is false.
    """

    def open_restore(index: Index) -> Restore:
        decoded = [_decode(source, rung, "cpu") for source in sources]
        key = [[d.content, d.header.factors_sha256.hex(), float(d.weight).hex()] for d in decoded]
        if key != index["adapters"]:
            message = "was merged with other files, rungs or weights, or in another order"
            raise AdapterError(message, code="unmerge-files", where=str(merged))

        def restore(
            name: str,
            dtype: str,
            shape: tuple[int, ...],
            terms: list[Any],
            residual: Callable[[int, int, int], memoryview],
        ) -> ChangeRows:
            total = _weighted(
                [(decoded[k].delta(module, shape, turned), decoded[k].weight) for k, module, turned in terms]
            )

            def change(data: memoryview, start: int, stop: int) -> None:
                take_rows(data, dtype, total, start, stop)
                add_bits(data, residual(start, stop, len(data)), dtype)

            return change

        return restore

    return unmerge_directory(merged, out, open_restore, decode_residual, overwrite=overwrite)
