"""Merge into a Diffusers pipeline: merge each component that an adapter changes, and copy the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nola_codec.errors import AdapterError
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.model_directory import copy_tree, require_inside
from nola_codec.merger.pipeline_components import Pipeline
from nola_codec.merger.request import MergeRequest
from nola_codec.stores.files import atomic_directory

_INDEX = "model_index.json"


def is_pipeline(path: Path) -> bool:
    """Return True if a directory is a pipeline of Diffusers."""
    return (path / _INDEX).is_file()


@dataclass(frozen=True)
class PipelinePart:
    """The merge of one component of a pipeline.

    Attributes:
        files: The decoded files, cut to the deltas of the component.
        request: The request of the component: its `base` and `out` are model directories.
    """

    files: Sequence[MergeFile]
    request: MergeRequest


@contextmanager
def open_pipeline(files: Sequence[MergeFile], request: MergeRequest) -> Iterator[list[PipelinePart]]:
    """Yield the merges of a pipeline's components, which the caller runs; then copy the rest.

    The pipeline appears whole, at the end.

    Args:
        files: The decoded files.
        request: The request; its `base` is a pipeline, which no file names as its base model.

    Raises:
        AdapterError: ``needs-component``: `keep_undo` is set; ``base-mismatch``: the pipeline lacks a component.
        OutputExists: `out` is there and may not be replaced.
    """
    base, out = request.base, request.out
    if request.keep_undo:
        message = "only a merge into a single component can keep an undo file; give its directory as the base"
        raise AdapterError(message, code="needs-component", where=str(base))
    pipeline = Pipeline(base)
    split = [pipeline.split(file) for file in files]
    folders = sorted({folder for parts in split for folder in parts})
    with atomic_directory(out, replace=request.overwrite) as directory:
        parts = []
        for folder in folders:
            own = [each[folder] for each in split if folder in each]
            parts.append(PipelinePart(own, replace(request, base=base / folder, out=directory / folder, any_base=True)))
        yield parts
        for path in sorted(base.iterdir()):
            if path.name in folders or path.name.startswith("."):
                continue
            if path.is_dir():
                copy_tree(path, directory / path.name, base)
            else:
                require_inside(path, base)
                shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache
