"""Write the tensors of an adapter to a file, or to a directory with a configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nola_codec.adapters.sources import CONFIG_NAME
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_directory, dump_json, require_free
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors


@dataclass(frozen=True)
class AdapterFile:
    """What goes into a file of tensors.

    Attributes:
        tensors: The tensors by key.
        metadata: The metadata; only safetensors has a place for it.
        file_name: The file's name in a directory.
        extra: The typed key-values of GGUF.
        config: The configuration; only a directory has a place for it.
    """

    tensors: Mapping[str, RawTensor]
    metadata: Mapping[str, str]
    file_name: str
    extra: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def write_adapter_file(out: str | os.PathLike[str], file: AdapterFile, *, overwrite: bool) -> Path:
    """Write one file of tensors; ``out`` without a tensor file's suffix is a directory that gets ``file_name``.

    Raises:
        AdapterError: ``not-expressible`` for what the store has no place for.
        OutputExists: Something is there and ``overwrite`` is False.
    """
    path = Path(out)
    require_free(path, overwrite=overwrite)
    if is_tensor_file(path):
        return write_tensors(path, file.tensors, file.metadata, extra=file.extra)
    with atomic_directory(path, replace=overwrite) as directory:
        write_tensors(directory / file.file_name, file.tensors, file.metadata, extra=file.extra)
        if file.config:
            (directory / CONFIG_NAME).write_bytes(dump_json(file.config))
    return path
