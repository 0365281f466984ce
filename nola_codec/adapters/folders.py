"""Find the adapter in a directory as trainers leave it, and what lies beside it.

A directory may hold the shards of an adapter, checkpoints of a training in folders of their own, or further weights
that belong to the adapter. `find_adapter` says which files are the adapter, and tells the user about the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nola_codec.adapters.beside_files import read_beside
from nola_codec.adapters.sources import (
    CONFIG_NAME,
    AdapterSource,
    Readable,
    is_weights_name,
    missing_config,
    open_source,
    read_config,
    weights_in,
)
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.rendering import list_first
from nola_codec.stores.joined_store import JoinedStore
from nola_codec.stores.open_store import TensorStore, open_store
from nola_codec.stores.tensor_files import is_tensor_file

MAX_SHARDS = 1000
_MOST_FOLDERS = 1000  # folders that are looked into
_LISTED = 5
_CONFIGURATIONS = (CONFIG_NAME, "params.json")  # PEFT's and other tools', and that of mistral-finetune

_SHARD = re.compile(r"adapter_model-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?:safetensors|bin)")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Files that a training needs to go on, and that are no part of the adapter.
_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)\b.*|.*_optim_states\.pt"
)
_GATHER_FSDP = (
    "shards of FSDP, not an adapter; gather them with `accelerate merge-weights`, or save with "
    "fsdp_state_dict_type: FULL_STATE_DICT"
)
_GATHER_ZERO = (
    "shards of DeepSpeed ZeRO, not an adapter; gather them with `python zero_to_fp32.py . OUT` in this folder"
)


@dataclass(frozen=True)
class FoundAdapter:
    """The place of an adapter.

    Attributes:
        source: The path to open, or the bytes or the stream that the caller gave.
        shards: The files of an adapter in several shards, in order; empty for any other adapter.
        beside: The names of further files and folders with weights, in the directory of the adapter.
        notes: Sentences for the user.
    """

    source: Readable
    shards: tuple[Path, ...] = ()
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of the files of the adapter; 0 for bytes and streams."""
        if not isinstance(self.source, (str, os.PathLike)):
            return 0
        path = Path(self.source)
        files = self.shards or ((weights_in(path),) if path.is_dir() else (path,))
        return sum(file.stat().st_size for file in files)


def find_adapter(source: Readable) -> FoundAdapter:
    """Find the adapter that a source means. Anything but a directory is the adapter itself.

    Raises:
        AdapterError: ``several-checkpoints``: the directory has no adapter itself, and several folders with one;
            ``sharded``: some shards are missing; ``ungathered``: the directory has shards of FSDP or ZeRO.
    """
    if not isinstance(source, (str, os.PathLike)):
        return FoundAdapter(source)
    path = Path(source)
    try:
        if not path.is_dir():
            return FoundAdapter(source)
        return _find_in(path, os.fspath(source))
    except (OSError, ValueError):
        return FoundAdapter(source)  # `open_source` says what is wrong with the path


def adapter_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files that reading an adapter may read, sorted by name: weights, configurations, and those beside it.

    Raises:
        AdapterError: Those of `find_adapter`; ``missing-weights``: the directory has no adapter.
    """
    found = find_adapter(path)
    assert isinstance(found.source, (str, os.PathLike)), "a path was given"
    place = Path(found.source)
    weights = found.shards or ((weights_in(place),) if place.is_dir() else (place,))
    folder = weights[0].parent
    beside = [folder / name for name in (*found.beside, *_CONFIGURATIONS) if not name.endswith("/")]
    return tuple(sorted({*weights, *(file for file in beside if file.is_file())}))


def has_adapter(path: Path) -> bool:
    """Return True if a path is a directory that has the weights of an adapter under a tool's name, or its shards."""
    if not path.is_dir():
        return False
    return any(is_weights_name(entry.name) or _SHARD.fullmatch(entry.name) for entry in path.iterdir())


def is_training_state(name: str) -> bool:
    """Return True for the name of a file that a training needs to go on, and that is no part of an adapter."""
    return _STATE.fullmatch(name) is not None


def open_adapter(
    found: FoundAdapter, *, config: Mapping[str, Any] | None = None, scale: float | None = None
) -> AdapterSource:
    """Open what `find_adapter` found; arguments and errors as in `open_source`."""
    if not found.shards:
        return open_source(found.source, config=config, scale=scale)
    directory = found.shards[0].parent
    if config is None and (directory / CONFIG_NAME).exists():
        config = read_config(directory / CONFIG_NAME)
    if config is None and scale is None:
        raise missing_config(str(directory))
    with ExitStack() as opened:
        files: list[TensorStore] = [opened.enter_context(open_store(shard)) for shard in found.shards]
        joined = JoinedStore(files, str(directory))
        opened.pop_all()
    return AdapterSource(joined, config, str(directory), scale=scale, folder=directory)


