"""A base model's files out of a merged model and its undo file, each proven by its SHA-256 before it is given out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.errors import AdapterError
from nola_codec.merge.checksums import Sums
from nola_codec.merge.journal import Partial, partial_directory
from nola_codec.merge.merge_directory import MergeReport, check_places, copy_other_files, remove_others
from nola_codec.merge.stream import ChangeRows, FileJob, Part, write_files
from nola_codec.merge.undo import UNDO_NAME, UndoBlocks, UndoIndex, bytes_of, decompress, file_sha256, read_undo
from nola_codec.model.tensors import DTYPE_BYTES
from nola_codec.stores.safetensors_io import SafetensorsFile, num_bytes

Restore = Callable[[str, str, tuple[int, ...], list[Any], Callable[[int, int, int], memoryview]], ChangeRows]
"""``restore(name, dtype, shape, terms, residual)``: what turns merged rows into the base's, in place.

``residual(start, stop, size)`` gives the differences of patterns for those rows.
"""

_MAX_PIECE = 1 << 26


def unmerge_directory(
    merged_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    open_restore: Callable[[UndoIndex], Restore],
    decode_residual: Callable[[bytes, str, int], memoryview],
    *,
    overwrite: bool = False,
) -> MergeReport:
    """Write the base model; ``out_dir`` appears whole, at the end, or not at all, and goes on after a kill.

    Raises:
        AdapterError: ``no-undo``, ``bad-undo``; ``unmerge-mismatch``: what came out is not the base, since the merged
            model was changed.
        OutputExists: as for a merge.
    """
    merged, out = Path(merged_dir).resolve(), Path(out_dir).resolve()
    check_places(merged, out, overwrite=overwrite)
    index = read_undo(merged)
    restore = open_restore(index)
    blocks = UndoBlocks(merged / UNDO_NAME)
    status = (merged / UNDO_NAME).stat()
    key = f"unmerge {status.st_size} {status.st_mtime_ns} {file_sha256(merged / UNDO_NAME)}"
    piece = int(index["piece_bytes"])
    if not 0 < piece <= _MAX_PIECE:
        raise AdapterError(f"pieces of {piece} bytes", code="limit", where=str(merged / UNDO_NAME))
    shards = index["shards"]
    for name in (*shards, *index["files"]):
        if name != PurePosixPath(name).name or "\\" in name or name in ("..", "."):
            raise AdapterError(f"{name!r} is not a plain file name", code="bad-undo", where=str(merged / UNDO_NAME))
    try:
        with partial_directory(out, key, replace=overwrite) as partly:
            jobs = (
                _job(merged, shard, facts, partly, blocks, restore, decode_residual)
                for shard, facts in shards.items()
                if shard not in partly.finished
            )
            write_files(jobs, piece)
            remove_others(partly.files, set(shards))
            copy_other_files(merged, partly.files)
            for name, text in index["files"].items():
                (partly.files / name).write_bytes(bytes_of(text))
    finally:
        blocks.close()
    resumed = sum(shard in partly.finished for shard in shards)
    changed = sum(len(facts["terms"]) for facts in shards.values())
    return MergeReport(Path(out_dir), len(shards), resumed, changed)


def _job(
    merged: Path,
    shard: str,
    facts: UndoIndex,
    partly: Partial,
    blocks: UndoBlocks,
    restore: Restore,
    decode_residual: Callable[[bytes, str, int], memoryview],
) -> FileJob:
    target = partly.files / (shard + ".part")
    target.unlink(missing_ok=True)
    with SafetensorsFile(merged / shard) as file:
        parts = tuple(_parts(file, facts, blocks, restore, decode_residual))

    def finish(sums: Sums) -> None:
        if file_sha256(target) != facts["sha256"]:
            message = "SHA-256 of the restored file differs: the merged model is not what the merge wrote"
            raise AdapterError(message, code="unmerge-mismatch", where=str(merged / shard))
        partly.finish(shard, {shard: sums})

    return FileJob(merged / shard, target, bytes_of(facts["header"]), parts, finish)


def _parts(
    file: SafetensorsFile,
    facts: UndoIndex,
    blocks: UndoBlocks,
    restore: Restore,
    decode_residual: Callable[[bytes, str, int], memoryview],
) -> Iterator[Part]:
    for name, (dtype, shape) in facts["tensors"].items():
        shape = tuple(shape)
        size = num_bytes(dtype, shape)
        places = {(entry[0], entry[1]): entry for entry in facts["blocks"].get(name, ())}

        def find(start: int, stop: int, places: dict[tuple[int, int], list[int]] = places, name: str = name) -> bytes:
            if (start, stop) not in places:
                raise AdapterError(f"no block {start}..{stop}", code="bad-undo", where=name)
            return blocks.read(places[start, stop])

        if name in facts["stored"]:
            yield Part(name, size, None, size, partial(_stored, find))
            continue
        if name not in file.tensors or (file.tensors[name].dtype, file.tensors[name].shape) != (dtype, shape):
            raise AdapterError("the merged model lacks it, or has another shape", code="unmerge-mismatch", where=name)
        if name not in facts["terms"]:
            yield Part(name, size, file.offset(name))
            continue
        if dtype not in DTYPE_BYTES:
            raise AdapterError(f"a delta on {dtype}", code="bad-undo", where=name)

        def residual(start: int, stop: int, nbytes: int, find: Any = find, dtype: str = dtype) -> memoryview:
            return decode_residual(find(start, stop), dtype, nbytes)

        change = partial(restore, name, dtype, shape, facts["terms"][name], residual)
        yield Part(name, size, file.offset(name), shape[0] if shape else 1, change)


def _stored(find: Callable[[int, int], bytes]) -> ChangeRows:
    def change(data: memoryview, start: int, stop: int) -> None:
        data[:] = decompress(find(start, stop), len(data))

    return change
