"""What a caller may hand over as an adapter, opened: the tensors, and the configuration if there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nola_codec.adapters.files import AnySource, display_name, read_json
from nola_codec.adapters.safetensors_io import SafetensorsFile
from nola_codec.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# Weights of other tools in a directory: opened so that their dialect can be named.
_OTHER_WEIGHTS = ("pytorch_lora_weights.safetensors", "adapters.safetensors")
_PICKLED_WEIGHTS = ("adapter_model.bin", "pytorch_lora_weights.bin", "adapter_model.pt")


@dataclass(frozen=True)
class AdapterSource:
    """An adapter before its dialect is known.

    Attributes:
        file: The open tensor file.
        config: ``adapter_config.json`` as parsed, or None.
        where: The path given, for messages.
    """

    file: SafetensorsFile
    config: Mapping[str, Any] | None
    where: str

    def __enter__(self) -> AdapterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def open_source(source: AnySource, *, config: Mapping[str, Any] | None = None) -> AdapterSource:
    """Open a directory, a file, bytes or a binary stream.

    A file called ``adapter_model.safetensors`` is read with the ``adapter_config.json`` beside it, if there is one:
    without it the scaling would be wrong in silence. ``config`` goes before any configuration found.

    Raises:
        AdapterError: ``not-found``, ``missing-config``, ``missing-weights``, ``pickle``, and those of
            `SafetensorsFile` and `read_json`.
    """
    where = display_name(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            weights = _weights_in(path)
            if config is None:
                if not (path / CONFIG_NAME).exists() and weights.name == WEIGHTS_NAME:
                    message = f"no {CONFIG_NAME}; give the path of {WEIGHTS_NAME} to read it with a scaling of 1"
                    raise AdapterError(message, code="missing-config", where=where)
                config = read_json(path / CONFIG_NAME) if (path / CONFIG_NAME).exists() else None
            return AdapterSource(SafetensorsFile(weights), config, where)
        if config is None and path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).exists():
            config = read_json(path.parent / CONFIG_NAME)
    return AdapterSource(SafetensorsFile(source), config, where)


def _weights_in(directory: Path) -> Path:
    for name in (WEIGHTS_NAME, *_OTHER_WEIGHTS):
        if (directory / name).exists():
            return directory / name
    for name in _PICKLED_WEIGHTS:
        if (directory / name).exists():
            message = f"{name} is a Python pickle, which can run code when loaded; convert it to {WEIGHTS_NAME} first"
            raise AdapterError(message, code="pickle", where=str(directory))
    if (directory / "config.json").exists():
        message = f"no {WEIGHTS_NAME}; this looks like a whole model, not an adapter"
    else:
        others = sorted(path.name for path in directory.glob("*.safetensors"))
        message = f"no {WEIGHTS_NAME}" + (f"; name the file itself: {', '.join(others[:5])}" if others else "")
    raise AdapterError(message, code="missing-weights", where=str(directory))
