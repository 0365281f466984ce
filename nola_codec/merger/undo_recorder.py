"""Record the bits that a merge loses, while the merge is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.merger.arithmetic.deltas import RowDelta
from nola_codec.merger.arithmetic.residuals import merge_rows
from nola_codec.merger.checksums import Sums, file_sums
from nola_codec.merger.model_change import ModelChange
from nola_codec.merger.shards import MergedTensor
from nola_codec.merger.stream import RowEdit
from nola_codec.merger.terms import DeltaTerm
from nola_codec.merger.undo_file import (
    UNDO_NAME,
    VERSION,
    SegmentWriter,
    encode_residual,
    file_sha256,
    text_of,
    write_undo,
)
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.version import __version__


class UndoRecorder:
    """Records what is needed to restore one shard of the base, in the segment ``SHARD.undo``.

    Attributes:
        name: The name of the finished segment.
    """

    def __init__(self, directory: Path, shard: Path) -> None:
        """Begin the segment of a shard of the base, as a file in a directory."""
        self.name = shard.name + ".undo"
        self._path = directory / (self.name + ".part")
        self._segment = SegmentWriter(self._path)
        self._facts: dict[str, Any] = {}
        hasher = ThreadPoolExecutor(1)  # the shard is hashed while it is merged
        self._sha256 = hasher.submit(file_sha256, shard)
        hasher.shutdown(wait=False)

    def record_shard(
        self,
        file: SafetensorsFile,
        layout: Mapping[str, MergedTensor],
        terms: Mapping[str, Sequence[DeltaTerm]],
        piece_bytes: int,
    ) -> None:
        """Record the header of the shard, and the whole of each tensor that the merge replaces.

        Args:
            file: The open shard of the base.
            layout: The tensors of the merged shard, by name.
            terms: The terms of each delta, by weight name.
            piece_bytes: The size of a block.
        """
        stored = [name for name in file.tensors if layout[name].value is not None]
        for name in stored:
            data = file.read(name).data
            for start in range(0, len(data), piece_bytes):
                part = data[start : start + piece_bytes]
                self._segment.add(name, start, start + len(part), zstandard.ZstdCompressor(level=3).compress(part))
        self._facts = {
            "header": text_of(file.header_bytes()),
            "tensors": {name: [info.dtype, list(info.shape)] for name, info in file.tensors.items()},
            "stored": stored,
            "terms": {
                name: [term.as_json() for term in own]
                for name, own in terms.items()
                if name in file.tensors and name not in stored
            },
        }

    def has_terms(self, name: str) -> bool:
        """Return True if a weight of the base will be restored from its residual."""
        return name in self._facts["terms"]

    def edit(self, name: str, dtype: str, delta: RowDelta) -> RowEdit:
        """Return an edit that adds a delta to rows of a weight and records their residual."""

        def add_and_record(data: memoryview, start: int, stop: int) -> None:
            residual = merge_rows(data, dtype, delta, start, stop, where=name)
            self._segment.add(name, start, stop, encode_residual(residual, dtype))

        return add_and_record

    def finish(self) -> Sums:
        """Write the segment's index. Returns the sums of the segment, which is called ``SHARD.undo.part``."""
        self._segment.close(self._facts | {"sha256": self._sha256.result()})
        return file_sums(self._path)


def join_segments(checkpoint: Checkpoint, change: ModelChange, directory: Path, piece_bytes: int) -> None:
    """Write ``nola_undo.bin`` from the finished segments of all shards in a directory."""
    kept = [checkpoint.directory / name for name in ("config.json", checkpoint.index_name) if name]
    facts = {
        "version": VERSION,
        "writer": f"nola-codec {__version__}",
        "adapters": change.sources,
        "piece_bytes": piece_bytes,
        "files": {path.name: text_of(path.read_bytes()) for path in kept if path.exists()},
    }
    segments = {shard: directory / (shard + ".undo") for shard in checkpoint.shards}
    write_undo(directory / UNDO_NAME, segments, facts)
