"""Check, copy and rewrite the files of a model directory other than its weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.checkpoints.weights_files import is_index
from nola_codec.errors import AdapterError, OutputExists
from nola_codec.merger.shards import MergedTensor
from nola_codec.stores.files import require_free
from nola_codec.stores.safetensors_io import num_bytes

# Weights are never copied, since the old ones would be loaded in place of the merged ones.
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".npz", ".tflite"}
)
# Transformers would load an adapter on top of the merged weights.
_NOT_COPIED = frozenset({"adapter_config.json"})
_COPIED_DIRECTORIES = frozenset({"additional_chat_templates"})


def check_output(source: Path, out: Path, *, overwrite: bool) -> None:
    """Check that an output does not replace its own input, or anything that is not a model.

    Raises:
        AdapterError: ``same-directory``: one of the two directories lies in the other.
        OutputExists: `out` exists and `overwrite` is False, or it is not a model directory.
    """
    if out == source or out in source.parents or source in out.parents:
        raise AdapterError("lies inside the base model, or holds it", code="same-directory", where=str(out))
    require_free(out, overwrite=overwrite)
    is_model = not out.is_dir() or not any(out.iterdir()) or (out / "config.json").exists()
    if not is_model and not any(out.glob("*.safetensors")):
        raise OutputExists("is not a model directory, so it is not replaced", where=str(out))


def remove_others(directory: Path, kept: Iterable[str]) -> None:
    """Remove all files except those of these names, such as the unfinished files of a killed run."""
    names = set(kept)
    for path in directory.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy_other_files(base: Path, directory: Path) -> None:
    """Copy configuration, tokenizer, code and licences: all but weights, hidden files and adapters.

    Raises:
        AdapterError: ``outside-base``; see `require_inside`.
    """
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or path.name in _NOT_COPIED:
            continue
        if path.is_dir():
            if path.name in _COPIED_DIRECTORIES:
                copy_tree(path, directory / path.name, base)
        elif path.suffix not in _WEIGHT_SUFFIXES and not is_index(path.name):
            require_inside(path, base)
            shutil.copyfile(path, directory / path.name)  # follows the symbolic links of a hub cache


def copy_tree(source: Path, target: Path, base: Path) -> None:
    """Copy a directory of a base model with the contents of what links in it point to.

    Raises:
        AdapterError: ``outside-base``; see `require_inside`.
    """
    require_inside(source, base)
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_tree(path, target / path.name, base)
        else:
            require_inside(path, base)
            shutil.copyfile(path, target / path.name)


def require_inside(path: Path, base: Path) -> None:
    """Check that a file of a base model is no link to a file elsewhere, such as a secret of the user.

    A link may lead to another place in the directory of the model. In a cache of the Hugging Face Hub, whose snapshots
    are links, it may also lead to the blobs of the same repository.

    Raises:
        AdapterError: ``outside-base``: It leads elsewhere. ``unreadable``: It is a pipe or a device.
    """
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(base))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(each == real or each in real.parents for each in allowed):
        message = (
            f"a link to {real}, outside of the base model, which may be private; "
            "put the file itself in the place of the link to have it copied"
        )
        raise AdapterError(message, code="outside-base", where=str(path))
    if real.exists() and not (real.is_file() or real.is_dir()):
        raise AdapterError("not a regular file", code="unreadable", where=str(path))


def merged_index(checkpoint: Checkpoint, layouts: Mapping[str, Mapping[str, MergedTensor]]) -> dict[str, Any]:
    """Return the index of the merged shards, made from the index of the base and the layout of each shard."""
    index = dict(checkpoint.index or {})
    tensors = [tensor for layout in layouts.values() for tensor in layout.values()]
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(num_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    weight_map = {name: shard for shard, layout in layouts.items() for name in layout}
    return index | {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
