"""Run a merge or undo one, from the request to the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError
from nola_codec.merger.diffusers_pipeline import is_pipeline, open_pipeline
from nola_codec.merger.lone_file import lone_file_as_directory
from nola_codec.merger.merge_files import MergeFile, decode_source, require_base
from nola_codec.merger.merged_model import write_merged_model
from nola_codec.merger.model_change import combine_files, place_file
from nola_codec.merger.model_directory import check_output
from nola_codec.merger.pickled_base import unpickled_base
from nola_codec.merger.request import MergeReport, MergeRequest, UnmergeRequest
from nola_codec.merger.restored_model import write_restored_model
from nola_codec.merger.undo_file import read_undo
from nola_codec.merger.weight_counter import WeightCounter


def run_merge(request: MergeRequest) -> MergeReport:
    """Add the deltas of files to a base model, and write the merged model.

    Raises:
        FormatError, ChecksumMismatch: A file is damaged.
        AdapterError: The base does not fit, or the files cannot be combined; see `nola_codec.merge`.
        OutputExists: ``request.out`` exists and may not be replaced.
    """
    if request.base.is_file():
        with lone_file_as_directory(request) as inner:
            report = run_merge(inner)
        return replace(report, output=request.out)
    # Not Path.resolve, which raises for a link to itself.
    base, out = Path(os.path.realpath(request.base)), Path(os.path.realpath(request.out))
    check_output(base, out, overwrite=request.overwrite)
    files = [
        decode_source(source, request.rung, request.device, request.progress, request.references, request.limits)
        for source in request.sources
    ]
    if not files:
        raise AdapterError("no file to merge", code="not-found")
    counter = WeightCounter(request.progress, "merging")
    if not is_pipeline(request.base):
        with unpickled_base(request) as inner:
            return _merge_directory(files, inner, counter)
    with open_pipeline(files, request) as parts:
        reports = [_merge_directory(part.files, part.request, counter) for part in parts]
    return MergeReport(request.out, sum(r.shards for r in reports), 0, sum(r.weights for r in reports))


def _merge_directory(files: Sequence[MergeFile], request: MergeRequest, counter: WeightCounter) -> MergeReport:
    """Merge decoded files into a model directory, the base of `request`."""
    checkpoint = Checkpoint(request.base)
    if not request.any_base:
        require_base(files, checkpoint)
    change = combine_files([place_file(file, checkpoint) for file in files])
    counter.total += len(change.plan.places)
    return write_merged_model(checkpoint, change, request, counter)


def run_unmerge(request: UnmergeRequest) -> MergeReport:
    """Subtract the deltas of files from a merged model, and write the base model, whose shards are equal byte for byte.

    Raises:
        FormatError, ChecksumMismatch: A file is damaged.
        AdapterError: ``no-undo``, ``bad-undo``, ``unmerge-files``, ``unmerge-mismatch``.
        OutputExists: ``request.out`` exists and may not be replaced.
    """
    merged, out = request.merged.resolve(), request.out.resolve()
    check_output(merged, out, overwrite=request.overwrite)
    index = read_undo(merged)
    files = [
        decode_source(source, request.rung, request.device, request.progress, request.references, request.limits)
        for source in request.sources
    ]
    total = sum(len(facts["terms"]) for facts in index["shards"].values())
    counter = WeightCounter(request.progress, "restoring", total)
    report = write_restored_model(index, files, replace(request, merged=merged, out=out), counter)
    return replace(report, output=request.out)
