"""The weights of a Transformers or Diffusers model directory, read lazily."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nola_codec.checkpoints.fingerprint import fingerprint
from nola_codec.checkpoints.quantization import quantized_weights
from nola_codec.checkpoints.weights_files import find_weights, is_index, missing_weights_message, weight_map
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import read_json
from nola_codec.stores.safetensors_io import SafetensorsFile


@dataclass(frozen=True)
class WeightInfo:
    """A stored tensor of a checkpoint.

    Attributes:
        shard: The name of the file that holds it.
        dtype: Its dtype, as in `RawTensor`.
        shape: Its shape.
    """

    shard: str
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The weights of a model directory: one safetensors file, or shards and their index.

    The files are called ``model`` (Transformers) or ``diffusion_pytorch_model`` (a component of Diffusers), and a
    variant such as ``fp16`` counts if there is no plain file. If there is only one file, it may have any name. Headers
    are read when the object is made, and tensors by `read`.

    Attributes:
        directory: The model directory.
        weights: The stored tensors, by name.
        shards: The file names, in the order of the index.
        config: The parsed ``config.json``; empty if there is none.
        index: The parsed index, or None for a single file.
        index_name: The file name of the index; empty for a single file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Read the configuration, the index and the headers of all shards.

        Raises:
            AdapterError: ``not-found``; ``missing-weights``; ``several-variants``; ``quantized-base`` for GGUF;
                ``bad-index``: the index and the shards disagree; and those of `read_json` and `SafetensorsFile`.
        """
        self.directory = Path(directory)
        where = str(directory)
        if not self.directory.is_dir():
            raise AdapterError("no such directory", code="not-found", where=where)
        config = self.directory / "config.json"
        self.config: Mapping[str, Any] = read_json(config) if config.exists() else {}
        self.index: Mapping[str, Any] | None = None
        self.index_name = ""
        expected_in: dict[str, str] = {}
        found = find_weights(self.directory)
        if not found:
            raise _missing_weights(self.directory)
        if is_index(found):
            self.index_name = found
            self.index = read_json(self.directory / found)
            expected_in = weight_map(self.index, f"{where}: {found}")
            self.shards: tuple[str, ...] = tuple(dict.fromkeys(expected_in.values()))
        else:
            self.shards = (found,)
        self.weights: Mapping[str, WeightInfo] = self._list_weights(expected_in)

    @property
    def quantized(self) -> Mapping[str, str]:
        """The method of each quantized weight, by name."""
        return quantized_weights({name: info.dtype for name, info in self.weights.items()}, self.config)

    def open_shard(self, shard: str) -> SafetensorsFile:
        """Open one file of the checkpoint, for use as a context manager."""
        return SafetensorsFile(self.directory / shard)

    def read(self, name: str) -> RawTensor:
        """Read one tensor.

        Raises:
            AdapterError: ``no-such-tensor``; and those of `SafetensorsFile`.
        """
        if name not in self.weights:
            raise AdapterError("no such tensor", code="no-such-tensor", where=f"{self.directory}: {name}")
        with self.open_shard(self.weights[name].shard) as file:
            return file.read(name)

    def fingerprint(self) -> bytes:
        """Return the fingerprint of the weights, 32 bytes (`checkpoints.fingerprint`)."""

        def read_start(name: str, most: int) -> bytes:
            with self.open_shard(self.weights[name].shard) as file:
                return file.read_start(name, most)

        return fingerprint(self.weights, read_start)

    def _list_weights(self, expected_in: Mapping[str, str]) -> dict[str, WeightInfo]:
        weights: dict[str, WeightInfo] = {}
        for shard in self.shards:
            with self.open_shard(shard) as file:
                for name, info in file.tensors.items():
                    if name in weights:
                        message = f"stored both in {weights[name].shard} and in {shard}"
                        raise AdapterError(message, code="bad-index", where=f"{self.directory}: {name}")
                    weights[name] = WeightInfo(shard, info.dtype, info.shape)
        for name, shard in expected_in.items():
            if name not in weights or weights[name].shard != shard:
                message = f"the index says that it is in {shard}, but it is not there"
                raise AdapterError(message, code="bad-index", where=f"{self.directory}: {name}")
        return weights


def _missing_weights(directory: Path) -> AdapterError:
    only_gguf = any(directory.glob("*.gguf")) and not any(directory.glob("*.safetensors"))
    code = "quantized-base" if only_gguf else "missing-weights"
    return AdapterError(missing_weights_message(directory), code=code, where=str(directory))
