"""Find the files of weights in a model directory, as Transformers and Diffusers name them.

model.safetensors, diffusion_pytorch_model.safetensors                    one file, or
model.safetensors.index.json                                              the index of several
diffusion_pytorch_model.fp16.safetensors, model.safetensors.index.fp16.json   a variant, if the plain one is not there
pytorch_model.bin, diffusion_pytorch_model.bin                            pickles, with indexes of the same form
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.stores.files import read_json

WEIGHTS_NAME = "model.safetensors"
_STEMS = ("model", "diffusion_pytorch_model")
_VARIANT = re.compile(
    r"(?:model|diffusion_pytorch_model)\.(?:(?P<file>(?:(?!-\d+-of-\d+)[\w-])+)\.safetensors|"
    r"safetensors\.index\.(?P<index>[\w-]+)\.json)"
)
_INDEX = re.compile(r".+\.index(?:\.[\w-]+)?\.json")
_PICKLES = re.compile(r"(?P<stem>pytorch_model|diffusion_pytorch_model)(?P<variant>\.[\w-]+)?\.bin")
_PICKLE_INDEX = re.compile(r"(?:pytorch_model|diffusion_pytorch_model)\.bin\.index(?:\.[\w-]+)?\.json")


@dataclass(frozen=True)
class Pickles:
    """The pickles of a model.

    Attributes:
        shards: The name of each pickle, by the name that it gets in safetensors.
        index: The file name of their index; empty for a single pickle.
    """

    shards: Mapping[str, str]
    index: str = ""

    @property
    def safetensors_index(self) -> str:
        """The file name of the index in safetensors."""
        return _safetensors_name(self.index)


def is_index(name: str) -> bool:
    """Return True if a file name is that of an index of several files."""
    return _INDEX.fullmatch(name) is not None


def find_weights(directory: Path) -> str:
    """Return the name of the safetensors file of a directory, or of the index of several; empty if there is none.

    Raises:
        AdapterError: ``several-variants``: there is no plain file, and more than one variant.
    """
    for stem in _STEMS:
        for candidate in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if (directory / candidate).exists():
                return candidate
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    variants = {name: match["file"] or match["index"] for name in names if (match := _VARIANT.fullmatch(name))}
    if len(set(variants.values())) > 1:
        message = f"several variants and no plain file: {', '.join(variants)}; keep the one that is meant"
        raise AdapterError(message, code="several-variants", where=str(directory))
    if variants:
        return next((name for name in variants if not is_index(name)), next(iter(variants)))
    lone = [name for name in names if name.endswith(".safetensors")]
    return lone[0] if len(lone) == 1 and "adapter_config.json" not in names else ""


def find_pickles(directory: Path) -> Pickles | None:
    """Return the pickles of a model directory; None if there are none. A plain file goes before a variant.

    Raises:
        AdapterError: ``bad-index``.
    """
    names = sorted(path.name for path in directory.iterdir())
    single = sorted((name for name in names if _PICKLES.fullmatch(name)), key=len)
    if single:
        return Pickles({_safetensors_name(single[0]): single[0]})
    index = min((name for name in names if _PICKLE_INDEX.fullmatch(name)), key=len, default="")
    if not index:
        return None
    shards = sorted(set(weight_map(read_json(directory / index), f"{directory}: {index}", ".bin").values()))
    return Pickles({_safetensors_name(shard): shard for shard in shards}, index)


def weight_map(index: Mapping[str, Any], where: str, suffix: str = ".safetensors") -> dict[str, str]:
    """Return the file of each weight, as an index says.

    Args:
        index: The parsed index.
        where: Its path, for messages.
        suffix: The suffix that the files must have.

    Raises:
        AdapterError: ``bad-index``: there is no map, or a file is not one of the directory.
    """
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise AdapterError("no weight_map", code="bad-index", where=where)
    for name, shard in found.items():
        # A stranger's index must not make us read, or later write, outside the directory.
        plain = isinstance(shard, str) and shard == PurePosixPath(shard).name and "\\" not in shard and shard != ".."
        if not plain or not shard.endswith(suffix):
            message = mismatch("file", f"the plain name of a {suffix} file", shard)
            raise AdapterError(message, code="bad-index", where=f"{where}: {name}")
    return found


def missing_weights_message(directory: Path) -> str:
    """Return a message about a directory without weights that says what it holds instead, and what to do next."""
    if (directory / "adapter_config.json").exists():
        return f"no {WEIGHTS_NAME}; this is an adapter, not a base model"
    names = sorted(path.name for path in directory.iterdir())
    for suffix, step in _NEXT_STEPS.items():
        other = next((name for name in names if name.endswith(suffix)), "")
        if other:
            return f"no {WEIGHTS_NAME}; {other} is {step}"
    several = [name for name in names if name.endswith(".safetensors")]
    if several:
        return f"{len(several)} safetensors files ({several[0]}, ...) and no {WEIGHTS_NAME}.index.json to join them"
    return f"neither {WEIGHTS_NAME} nor {WEIGHTS_NAME}.index.json"


_RESAVE = "load it with from_pretrained, and save it with save_pretrained"
_NEXT_STEPS: Mapping[str, str] = {
    ".gguf": "a GGUF file of llama.cpp: merge into the safetensors model that it was made from, and convert the result",
    ".bin": f"a Python pickle: {_RESAVE}",
    ".pth": f"a Python pickle: {_RESAVE}",
    ".pt": f"a Python pickle: {_RESAVE}",
    ".ckpt": f"a Python pickle: {_RESAVE}",
    ".msgpack": f"a file of Flax: {_RESAVE}",
    ".h5": f"a file of TensorFlow: {_RESAVE}",
    ".onnx": "an ONNX graph: merge into the model that it was exported from",
    ".npz": "an archive of NumPy: save its tensors as safetensors",
}
"""What a file of weights is, and what to do with it, by its suffix."""


def _safetensors_name(name: str) -> str:
    """Return the name of the same weights in safetensors: ``model-00001-of-00002.safetensors``."""
    changed = name.replace(".bin", ".safetensors")
    return changed.removeprefix("pytorch_") if changed.startswith("pytorch_model") else changed
