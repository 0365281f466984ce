"""The weights of a Transformers or Diffusers model directory, read lazily."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import read_json
from nola_codec.stores.safetensors_io import SafetensorsFile

WEIGHTS_NAME = "model.safetensors"
_INDEX_SUFFIX = ".index.json"
# The names that Transformers uses, and the components of a Diffusers pipeline.
_WEIGHTS_NAMES = (WEIGHTS_NAME, "diffusion_pytorch_model.safetensors")


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

    The files are called ``model`` (Transformers) or ``diffusion_pytorch_model`` (a component of Diffusers). If there
    is only one file, it may have any name. Headers are read when the object is made, and tensors by `read`.

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
            AdapterError: ``not-found``; ``missing-weights``; ``bad-index``: the index and the shards disagree; and
                those of `read_json` and `SafetensorsFile`.
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
        found = _find_weights_file(self.directory)
        if found.endswith(_INDEX_SUFFIX):
            self.index_name = found
            self.index = read_json(self.directory / found)
            expected_in = _weight_map(self.index, f"{where}: {found}")
            self.shards: tuple[str, ...] = tuple(dict.fromkeys(expected_in.values()))
        else:
            self.shards = (found,)
        self.weights: Mapping[str, WeightInfo] = self._list_weights(expected_in)

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


def _weight_map(index: Mapping[str, Any], where: str) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise AdapterError("no weight_map", code="bad-index", where=where)
    for name, shard in weight_map.items():
        # A stranger's index must not make us read, or later write, outside the directory.
        plain = isinstance(shard, str) and shard == PurePosixPath(shard).name and "\\" not in shard and shard != ".."
        if not plain or not shard.endswith(".safetensors"):
            message = mismatch("file", "the plain name of a .safetensors file", shard)
            raise AdapterError(message, code="bad-index", where=f"{where}: {name}")
    return weight_map


def _find_weights_file(directory: Path) -> str:
    """Return the name of the weights file of a directory, or of the index of several."""
    for name in _WEIGHTS_NAMES:
        for candidate in (name, name + _INDEX_SUFFIX):
            if (directory / candidate).exists():
                return candidate
    lone = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(lone) == 1 and not (directory / "adapter_config.json").exists():
        return lone[0]
    raise AdapterError(_missing_weights_message(directory), code="missing-weights", where=str(directory))


def _missing_weights_message(directory: Path) -> str:
    if (directory / "adapter_config.json").exists():
        return f"no {WEIGHTS_NAME}; this is an adapter, not a base model"
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickles:
        return f"no {WEIGHTS_NAME}; {pickles[0]} is a Python pickle: convert the model to safetensors first"
    several = sorted(path.name for path in directory.glob("*.safetensors"))
    if several:
        return f"{len(several)} safetensors files ({several[0]}, ...) and no {WEIGHTS_NAME}{_INDEX_SUFFIX} to join them"
    return f"neither {WEIGHTS_NAME} nor {WEIGHTS_NAME}{_INDEX_SUFFIX}"
