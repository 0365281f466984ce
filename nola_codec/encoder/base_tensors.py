"""Name the base model, compare carried tensors with its own, and leave out those that a training did not touch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.base_changes import change_name, find_in_base
from nola_codec.adapters.dialects.weight_changes import Weights
from nola_codec.checkpoints.embeddings import embedding_names
from nola_codec.encoder.carried import is_reducible, relative_error
from nola_codec.encoder.carried_notes import LARGE_SHARE
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, BaseEntry, BaseReference, VectorTensor
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.rendering import render_error, render_largest
from nola_codec.stores.dtypes import FLOAT_DTYPES, coded_dtype, from_float64, to_float64

_PIECE = 1 << 22
"""The number of elements that are compared at once."""
_NEAR = 0.5
"""The distance below which a tensor is coded as a change of the base's, over the norm of that."""
_LONGEST_NAME = 1024
_LISTED = 3
"""The greatest number of tensors that have a sentence of their own."""


@dataclass(frozen=True)
class Comparison:
    """A carried tensor beside the tensor of the base model.

    Attributes:
        key: The key of the carried tensor.
        name: The name of the tensor in the base model; None if it has no such tensor.
        is_equal: True if the values are equal, maybe after those of the base were rounded to the dtype of the other.
        difference: The sentence that says how they differ; empty if they are equal.
        distance: The norm of the difference over the norm of the base's; None if they cannot be compared.
    """

    key: str
    name: str | None
    is_equal: bool
    difference: str = ""
    distance: float | None = None


def relate_to_base(
    adapter: Adapter, base: str | os.PathLike[str], *, form: str = "exact", serves_fit: bool = False
) -> Adapter:
    """Return the adapter without the carried tensors that equal those of the base model, and with notes that say so.

    In the form ``coded``, a tensor that is near that of the base becomes a change of it, a vector like other deltas.
    The configuration changes with what is left out, so that the dialect's tool loads the rest and computes the same.

    Args:
        adapter: The adapter as read.
        form: The form of carried tensors, one of `CARRIED_FORMS`.
        base: A model directory or a safetensors file. Only the tensors that are compared are read.
        serves_fit: True if the model serves another purpose too. Nothing is said then if there is nothing to compare.

    Raises:
        AdapterError: The base model cannot be read.
    """
    dialect = dialect_of(adapter)
    keys = [key for key, tensor in adapter.raw.items() if key not in adapter.draws and dialect.may_be_rounded(key)]
    with Weights(base) as weights:
        names = find_in_base(keys, dialect, weights)
        compared = [_compare(key, adapter.raw[key], names[key], weights) for key in keys]
        near = [each for each in compared if form == "coded" and _may_be_change(adapter, each)]
        changes = [_change(adapter.raw[each.key], weights.read(str(each.name)), each) for each in near]
        adapter = replace(adapter, base=make_base_entry(adapter, base, weights))
    if not compared and serves_fit:
        return adapter
    equal = [each.key for each in compared if each.is_equal]
    coded = {each.key for each in near}
    left = dialect.without_carried(adapter, equal)
    return replace(
        left,
        raw={key: tensor for key, tensor in left.raw.items() if key not in coded},
        vectors=(*left.vectors, *(vector for vector, _ in changes)),
        references={vector.name: reference for vector, reference in changes},
        notes=(*adapter.notes, *_notes(adapter, compared, coded)),
    )


def make_base_entry(adapter: Adapter, base: str | os.PathLike[str], weights: Weights) -> BaseEntry:
    """Return the entry of the base model, with the name and the revision that the adapter's configuration gives it."""
    given = [(adapter.config or {}).get(key) for key in ("base_model_name_or_path", "revision")]
    name, revision = (value[:_LONGEST_NAME] if isinstance(value, str) else "" for value in given)
    return BaseEntry(name or Path(base).name[:_LONGEST_NAME], revision, weights.fingerprint())


def base_advice(report: EncodeReport) -> tuple[str, ...]:
    """Return the sentence that a base model could make a file smaller, if embeddings are a large part of it."""
    shapes = {each.name: each.shape for each in report.carried}
    inputs, outputs = embedding_names(shapes)
    taken = sum(each.bytes for each in report.carried if each.name in (*inputs, *outputs))
    if taken <= LARGE_SHARE * report.bytes:
        return ()
    return ("--base MODEL leaves out the carried tensors that the base model has, such as an untouched lm_head",)


