"""Open the source of an adapter: the file of tensors, and the configuration if there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from nola_codec.errors import AdapterError
from nola_codec.stores.files import AnySource, display_name, read_json
from nola_codec.stores.live_store import LiveStore
from nola_codec.stores.open_store import TensorStore, open_store

Readable: TypeAlias = "AnySource | LiveStore"
"""What dialects can read an adapter from."""

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the path of every module."""

# The file names in the order in which they are looked for: PEFT's own name first, and safetensors before pickles.
_WEIGHTS = (
    WEIGHTS_NAME, "pytorch_lora_weights.safetensors", "adapters.safetensors", "adapters.npz", "adapter_model.bin",
    "pytorch_lora_weights.bin", "adapter_model.pt",
)  # fmt: skip
_LONE_SUFFIXES = (".safetensors", ".npz", ".gguf", ".bin", ".pt", ".pth")
_PEFT_STEM = "adapter_model"
_TORCHTUNE_FACTOR = ".lora_a.weight"
_MAX_CONFIG_DEPTH = 100

# The names of other files that trainers write beside the weights.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|pytorch_model_fsdp)\b.*")
_WHOLE_MODEL = ("config.json", "model_index.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")


@dataclass(frozen=True)
class AdapterSource:
    """An adapter before its dialect is known.

    Attributes:
        file: The open file of tensors.
        config: The parsed ``adapter_config.json``, or None.
        where: The path that the caller gave, for messages.
        beside: The parsed ``adapter_config.json`` beside a file that is not PEFT's, or None. The dialect decides if it
            belongs to the file.
        scale: The scaling that the user gave for an adapter that says none, or None.
        folder: The directory of the file, or None for bytes and streams.
    """

    file: TensorStore
    config: Mapping[str, Any] | None
    where: str
    beside: Mapping[str, Any] | None = None
    scale: float | None = None
    folder: Path | None = None

    def read_beside(self, name: str) -> dict[str, Any] | None:
        """Read another JSON file in the directory of the file; None if there is none.

        Raises:
            AdapterError: Those of `read_json`; ``bad-config`` for values that a `.nola` file cannot hold.
        """
        path = None if self.folder is None else self.folder / name
        return None if path is None or not path.is_file() else read_config(path)

    def __enter__(self) -> AdapterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def open_source(
    source: Readable, *, config: Mapping[str, Any] | None = None, scale: float | None = None
) -> AdapterSource:
    """Open a directory, a file, bytes, a binary stream or tensors in memory.

    The ``adapter_config.json`` in the directory of a file is read, since the scaling would be wrong without it. It is
    the adapter's own (`AdapterSource.config`) if the file is called ``adapter_model`` or has PEFT's keys, and in a
    directory also if it is not PEFT's. Otherwise the dialect decides (`AdapterSource.beside`). If ``config`` is given,
    it is used in place of any such file.

    Args:
        source: The directory, file, bytes, stream or tensors.
        config: The configuration, or None.
        scale: The scaling for an adapter that says none, or None.

    Raises:
        AdapterError: ``not-found``, ``missing-config``, ``missing-weights``, ``sharded``, and those of `open_store`
            and `read_json`.
    """
    where = source.name if isinstance(source, LiveStore) else display_name(source)
    if config is not None:
        _require_storable(config, where)
    if not isinstance(source, (str, os.PathLike)):
        store = source if isinstance(source, LiveStore) else open_store(source)
        return AdapterSource(store, config, where, scale=scale)
    try:
        return _open_path(Path(source), config, where, scale)
    except OSError as e:  # the path is impossible (such as too long), or may not be read
        raise AdapterError(f"cannot be read: {e.strerror or e}", code="unreadable", where=where) from e


def _open_path(path: Path, config: Mapping[str, Any] | None, where: str, scale: float | None) -> AdapterSource:
    is_directory = path.is_dir()
    weights = weights_in(path) if is_directory else path
    if not is_directory and _SHARD.fullmatch(path.name):
        message = "this is one shard of several; join them into one file first"
        raise AdapterError(message, code="sharded", where=where)
    folder = weights.parent
    found = None
    if config is None and (is_directory or weights.exists()) and (folder / CONFIG_NAME).exists():
        found = read_config(folder / CONFIG_NAME)
    store = open_store(weights)
    # torchtune writes a file of its own keys under PEFT's name, with PEFT's configuration beside it.
    is_peft = weights.stem == _PEFT_STEM and not any(key.endswith(_TORCHTUNE_FACTOR) for key in store.tensors)
    if is_directory and is_peft and config is None and found is None and scale is None:
        store.close()
        raise missing_config(where)
    if found is None:
        return AdapterSource(store, config, where, scale=scale, folder=folder)
    if "peft_type" in found:
        is_own = is_peft or any(PEFT_PREFIX in key for key in store.tensors)
    else:
        is_own = is_directory or is_peft
    return AdapterSource(store, found if is_own else None, where, None if is_own else found, scale, folder)


def missing_config(where: str) -> AdapterError:
    """Return the error of a directory whose adapter should have a configuration, and has none."""
    message = f"no {CONFIG_NAME}, which tells the scaling; put it back, or give the scaling (alpha / r) with --scale"
    return AdapterError(message, code="missing-config", where=where)


def weights_in(directory: Path) -> Path:
    """Return the file of a directory that is the adapter.

    Raises:
        AdapterError: ``missing-weights``, ``sharded``.
    """
    where = str(directory)
    for name in _WEIGHTS:
        if (directory / name).exists():
            return directory / name
    names = sorted(path.name for path in directory.iterdir())
    index = next((name for name in names if re.fullmatch(r"adapter_model\.\w+\.index\.json", name)), None)
    if index is not None:
        message = f"{index}: the adapter is in several shards; join them into {WEIGHTS_NAME} first"
        raise AdapterError(message, code="sharded", where=where)
    if any(name in names for name in _WHOLE_MODEL):
        message = f"no {WEIGHTS_NAME}; this looks like a whole model, not an adapter"
        raise AdapterError(message, code="missing-weights", where=where)
    lone = [name for name in names if name.endswith(_LONE_SUFFIXES) and not _NOT_WEIGHTS.fullmatch(name)]
    if len(lone) == 1:
        return directory / lone[0]
    message = f"no {WEIGHTS_NAME}"
    if not lone:
        message += "; give the directory or the file that your tool saved the adapter to"
    else:
        message += f", and {len(lone)} other files; name the one meant: {', '.join(lone[:5])}"
    raise AdapterError(message, code="missing-weights", where=where)


def is_weights_name(name: str) -> bool:
    """Return True for the name of a file that tools save an adapter as."""
    return name in _WEIGHTS


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration. Raises AdapterError ``bad-config``, and the errors of `read_json`."""
    config = read_json(path)
    _require_storable(config, str(path))
    return config


def _require_storable(config: Mapping[str, Any], where: str) -> None:
    """Check that a `.nola` file can hold a configuration, which is carried unchanged.

    Raises:
        AdapterError: ``bad-config`` for nesting over 100 deep, integers of more than 64 bits, or text that is not
            Unicode.
    """
    level: list[Any] = [config]
    for _ in range(_MAX_CONFIG_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                below += [*value, *value.values()]
            elif isinstance(value, (list, tuple)):
                below += value
            elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
                raise AdapterError("an integer of more than 64 bits", code="bad-config", where=where)
            elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
                raise AdapterError("text that is not Unicode", code="bad-config", where=where)
        level = below
    if level:
        message = f"values nested more than {_MAX_CONFIG_DEPTH} deep"
        raise AdapterError(message, code="bad-config", where=where)
