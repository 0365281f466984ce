"""Merge into a Diffusers pipeline: merge each component that an adapter changes, and copy the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nola_codec.adapters.dialects.paths import component_of
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.places import components
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
        request: The request; its `base` is a pipeline.

    Raises:
        AdapterError: ``needs-component``: `keep_undo` is set; ``base-mismatch``: the pipeline lacks a component.
        OutputExists: `out` is there and may not be replaced.
    """
    base, out = request.base, request.out
    if request.keep_undo:
        message = "only a merge into a single component can keep an undo file; give its directory as the base"
        raise AdapterError(message, code="needs-component", where=str(base))
    folders = sorted({folder for file in files for folder, _ in _split_by_folder(file, base)})
    with atomic_directory(out, replace=request.overwrite) as directory:
        parts = []
        for folder in folders:
            own = [part for file in files for name, part in _split_by_folder(file, base) if name == folder]
            parts.append(PipelinePart(own, replace(request, base=base / folder, out=directory / folder)))
        yield parts
        for path in sorted(base.iterdir()):
            if path.name in folders or path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, directory / path.name)
            else:
                shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache


def _split_by_folder(file: MergeFile, base: Path) -> Iterator[tuple[str, MergeFile]]:
    """Yield the folder of each component that a file changes, and the part of the file that belongs to it."""
    for component, names in components(file.adapter, file.parts).items():
        folder = component
        # kohya calls the denoising model "unet" even if it is a transformer.
        if component == "unet" and not (base / "unet").is_dir() and (base / "transformer").is_dir():
            folder = "transformer"
        if not component or not (base / folder).is_dir():
            where = f"{file.name}: {names[0]}"
            message = mismatch("component", "one that the pipeline has", component or "a name without one")
            raise AdapterError(message, code="base-mismatch", where=where)
        raw = {key: tensor for key, tensor in file.adapter.raw.items() if _belongs(key, component, names)}
        part = replace(file, parts={name: file.parts[name] for name in names}, adapter=replace(file.adapter, raw=raw))
        yield folder, part


def _belongs(key: str, component: str, names: Sequence[str]) -> bool:
    """Return True if a carried tensor belongs to a component.

    A tensor without a component counts for every component, so that each merge can refuse it.
    """
    own = component_of(key)
    if own:
        return own == component
    return key.rpartition(".")[0] in names or not key.startswith("lora_")
