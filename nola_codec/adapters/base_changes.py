"""Carried tensors that a file holds as changes of the base model's: find these in the base, and make the tensors again.

A tensor ``M.weight`` of the model is then the vector ``M.diff``, and a checksum says which tensor of the base it is
relative to. A merge adds the change and does not need the tensor. An adapter that is written needs the base model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nola_codec.adapters.adapter_delta import CHANGE_SUFFIX
from nola_codec.adapters.registry import dialect_of
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.model.tensors import RawTensor
from nola_codec.rendering import list_first
from nola_codec.stores.dtypes import from_float64, to_float64

if TYPE_CHECKING:
    from nola_codec.adapters.contract import Dialect
    from nola_codec.adapters.dialects.weight_changes import Weights
    from nola_codec.checkpoints.checkpoint import WeightInfo

_WEIGHT = ".weight"


def change_name(key: str) -> str:
    """Return the name of the vector that holds the change of a tensor ``M.weight``."""
    return key.removesuffix(_WEIGHT) + CHANGE_SUFFIX


def changed_key(name: str) -> str:
    """Return the key of the tensor whose change a vector is."""
    return name.removesuffix(CHANGE_SUFFIX) + _WEIGHT


def find_in_base(keys: Sequence[str], dialect: Dialect, weights: Weights) -> dict[str, str | None]:
    """Return the name that each carried tensor has in a base model, or None, by key.

    A name counts if it is the path of the tensor, or if it alone has more or fewer components in front. The output
    layer of a model with tied embeddings is its input embedding.
    """
    from nola_codec.checkpoints.embeddings import tied_embeddings

    paths = {key: dialect.base_name(key) for key in keys}
    shapes = {name: info.shape for name, info in weights.infos.items()}
    tied = tied_embeddings(weights.config, shapes, [path.rpartition(".")[0] for path in paths.values()])
    found: dict[str, str | None] = {}
    for key, path in paths.items():
        found[key] = _find(path, weights.infos)
        if found[key] is None and tied is not None and path.split(".")[-2:] == tied.missing.split(".")[-2:]:
            found[key] = tied.stored
    return found


def restore_from_base(adapter: Adapter, base: str | os.PathLike[str] | None) -> Adapter:
    """Return an adapter with the tensors whose changes it holds; an adapter without such changes as it is.

    Args:
        adapter: A decoded adapter.
        base: The base model, a directory or a safetensors file; None if it was not given.

    Raises:
        AdapterError: ``needs-base``: the base model was not given; ``base-mismatch``: it has another tensor than the
            one that a change is relative to; and what reading the base model raises.
    """
    if not adapter.references:
        return adapter
    keys = [changed_key(name) for name in adapter.references]
    if base is None:
        message = (
            f"{list_first(keys, 1)} is held as a change of the base model's tensor; give the base model and the "
            f"format, --base MODEL --format {adapter.dialect}, or merge with --base MODEL alone"
        )
        raise AdapterError(message, code="needs-base")
    from nola_codec.adapters.dialects.weight_changes import Weights

    raw = dict(adapter.raw)
    with Weights(base) as weights:
        names = find_in_base(keys, dialect_of(adapter), weights)
        for vector in adapter.vectors:
            if vector.name in adapter.references:
                key = changed_key(vector.name)
                raw[key] = _restore(vector, adapter.references[vector.name].sha256, names[key], weights)
    left = tuple(vector for vector in adapter.vectors if vector.name not in adapter.references)
    return replace(adapter, raw=raw, vectors=left, references={})


def require_reference(tensor: RawTensor, sha256: bytes, where: str) -> None:
    """Raise AdapterError ``base-mismatch`` unless a tensor of the base is the one that a change is relative to."""
    if hashlib.sha256(tensor.data).digest() != sha256:
        message = "has other bytes than the tensor of the base model that the change in the file is relative to"
        raise AdapterError(message, code="base-mismatch", where=where)


def _find(path: str, infos: Mapping[str, WeightInfo]) -> str | None:
    """Return the stored name of a path, or None."""
    if path in infos:
        return path
    ends = [name for name in infos if name.endswith("." + path) or path.endswith("." + name)]
    return ends[0] if len(ends) == 1 else None


def _restore(vector: VectorTensor, sha256: bytes, name: str | None, weights: Weights) -> RawTensor:
    """Return the tensor of the base model plus its change, rounded once to the dtype that it had in the adapter."""
    if name is None or weights.infos[name].shape != vector.values.shape:
        message = f"the base model has no tensor of the shape {list(vector.values.shape)} for it"
        raise AdapterError(message, code="base-mismatch", where=f"{weights.where}: {changed_key(vector.name)}")
    original = weights.read(name)
    require_reference(original, sha256, f"{weights.where}: {name}")
    total = to_float64(original) + vector.values.astype(np.float64)
    return from_float64(total, vector.dtype, where=vector.name)