def _find_in(path: Path, given: str) -> FoundAdapter:
    names = sorted(entry.name for entry in path.iterdir())
    if any(is_weights_name(name) for name in names):
        return FoundAdapter(given, beside=_beside(path, names, weights_in(path).name))
    shards = _shards(path, names)
    if shards:
        return FoundAdapter(given, shards, notes=(f"{len(shards)} shards were joined",))
    folders = [name for name in names[:_MOST_FOLDERS] if has_adapter(path / name)]
    folders.sort(key=_step)
    if len(folders) == 1:
        inner = path / folders[0]
        below = _find_in(inner, str(inner))
        note = f"{given} has no adapter itself; the only folder with one, {folders[0]}, is read"
        return FoundAdapter(str(inner), below.shards, below.beside, (note, *below.notes))
    if folders:
        shown = list_first(folders, _LISTED)
        message = (
            f"no adapter itself, and {len(folders)} folders with one ({shown}); give one of them: {path / folders[-1]}"
        )
        raise AdapterError(message, code="several-checkpoints", where=given)
    for has_shards, message in ((_is_fsdp, _GATHER_FSDP), (_is_zero, _GATHER_ZERO)):
        inside = next((name for name in names if has_shards(path, name)), None)
        if inside is not None:
            raise AdapterError(f"{inside}: {message}", code="ungathered", where=given)
    return FoundAdapter(given)


def carry_beside(adapter: Adapter, found: FoundAdapter, *, carry: bool) -> Adapter:
    """Return the adapter with a note about what lies beside it; the tensors of files are carried if this is asked for.

    Args:
        adapter: The adapter that was read.
        found: What `find_adapter` found.
        carry: True to carry the tensors.

    Raises:
        AdapterError: Those of `read_beside`.
    """
    files = [name for name in found.beside if not name.endswith("/")] if carry else []
    rest = [name for name in found.beside if name not in files]
    notes = adapter.notes
    if rest:
        hint = "" if carry or all(name.endswith("/") for name in rest) else "; --carry-unknown carries tensors of files"
        notes += (f"not encoded: {list_first(rest, _LISTED)}, beside the adapter{hint}",)
    if not files:
        return replace(adapter, notes=notes)
    notes += (f"carried: the tensors of {list_first(files, _LISTED)}, beside the adapter",)
    assert isinstance(found.source, (str, os.PathLike)), "only a directory has files beside the adapter"
    return replace(adapter, notes=notes, raw={**adapter.raw, **read_beside(Path(found.source), files)})


def _shards(path: Path, names: list[str]) -> tuple[Path, ...]:
    """Return the shards of an adapter in order; none if there are none. Raises AdapterError ``sharded``."""
    found = {name: match for name in names if (match := _SHARD.fullmatch(name)) is not None}
    if not found:
        return ()
    counts = {int(match["count"]) for match in found.values()}
    numbers = sorted(int(match["number"]) for match in found.values())
    (count, *others) = sorted(counts)
    if others or count > MAX_SHARDS or numbers != list(range(1, count + 1)):
        missing = sorted(set(range(1, min(count, MAX_SHARDS) + 1)) - set(numbers))
        what = (
            f"shard {missing[0]} of {count} is missing" if missing else f"expected {count} shards, found {len(found)}"
        )
        raise AdapterError(f"the adapter is in several shards, and {what}", code="sharded", where=str(path))
    return tuple(path / name for name in sorted(found))


def _step(name: str) -> tuple[int, str]:
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]) if match and len(match[1]) < 20 else -1, name)


def _beside(path: Path, names: list[str], chosen: str) -> tuple[str, ...]:
    """Return the files and folders with further weights; checkpoints of the same training are left out."""
    found = []
    for name in names[:_MOST_FOLDERS]:
        if name == chosen or _STATE.fullmatch(name):
            continue
        if is_tensor_file(name) and (path / name).is_file():
            found.append(name)
        elif not _CHECKPOINT.fullmatch(name) and has_adapter(path / name):
            found.append(f"{name}/")
    return tuple(found)


def _is_fsdp(path: Path, name: str) -> bool:
    if name.endswith(".distcp") or (name.startswith("pytorch_model_fsdp") and (path / name).is_file()):
        return True
    inside = path / name
    return inside.is_dir() and any(entry.suffix == ".distcp" for entry in inside.iterdir())


def _is_zero(path: Path, name: str) -> bool:
    if "zero_pp_rank_" in name or name == "zero_to_fp32.py":
        return True
    inside = path / name
    return name.startswith("global_step") and inside.is_dir()
