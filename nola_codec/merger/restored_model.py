"""Restore the base model from a merged model and its undo file. The SHA-256 of each shard proves that it is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.residuals import restore_rows
from nola_codec.merger.checksums import Sums
from nola_codec.merger.journal import Journal, open_journal
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.model_directory import copy_other_files, remove_others
from nola_codec.merger.request import MergeReport, UnmergeRequest
from nola_codec.merger.stream import FileWrite, RowEdit, TensorWrite, write_files
from nola_codec.merger.terms import DeltaTerm, sum_terms
from nola_codec.merger.undo_file import (
    UNDO_NAME,
    UndoBlocks,
    UndoIndex,
    bytes_of,
    decode_residual,
    decompress,
    file_sha256,
)
from nola_codec.merger.weight_counter import WeightCounter
from nola_codec.stores.dtypes import FLOAT_DTYPES
from nola_codec.stores.safetensors_io import SafetensorsFile, num_bytes

_MAX_PIECE = 1 << 26


def write_restored_model(
    index: UndoIndex, files: Sequence[MergeFile], request: UnmergeRequest, counter: WeightCounter | None = None
) -> MergeReport:
    """Write the base model. The directory appears at the end, complete. A killed run is resumed.

    Args:
        index: The index of the undo file, from `read_undo`.
        files: The decoded files that were merged.
        request: The request. Only `merged`, `out` and `overwrite` count here; the two paths are real paths.
        counter: The counter of restored weights, or None.

    Raises:
        AdapterError: ``unmerge-files``: the files are not those of the merge; ``bad-undo``; ``unmerge-mismatch``: the
            merged model was changed after the merge, so that the result is not the base.
        OutputExists: ``request.out`` exists and may not be replaced.
    """
    merged, shards = request.merged, index["shards"]
    undo_path = merged / UNDO_NAME
    if [file.key for file in files] != index["adapters"]:
        message = "was merged with other files, rungs or weights, or in another order"
        raise AdapterError(message, code="unmerge-files", where=str(merged))
    piece_bytes = int(index["piece_bytes"])
    if not 0 < piece_bytes <= _MAX_PIECE:
        raise AdapterError(f"pieces of {piece_bytes} bytes", code="limit", where=str(undo_path))
    for name in (*shards, *index["files"]):
        if name != PurePosixPath(name).name or "\\" in name or name in ("..", "."):
            raise AdapterError(f"{name!r} is not a plain file name", code="bad-undo", where=str(undo_path))
    status = undo_path.stat()
    key = f"unmerge {status.st_size} {status.st_mtime_ns} {file_sha256(undo_path)}"
    blocks = UndoBlocks(undo_path)
    try:
        with open_journal(request.out, key, replace=request.overwrite) as journal:
            restorer = _ShardRestorer(merged, files, blocks, journal, counter)
            todo = [shard for shard in shards if shard not in journal.finished]
            if counter is not None and len(todo) < len(shards):
                counter.count(sum(len(shards[shard]["terms"]) for shard in shards if shard not in todo))
            write_files((restorer.prepare_shard(shard, shards[shard]) for shard in todo), piece_bytes)
            remove_others(journal.files, shards)
            copy_other_files(merged, journal.files)
            for name, text in index["files"].items():
                (journal.files / name).write_bytes(bytes_of(text))
    finally:
        blocks.close()
    changed = sum(len(facts["terms"]) for facts in shards.values())
    return MergeReport(request.out, len(shards), len(shards) - len(todo), changed)


@dataclass(frozen=True)
class _ShardRestorer:
    """Prepares the write of each shard of the base.

    Attributes:
        merged: The merged model.
        files: The decoded files that were merged.
        blocks: The blocks of the undo file.
        journal: The open journal.
        counter: The counter of restored weights, or None.
    """

    merged: Path
    files: Sequence[MergeFile]
    blocks: UndoBlocks
    journal: Journal
    counter: WeightCounter | None

    def prepare_shard(self, shard: str, facts: UndoIndex) -> FileWrite:
        """Return the write of one shard, from its part of the index."""
        source, target = self.merged / shard, self.journal.files / (shard + ".part")
        target.unlink(missing_ok=True)
        with SafetensorsFile(source) as file:
            tensors = tuple(self._tensor_writes(file, facts))

        def finish(sums: Sums) -> None:
            if file_sha256(target) != facts["sha256"]:
                message = "SHA-256 of the restored file differs: the merged model is not what the merge wrote"
                raise AdapterError(message, code="unmerge-mismatch", where=str(source))
            self.journal.finish(shard, {shard: sums})

        return FileWrite(source, target, bytes_of(facts["header"]), tensors, finish)

    def _tensor_writes(self, file: SafetensorsFile, facts: UndoIndex) -> Iterator[TensorWrite]:
        for name, (dtype, dimensions) in facts["tensors"].items():
            shape = tuple(dimensions)
            size = num_bytes(dtype, shape)
            blocks = _TensorBlocks(name, self.blocks, facts["blocks"].get(name, ()))
            if name in facts["stored"]:
                yield TensorWrite(name, size, None, size, blocks.open_copy)
                continue
            info = file.tensors.get(name)
            if info is None or (info.dtype, info.shape) != (dtype, shape):
                message = "the merged model lacks it, or has another shape"
                raise AdapterError(message, code="unmerge-mismatch", where=name)
            if name not in facts["terms"]:
                yield TensorWrite(name, size, file.offset(name))
                continue
            if dtype not in FLOAT_DTYPES:
                raise AdapterError(f"a delta on {dtype}", code="bad-undo", where=name)
            open_edit = partial(self._open_edit, name, dtype, shape, facts["terms"][name], blocks)
            on_done = None if self.counter is None else self.counter.count
            yield TensorWrite(name, size, file.offset(name), shape[0] if shape else 1, open_edit, on_done)

    def _open_edit(
        self, name: str, dtype: str, shape: tuple[int, ...], terms: list[Any], blocks: _TensorBlocks
    ) -> RowEdit:
        delta = sum_terms(self.files, [DeltaTerm.parse(term) for term in terms], shape)

        def restore(data: memoryview, start: int, stop: int) -> None:
            residual = decode_residual(blocks.find(start, stop), dtype, len(data))
            try:
                restore_rows(data, residual, dtype, delta, start, stop)
            except ValueError as error:
                raise AdapterError(f"its terms have other shapes ({error})", code="bad-undo", where=name) from error

        return restore


class _TensorBlocks:
    """The blocks of one tensor in the undo file."""

    def __init__(self, name: str, blocks: UndoBlocks, entries: Sequence[list[int]]) -> None:
        self._name, self._blocks = name, blocks
        self._entries = {(entry[0], entry[1]): entry for entry in entries}

    def find(self, start: int, stop: int) -> bytes:
        """Read the block of rows, or bytes, start..stop.

        Raises:
            AdapterError: ``bad-undo``: there is no such block, or it is damaged.
        """
        if (start, stop) not in self._entries:
            raise AdapterError(f"no block {start}..{stop}", code="bad-undo", where=self._name)
        return self._blocks.read(self._entries[start, stop])

    def open_copy(self) -> RowEdit:
        """Return the edit of a tensor that the undo file stores whole; the edit fills in bytes start..stop."""

        def copy(data: memoryview, start: int, stop: int) -> None:
            data[:] = decompress(self.find(start, stop), len(data))

        return copy
