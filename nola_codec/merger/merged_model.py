"""Write the merged model as a directory, shard by shard, whole or not at all; the next run resumes a killed one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.merger.arithmetic.rounding import add_rows
from nola_codec.merger.checksums import Sums
from nola_codec.merger.journal import Journal, open_journal
from nola_codec.merger.model_change import ModelChange
from nola_codec.merger.model_directory import (
    check_output,
    copy_other_files,
    merged_index,
    remove_others,
)
from nola_codec.merger.request import MergeReport, MergeRequest
from nola_codec.merger.shards import MergedTensor, shard_layout
from nola_codec.merger.stream import FileWrite, RowEdit, TensorWrite, write_files
from nola_codec.merger.undo_file import UNDO_NAME
from nola_codec.merger.undo_recorder import UndoRecorder, join_segments
from nola_codec.merger.vocabulary import config_of
from nola_codec.merger.weight_counter import WeightCounter
from nola_codec.stores.files import dump_json
from nola_codec.stores.safetensors_io import SafetensorsFile, num_bytes
from nola_codec.stores.safetensors_writer import encode_header
from nola_codec.version import __version__


def write_merged_model(
    checkpoint: Checkpoint,
    change: ModelChange,
    request: MergeRequest,
    counter: WeightCounter | None = None,
) -> MergeReport:
    """Write the merged model. The directory appears at the end, and only if everything was written.

    Untouched tensors keep their bytes and their order in the shard. Configuration, tokenizer, code and licences are
    copied; weights in other formats are not. A run that was killed and is started again with the same input keeps the
    shards that were finished.

    Args:
        checkpoint: The base model.
        change: The change to make. A delta is opened once for each weight of a shard that is not finished yet.
        request: The request. Only `out`, `overwrite`, `keep_undo` and `piece_bytes` count here.
        counter: The counter of changed weights, or None.

    Raises:
        OutputExists: ``request.out`` exists and may not be replaced, or it is not a model directory.
        AdapterError: ``same-directory``; ``busy``; ``overflow``; a shard cannot be read.
    """
    out = Path(os.path.realpath(request.out))
    check_output(Path(os.path.realpath(checkpoint.directory)), out, overwrite=request.overwrite)
    shards = checkpoint.shards
    with open_journal(out, _journal_key(checkpoint, change, request), replace=request.overwrite) as journal:
        layouts = {shard: shard_layout(checkpoint, change.plan, shard) for shard in shards}
        writer = _ShardWriter(checkpoint, change, request, journal, counter)
        todo = [shard for shard in shards if shard not in journal.finished]
        if counter is not None and len(todo) < len(shards):
            finished = (tensor for shard in shards if shard not in todo for tensor in layouts[shard].values())
            counter.count(sum(tensor.has_delta for tensor in finished))
        write_files((writer.prepare_shard(shard, layouts[shard]) for shard in todo), request.piece_bytes)
        if request.keep_undo:
            join_segments(checkpoint, change, journal.files, request.piece_bytes)
        remove_others(journal.files, [*shards, UNDO_NAME] if request.keep_undo else shards)
        copy_other_files(checkpoint.directory, journal.files)
        if checkpoint.index is not None:
            (journal.files / checkpoint.index_name).write_bytes(dump_json(merged_index(checkpoint, layouts)))
        plan = change.plan
        if plan.unties or plan.vocabulary is not None:
            config = config_of(checkpoint.config, unties=plan.unties, vocabulary=plan.vocabulary)
            (journal.files / "config.json").write_bytes(dump_json(config))
    return MergeReport(request.out, len(shards), len(shards) - len(todo), len(change.plan.places))


def _journal_key(checkpoint: Checkpoint, change: ModelChange, request: MergeRequest) -> str:
    """Return a hash of everything that decides the bytes of the merged shards."""
    options = [request.keep_undo, request.piece_bytes if request.keep_undo else 0]
    sha = hashlib.sha256(json.dumps([__version__, change.sources, options, checkpoint.config], sort_keys=True).encode())
    for shard in checkpoint.shards:
        status = (checkpoint.directory / shard).stat()
        with checkpoint.open_shard(shard) as file:
            header = hashlib.sha256(file.header_bytes()).hexdigest()
        sha.update(json.dumps([shard, status.st_size, status.st_mtime_ns, header]).encode())
    return sha.hexdigest()


@dataclass(frozen=True)
class _ShardWriter:
    """Prepares the write of each shard.

    Attributes:
        checkpoint, change, request, counter: The arguments of `write_merged_model`.
        journal: The open journal.
    """

    checkpoint: Checkpoint
    change: ModelChange
    request: MergeRequest
    journal: Journal
    counter: WeightCounter | None

    def prepare_shard(self, shard: str, layout: Mapping[str, MergedTensor]) -> FileWrite:
        """Return the write of one shard, and begin its undo segment."""
        source, target = self.checkpoint.directory / shard, self.journal.files / (shard + ".part")
        recorder = UndoRecorder(self.journal.files, source) if self.request.keep_undo else None
        with self.checkpoint.open_shard(shard) as file:
            specs = {name: (tensor.dtype, tensor.shape) for name, tensor in layout.items()}
            header = encode_header(specs, file.metadata or {"format": "pt"})
            if recorder is not None:
                recorder.record_shard(file, layout, self.change.terms, self.request.piece_bytes)
            tensors = tuple(self._tensor_writes(file, layout, recorder))
        target.unlink(missing_ok=True)

        def finish(sums: Sums) -> None:
            files = {shard: sums}
            if recorder is not None:
                files[recorder.name] = recorder.finish()
            self.journal.finish(shard, files)

        return FileWrite(source, target, header, tensors, finish)

    def _tensor_writes(
        self, file: SafetensorsFile, layout: Mapping[str, MergedTensor], recorder: UndoRecorder | None
    ) -> Iterator[TensorWrite]:
        for name, tensor in layout.items():
            origin = file.offset(tensor.source) if tensor.value is None else tensor.value.data
            nbytes = num_bytes(tensor.dtype, tensor.shape)
            if not tensor.has_delta:
                yield TensorWrite(name, nbytes, origin)
            else:
                rows = tensor.shape[0] if tensor.shape else 1
                open_edit = partial(self._open_edit, name, tensor, recorder)
                on_done = None if self.counter is None else self.counter.count
                yield TensorWrite(name, nbytes, origin, rows, open_edit, on_done)

    def _open_edit(self, name: str, tensor: MergedTensor, recorder: UndoRecorder | None) -> RowEdit:
        delta = self.change.open_delta(name, tensor.shape)
        if recorder is not None and recorder.has_terms(name):
            return recorder.edit(name, tensor.dtype, delta)

        def add(data: memoryview, start: int, stop: int) -> None:
            add_rows(data, tensor.dtype, delta, start, stop, where=name)

        return add
