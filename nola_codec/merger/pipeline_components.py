"""Find the component of a Diffusers pipeline that each delta of an adapter belongs to.

The pipeline tells its components: they are the folders in it that hold weights. A name belongs to the folder that it
begins with, or that its dialect says. The other names go to the only component that has weights for all of them, or
else each to the only one that has its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from nola_codec.adapters import dialect_of
from nola_codec.adapters.base_model import MergeTarget
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.layout_places import LayoutPlaces
from nola_codec.merger.matching import has_place
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.misfits import Misfits
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.stored_names import DENOISERS, OUTER_PREFIXES, components_of_name

_WEIGHT_SUFFIXES = (".safetensors", ".bin")


class Pipeline:
    """The components of a pipeline's directory that hold weights. Each is opened when it is first asked about.

    Attributes:
        folders: The names of their folders, in order.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._components: dict[str, _Component] = {}
        self.folders = sorted(path.name for path in base.iterdir() if _holds_weights(path))

    def split(self, file: MergeFile) -> dict[str, MergeFile]:
        """Return the part of a file that belongs to each component, by the name of its folder.

        Raises:
            AdapterError: ``base-mismatch``: the pipeline lacks a component, or several components may be meant.
        """
        if not self.folders:
            message = mismatch("pipeline", "a folder with weights", "none")
            raise AdapterError(message, code="base-mismatch", where=str(self._base))
        named: dict[str, list[str]] = {}
        open_names: dict[tuple[str, ...], list[str]] = {}
        for name in file.parts:
            folders = self._folders_of(name, dialect_of(file.adapter).component_of(name))
            if len(folders) == 1:
                named.setdefault(folders[0], []).append(name)
            elif folders:
                open_names.setdefault(folders, []).append(name)
            else:
                message = mismatch("component", f"one of {', '.join(self.folders)}", "none that the name may mean")
                raise AdapterError(message, code="base-mismatch", where=f"{file.name}: {name}")
        for folders, names in open_names.items():
            for folder, own in self._search(file, folders, names).items():
                named.setdefault(folder, []).extend(own)
        return {folder: self._cut(file, folder, names, named) for folder, names in sorted(named.items())}

    def _folders_of(self, name: str, component: str) -> tuple[str, ...]:
        """Return the folders that a name may mean: the one that it tells, or all of those that its prefix allows."""
        first = module_path(name).partition(".")[0]
        told = next((folder for folder in (first, component) if folder in self.folders), "")
        if told:
            return (told,)
        allowed = components_of_name(module_path(name)) or ({component} if component else frozenset[str]())
        if not allowed:
            return tuple(self.folders)
        if allowed & DENOISERS:
            return tuple(folder for folder in self.folders if _may_denoise(folder))
        return tuple(folder for folder in self.folders if folder in allowed)

    def _search(self, file: MergeFile, folders: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        """Return the names that belong to each folder, for names that may mean several."""
        places = {folder: self._component(folder).places(file, names) for folder in folders}
        whole = [folder for folder in folders if len(places[folder]) == len(names)]
        if len(whole) == 1:
            return {whole[0]: list(names)}
        found: dict[str, list[str]] = {}
        for name in names:
            having = [folder for folder in folders if name in places[folder]]
            if len(having) != 1:
                raise self._unclear(file, name, having or folders, bool(having))
            found.setdefault(having[0], []).append(name)
        return found

    def _unclear(self, file: MergeFile, name: str, folders: Sequence[str], has: bool) -> AdapterError:
        """Return the error for a name that several components have, or none."""
        if has:
            message = f"{' and '.join(folders)} have such a weight; give the directory of the one meant as the base"
            return AdapterError(message, code="base-mismatch", where=f"{file.name}: {name}")
        stored = {
            f"{each}.{key}": shape for each in folders for key, shape in self._component(each).base.shapes.items()
        }
        misfits = Misfits(stored)
        target = self._component(folders[0]).target(file, name)
        misfits.add_unfound(target, target.weight or name, [])
        return misfits.error()

    def _cut(self, file: MergeFile, folder: str, names: Sequence[str], named: Mapping[str, Sequence[str]]) -> MergeFile:
        """Return the part of a file that belongs to one folder."""
        raw = {key: tensor for key, tensor in file.adapter.raw.items() if folder in self._owners(key, file, named)}
        parts = {name: file.parts[name] for name in names}
        return replace(file, parts=parts, adapter=replace(file.adapter, raw=raw))

    def _owners(self, key: str, file: MergeFile, named: Mapping[str, Sequence[str]]) -> Iterable[str]:
        """Return the folders that a carried tensor belongs to.

        A tensor of which nothing is known counts for every component, so that each merge can refuse it.
        """
        for ending in (".lora_B.bias", "." + key.rpartition(".")[2]):
            owners = [folder for folder, names in named.items() if key.removesuffix(ending) in names]
            if owners:
                return owners
        folders = self._folders_of(key, dialect_of(file.adapter).component_of(key))
        if len(folders) == 1:
            return folders
        having = [folder for folder in named if self._component(folder).base.names.find(module_path(key))]
        return having if len(having) == 1 else self.folders

    def _component(self, folder: str) -> _Component:
        if folder not in self._components:
            self._components[folder] = _Component(self._base / folder)
        return self._components[folder]


class _Component:
    """One component of a pipeline, and the places that it has for deltas."""

    def __init__(self, directory: Path) -> None:
        self.base = WeightShapes.of(Checkpoint(directory))

    @cached_property
    def layouts(self) -> LayoutPlaces:
        """The same tensors under the names of other layouts."""
        return LayoutPlaces(self.base.shapes)

    def places(self, file: MergeFile, names: Iterable[str]) -> set[str]:
        """Return the names of those deltas that have a place here."""
        found = set()
        for name in names:
            try:
                target = self.target(file, name)
            except AdapterError as error:
                if error.code != "base-mismatch":
                    raise
                continue
            if has_place(target, self.base.names, self.layouts, self.base.shapes, self.base.config):
                found.add(name)
        return found

    def target(self, file: MergeFile, name: str) -> MergeTarget:
        """Return the target of one delta."""
        dialect = dialect_of(file.adapter)
        return dialect.merge_targets(file.adapter, {name: file.parts[name]}, self.base, file.name)[0]


def _holds_weights(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and any(
        each.name.endswith(_WEIGHT_SUFFIXES) for each in path.iterdir()
    )  # fmt: skip


def _may_denoise(folder: str) -> bool:
    """Return True for the folder of a model that kohya may call "unet": not a text encoder, and not a VAE."""
    known = OUTER_PREFIXES.get(folder, frozenset())
    numbered = folder.rpartition("_")[0] in DENOISERS and folder.rpartition("_")[2].isdigit()
    return numbered or not known or not DENOISERS.isdisjoint(known)
