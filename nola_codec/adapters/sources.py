"""Open the source of an adapter: the file of tensors, and the configuration if there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nola_codec.errors import AdapterError
from nola_codec.stores.files import AnySource, display_name, read_json
from nola_codec.stores.open_store import TensorStore, open_store

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# The file names in the order in which they are looked for: PEFT's own name first, and safetensors before pickles.
_WEIGHTS = (
    WEIGHTS_NAME, "pytorch_lora_weights.safetensors", "adapters.safetensors", "adapters.npz", "adapter_model.bin",
    "pytorch_lora_weights.bin", "adapter_model.pt",
)  # fmt: skip
_LONE_SUFFIXES = (".safetensors", ".npz", ".gguf", ".bin", ".pt", ".pth")
_PEFT_STEM = "adapter_model"
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
        beside: The parsed ``adapter_config.json`` beside a lone file whose name is not PEFT's, or None. The dialect
            decides if it belongs to the file.
    """

    file: TensorStore
    config: Mapping[str, Any] | None
    where: str
    beside: Mapping[str, Any] | None = None

    def __enter__(self) -> AdapterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def open_source(source: AnySource, *, config: Mapping[str, Any] | None = None) -> AdapterSource:
    """Open a directory, a file, bytes or a binary stream.

    A file called ``adapter_model`` with any suffix is read with the ``adapter_config.json`` beside it, if there is one,
    since the scaling would be wrong without it. If ``config`` is given, it is used in place of any such file.

    Raises:
        AdapterError: ``not-found``, ``missing-config``, ``missing-weights``, ``sharded``, and those of `open_store`
            and `read_json`.
    """
    where = display_name(source)
    if config is not None:
        _require_storable(config, where)
    if not isinstance(source, (str, os.PathLike)):
        return AdapterSource(open_store(source), config, where)
    try:
        return _open_path(Path(source), config, where)
    except OSError as e:  # the path is impossible (such as too long), or may not be read
        raise AdapterError(f"cannot be read: {e.strerror or e}", code="unreadable", where=where) from e


def _open_path(path: Path, config: Mapping[str, Any] | None, where: str) -> AdapterSource:
    if path.is_dir():
        weights = weights_in(path)
        if config is None and (path / CONFIG_NAME).exists():
            config = _read_config(path / CONFIG_NAME)
        if config is None and weights.stem == _PEFT_STEM:
            message = f"no {CONFIG_NAME}; give the path of {weights.name} to read it with a scaling of 1"
            raise AdapterError(message, code="missing-config", where=where)
        return AdapterSource(open_store(weights), config, where)
    if _SHARD.fullmatch(path.name):
        message = "this is one shard of several; join them into one file first"
        raise AdapterError(message, code="sharded", where=where)
    found = path.parent / CONFIG_NAME
    beside = _read_config(found) if config is None and path.exists() and found.exists() else None
    if path.stem == _PEFT_STEM:
        return AdapterSource(open_store(path), config if config is not None else beside, where)
    return AdapterSource(open_store(path), config, where, beside)


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


def _read_config(path: Path) -> dict[str, Any]:
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
