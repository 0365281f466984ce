"""Write the tensors of an adapter to a file, or to a directory with a configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nola_codec.adapters.beside_files import require_no_beside, split_beside, write_beside
from nola_codec.adapters.sources import CONFIG_NAME
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_directory, dump_json, require_free
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors


@dataclass(frozen=True)
class AdapterFile:
    """The contents of a file of tensors.

    Attributes:
        tensors: The tensors by key.
        metadata: The metadata, which only safetensors can hold.
        file_name: The name of the file in a directory.
        extra: The typed key-values of GGUF.
        config: The configuration, which only a directory can hold.
        config_name: The name of the file of the configuration.
    """

    tensors: Mapping[str, RawTensor]
    metadata: Mapping[str, str]
    file_name: str
    extra: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_name: str = CONFIG_NAME


def write_adapter_file(out: str | os.PathLike[str], file: AdapterFile, *, overwrite: bool) -> Path:
    """Write one file of tensors. If ``out`` has no suffix of a tensor file, it is a directory that gets ``file_name``.

    Raises:
        AdapterError: ``not-expressible`` for parts that this type of file cannot hold.
        OutputExists: ``out`` exists and ``overwrite`` is False.
    """
    path = Path(out)
    require_free(path, overwrite=overwrite)
    tensors, beside = split_beside(file.tensors)
    if is_tensor_file(path):
        require_no_beside(beside, path)
        return write_tensors(path, tensors, file.metadata, extra=file.extra)
    with atomic_directory(path, replace=overwrite) as directory:
        write_beside(directory, beside)
        write_tensors(directory / file.file_name, tensors, file.metadata, extra=file.extra)
        if file.config:
            (directory / file.config_name).write_bytes(dump_json(file.config))
    return path
