"""Merging into a Diffusers pipeline: each component that an adapter changes, and the rest copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nola_codec.adapters.dialects.paths import component_of
from nola_codec.errors import AdapterError, expected
from nola_codec.merge.merge_directory import MergeReport
from nola_codec.merge.operands import MergeFile
from nola_codec.merge.places import components
from nola_codec.stores.files import atomic_directory

INDEX = "model_index.json"


def is_pipeline(path: Path) -> bool:
    """Whether a directory is a pipeline of Diffusers."""
    return (path / INDEX).is_file()


def merge_pipeline(
    files: Sequence[MergeFile],
    base: Path,
    out: Path,
    merge_component: Callable[[Sequence[MergeFile], Path, Path], MergeReport],
    *,
    overwrite: bool,
) -> MergeReport:
    """Write a pipeline with the deltas of files added to its components; it appears whole, at the end.

    Args:
        files: Decoded.
        base: The pipeline.
        out: The merged one.
        merge_component: Merges files into one component's directory.
        overwrite: Replace `out`.

    Raises:
        AdapterError: ``base-mismatch`` for a component that the pipeline does not have; and those of a merge.
        OutputExists: `out` is there and `overwrite` is false.
    """
    folders = sorted({folder for file in files for folder, _ in _by_folder(file, base)})
    reports = []
    with atomic_directory(out, replace=overwrite) as directory:
        for folder in folders:
            parts = [part for file in files for own, part in _by_folder(file, base) if own == folder]
            reports.append(merge_component(parts, base / folder, directory / folder))
        for path in sorted(base.iterdir()):
            if path.name in folders or path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, directory / path.name)
            else:
                shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache
    return MergeReport(out, sum(r.shards for r in reports), 0, sum(r.weights for r in reports))


def _by_folder(file: MergeFile, base: Path) -> Iterator[tuple[str, MergeFile]]:
    """The component's folder, and of the file what belongs to it."""
    for component, names in components(file.adapter, file.parts).items():
        folder = component
        # kohya calls whatever denoises a unet.
        if component == "unet" and not (base / "unet").is_dir() and (base / "transformer").is_dir():
            folder = "transformer"
        if not component or not (base / folder).is_dir():
            where = f"{file.name}: {names[0]}"
            message = expected("component", "one that the pipeline has", component or "a name without one")
            raise AdapterError(message, code="base-mismatch", where=where)
        raw = {key: tensor for key, tensor in file.adapter.raw.items() if _belongs(key, component, names)}
        part = replace(file, parts={name: file.parts[name] for name in names}, adapter=replace(file.adapter, raw=raw))
        yield folder, part


def _belongs(key: str, component: str, names: Sequence[str]) -> bool:
    """Whether a carried tensor is of a component; what is of none goes with all, to be refused by each."""
    own = component_of(key)
    if own:
        return own == component
    return key.rpartition(".")[0] in names or not key.startswith("lora_")