def _may_be_change(adapter: Adapter, each: Comparison) -> bool:
    """Return True if a compared tensor is a matrix of a module without factors, and near that of the base."""
    able = dialect_of(adapter).holds_base_changes and each.distance is not None and each.distance < _NEAR
    module = each.key.removesuffix(".weight")
    matrix = len(adapter.raw[each.key].shape) == 2 and is_reducible(adapter.raw[each.key])
    adapted = any(item.name == module for item in adapter.modules) or module.endswith(".base_layer")
    return able and matrix and module != each.key and not adapted


def _change(tensor: RawTensor, original: RawTensor, each: Comparison) -> tuple[VectorTensor, BaseReference]:
    """Return the change of a tensor, and the reference to the tensor of the base."""
    difference = to_float64(tensor) - to_float64(original)
    vector = VectorTensor(change_name(each.key), difference.astype(np.float32), coded_dtype(tensor.dtype))
    norm = float(np.linalg.norm(to_float64(tensor)))
    return vector, BaseReference(hashlib.sha256(original.data).digest(), norm)


def _compare(key: str, tensor: RawTensor, name: str | None, weights: Weights) -> Comparison:
    """Compare one carried tensor with the tensor of the base that has that name."""
    if name is None:
        return Comparison(key, name, is_equal=False)
    info = weights.infos[name]
    if info.shape != tensor.shape:
        return Comparison(key, name, False, f"has the shape {list(tensor.shape)}, and {name} {list(info.shape)}")
    if {info.dtype, tensor.dtype} - set(FLOAT_DTYPES):
        same = info.dtype == tensor.dtype and weights.read(name).data == tensor.data
        return Comparison(key, name, same, "" if same else f"is {tensor.dtype}, and {name} {info.dtype}")
    original = weights.read(name)
    if _are_equal(tensor, original):
        return Comparison(key, name, is_equal=True)
    if not to_float64(original).any():
        return Comparison(key, name, False, f"is not zero, unlike {name}")
    distance = relative_error(original, tensor)
    return Comparison(key, name, False, f"differs from {name} by {render_error(distance)} of its norm", distance)


def _are_equal(tensor: RawTensor, original: RawTensor) -> bool:
    """Return True if a tensor has the values of another, or these rounded once to its dtype."""
    for start in range(0, len(tensor.data) // DTYPE_BYTES[tensor.dtype], _PIECE):
        mine, theirs = (to_float64(_piece(each, start)) for each in (tensor, original))
        if np.array_equal(mine, theirs, equal_nan=True):
            continue
        try:
            rounded = to_float64(from_float64(theirs, tensor.dtype))
        except AdapterError:  # a value of the base is too large for the dtype
            return False
        if not np.array_equal(mine, rounded, equal_nan=True):
            return False
    return True


def _piece(tensor: RawTensor, start: int) -> RawTensor:
    """Return the elements of a tensor from a position on, at most _PIECE of them, flat."""
    width = DTYPE_BYTES[tensor.dtype]
    data = tensor.data[start * width : (start + _PIECE) * width]
    return RawTensor(tensor.dtype, (len(data) // width,), data)


def _notes(adapter: Adapter, compared: Sequence[Comparison], coded: Collection[str]) -> list[str]:
    """Return the sentences that say what became of the carried tensors."""
    sizes = {each.key: len(adapter.raw[each.key].data) for each in compared}
    equal = {each.key: sizes[each.key] for each in compared if each.is_equal}
    strange = {each.key: sizes[each.key] for each in compared if each.name is None}
    said = []
    if not compared:
        said.append(
            "--base changed nothing but the file's entry of its base model: the adapter has no carried tensor that a "
            "base model could have"
        )
    if equal:
        verbs = "equals that of the base model and was" if len(equal) == 1 else "equal those of the base model and were"
        said.append(f"{render_largest(equal)} {verbs} left out")
    changed = sorted((each for each in compared if each.difference), key=lambda each: -sizes[each.key])
    for each in changed[:_LISTED]:
        became = "coded as a change of the base model" if each.key in coded else "carried"
        said.append(f"{each.key} is {became}: compared with the base model, it {each.difference}")
    if coded:
        said.append(
            "an adapter of this file can only be written with the base model: decode --base MODEL --format peft"
        )
    if len(changed) > _LISTED:
        more = len(changed) - _LISTED
        what = "1 more carried tensor differs" if more == 1 else f"{more} more carried tensors differ"
        said.append(f"{what} from those of the base model")
    if strange:
        said.append(f"the base model has no tensor for {render_largest(strange)}")
    return said
