"""Deltas of layers in memory, made row by row as a merge of files makes them: one delta, or all of them into a model.

This serves the dialects whose deltas are not each one pair of factors: VeRA, RandLoRA, and changes of whole models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.sum import merge_tensor
from nola_codec.merge.files import MergeFile, decode_merge_file
from nola_codec.merge.model_weights import find_in_model
from nola_codec.merge.places import WeightShapes

if TYPE_CHECKING:
    import torch


def layer_delta(
    decoder: Decoder, where: str, name: str, shape: tuple[int, int] | None, place: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Return delta_W of a layer (out, in), float32.

    Args:
        decoder: Decodes the file.
        where: The file, for messages.
        name: Module path, with or without PEFT's prefix.
        shape: The shape of the layer.
        place: Makes a tensor of an array, on the right device.

    Raises:
        AdapterError: ``merge-projections``, ``unknown-name``, ``needs-shape``, ``bad-shape``.
    """
    file = decode_merge_file(decoder, where)
    dialect_of(file.adapter).require_complete(file.adapter, where)
    found = next((n for n in (name, PREFIX + name) if n in file.parts), None)
    if found is None:
        raise AdapterError(f"no module named {name!r}", code="unknown-name", where=where)
    if shape is None:
        message = "how many inputs a layer has, the file does not say: give the layer's shape, (out, in)"
        raise AdapterError(message, code="needs-shape", where=f"{where}: {found}")
    return place(_rows(file, found, tuple(shape), transposed=False).astype(np.float32))


def merge_layer_deltas(decoder: Decoder, where: str, model: torch.nn.Module) -> None:
    """Add every delta of a file to the weights of a model, in place.

    Args:
        decoder: Decodes the file.
        where: The file, for messages.
        model: What is changed.

    Raises:
        AdapterError: ``merge-projections``, ``merge-raw``, ``base-mismatch``, ``tied-weights``, ``overflow``.
    """
    import torch

    file = decode_merge_file(decoder, where)
    dialect = dialect_of(file.adapter)
    carried = dialect.model_tensors(file.adapter)
    if carried:
        raise AdapterError(
            f"the file carries tensors that are not deltas ({next(iter(carried))}, ...); "
            "load the decoded adapter with PEFT, or merge with `decode --base`", code="merge-raw", where=where
        )  # fmt: skip
    weights, places = find_in_model(
        model,
        lambda shapes, config: dialect.merge_targets(file.adapter, file.parts, WeightShapes(shapes, config), where),
        may_be_tied=dialect.changes_stored_weights,
    )
    with torch.no_grad():
        for name, place in places.items():
            weight = weights[place.weight]
            rows = _rows(file, name, tuple(weight.shape), transposed=place.transposed)
            merge_tensor(weight, torch.from_numpy(rows).to(weight.device))


def _rows(file: MergeFile, name: str, shape: tuple[int, ...], *, transposed: bool) -> Any:
    return file.delta(name, shape, transposed).rows(0, shape[0] if shape else 1)
