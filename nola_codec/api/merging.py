"""`merge`: one or several `.nola` files into the weights of a model, exact and resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nola_codec.checkpoints.checkpoint import WEIGHTS_NAME, Checkpoint
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.deltas import RowDelta, WeightedSum
from nola_codec.merge.arithmetic.rounding import add_bits, add_rows, subtract_bits, take_rows
from nola_codec.merge.merge_directory import MergeReport, OpenWeight, Undoing, check_places, merge_directory
from nola_codec.merge.operands import MergeFile, Operand, Weighted, decode_file, fit
from nola_codec.merge.pipelines import is_pipeline, merge_pipeline
from nola_codec.merge.plan import MergePlan, combine_plans
from nola_codec.merge.stream import PIECE_BYTES, ChangeRows
from nola_codec.merge.undo import UndoIndex, decode_residual, encode_residual
from nola_codec.merge.unmerge_directory import Restore, unmerge_directory
from nola_codec.progress import Progress
from nola_codec.stores.files import require_free


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
        base: A model directory of Transformers, or of a component of Diffusers; a pipeline of Diffusers, or a lone
            safetensors file, which are merged without a resume.
        out: The merged model, a directory; for a lone file a path that ends in ``.safetensors``.
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
    if Path(base).is_file():
        return _merge_file(
            sources, Path(base), Path(out), rung=rung, device=device, overwrite=overwrite, keep_undo=keep_undo,
            progress=progress, piece_bytes=piece_bytes,
        )  # fmt: skip
    # Not Path.resolve, which raises for a link to itself.
    check_places(Path(os.path.realpath(base)), Path(os.path.realpath(out)), overwrite=overwrite)
    files = [decode_file(source, rung, device) for source in sources]
    if not files:
        raise AdapterError("no file to merge", code="not-found")
    done = total = 0

    def count(_: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("merge", done, total)

    def merge_files(files: Sequence[MergeFile], base: Path, out: Path) -> MergeReport:
        nonlocal total
        checkpoint = Checkpoint(base)
        operands = [fit(file, checkpoint) for file in files]
        plan = combine_plans([operand.plan for operand in operands], [file.name for file in files])
        total += len(plan.matches)
        return merge_directory(
            base,
            out,
            plan,
            _weight_opener(operands),
            key=json.dumps(_key(files)),
            overwrite=overwrite,
            on_weight=count,
            keep=_undoing(operands, plan) if keep_undo else None,
            piece_bytes=piece_bytes,
        )

    if not is_pipeline(Path(base)):
        return merge_files(files, Path(base), Path(out))
    if keep_undo:
        raise AdapterError("what undoes a merge is kept for one component", code="needs-component", where=str(base))
    return merge_pipeline(files, Path(base), Path(out), merge_files, overwrite=overwrite)


def _merge_file(sources: Sequence[Weighted], base: Path, out: Path, *, overwrite: bool, **options: Any) -> MergeReport:
    """`merge` of a lone file: as a directory of its own, beside the output."""
    if out.suffix != ".safetensors":
        message = "the base is a lone file: give a path that ends in .safetensors"
        raise AdapterError(message, code="needs-file", where=str(out))
    if options.pop("keep_undo"):
        raise AdapterError("what undoes a merge is kept for model directories", code="needs-directory", where=str(base))
    require_free(out, overwrite=overwrite)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        model = Path(staging) / "base"
        model.mkdir()
        (model / WEIGHTS_NAME).symlink_to(base.resolve())
        report = merge(sources, model, Path(staging) / "merged", **options)
        os.replace(report.output / WEIGHTS_NAME, out)
    return replace(report, output=out)


def _key(files: Iterable[MergeFile]) -> list[list[str]]:
    """Of all that decides the deltas."""
    return [[*file.digests, float(file.weight).hex()] for file in files]


def _total(operands: Sequence[Operand], name: str, shape: tuple[int, ...]) -> RowDelta:
    """What all files together add to a weight."""
    found = [(operand.delta(name, shape), operand.weight) for operand in operands]
    return _weighted([(delta, weight) for delta, weight in found if delta is not None])


def _weighted(terms: list[tuple[RowDelta, float]]) -> RowDelta:
    return terms[0][0] if len(terms) == 1 and terms[0][1] == 1 else WeightedSum(terms)


def _weight_opener(operands: Sequence[Operand]) -> OpenWeight:
    def open_weight(name: str, dtype: str, shape: tuple[int, ...]) -> ChangeRows:
        total = _total(operands, name, shape)

        def change(data: memoryview, start: int, stop: int) -> None:
            add_rows(data, dtype, total, start, stop, where=name)

        return change

    return open_weight


def _undoing(operands: Sequence[Operand], plan: MergePlan) -> Undoing:
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
    return Undoing(recorder, _key(operand.file for operand in operands), terms)


def unmerge(
    sources: Sequence[Weighted],
    merged: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
) -> MergeReport:
    """Write the base model out of a model that was merged with `keep_undo`: its shards byte for byte.

    Args:
        sources: The same files and weights, in the same order, as they were merged with.
        merged: The merged model.
        out: The base model.
        rung: As the files were merged with.
        device: Where factors are synthesized; it changes no bit.
        overwrite: Replace `out`, if it is a model directory.

    Raises:
        AdapterError: ``no-undo``: the model was merged without; ``unmerge-files``: with other files or weights;
            ``unmerge-mismatch``: the merged model was changed since.
        OutputExists: `out` is there and `overwrite` is false.
    """

    def open_restore(index: UndoIndex) -> Restore:
        decoded = [decode_file(source, rung, device) for source in sources]
        if _key(decoded) != index["adapters"]:
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
