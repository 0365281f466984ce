"""VeRA and RandLoRA in memory: one delta, and all of them into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters.dialects import peft_config, peft_diagonals
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.sum import merge_tensor
from nola_codec.merge.files import MergeFile, decode_merge_file
from nola_codec.merge.model_weights import find_in_model
from nola_codec.merge.places import diagonal_targets

if TYPE_CHECKING:
    import torch


def diagonal_delta(
    decoder: Decoder, where: str, name: str, shape: tuple[int, int] | None, place: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """delta_W of a layer (out, in), float32.

    Args:
        decoder: Of the file.
        where: The file, for messages.
        name: Module path, with or without PEFT's prefix.
        shape: Of the layer.
        place: Makes a tensor of an array, on the right device.

    Raises:
        AdapterError: ``merge-projections``, ``unknown-name``, ``needs-shape``, ``bad-shape``.
    """
    file = decode_merge_file(decoder, where)
    peft_diagonals.require_projections(file.adapter, where)
    found = next((n for n in (name, peft_config.PREFIX + name) if n in file.parts), None)
    if found is None:
        raise AdapterError(f"no module named {name!r}", code="unknown-name", where=where)
    if shape is None:
        message = "how many inputs a layer has, the file does not say: give the layer's shape, (out, in)"
        raise AdapterError(message, code="needs-shape", where=f"{where}: {found}")
    return place(_rows(file, found, tuple(shape), transposed=False).astype(np.float32))


def merge_diagonals(decoder: Decoder, where: str, model: torch.nn.Module) -> None:
    """`NolaFile.merge_into` for VeRA and RandLoRA.

    Raises:
        AdapterError: ``merge-projections``, ``merge-raw``, ``base-mismatch``, ``tied-weights``, ``overflow``.
    """
    import torch

    file = decode_merge_file(decoder, where)
    carried = peft_diagonals.model_tensors(file.adapter)
    if carried:
        raise AdapterError(
            f"the file carries tensors that are not deltas ({next(iter(carried))}, ...); "
            "load the decoded adapter with PEFT, or merge with `decode --base`", code="merge-raw"
        )  # fmt: skip
    weights, matches = find_in_model(
        model, lambda shapes, config: diagonal_targets(file.adapter, file.parts, shapes, config, where)
    )
    with torch.no_grad():
        for name, match in matches.items():
            weight = weights[match.weight]
            rows = _rows(file, name, tuple(weight.shape), transposed=match.transposed)
            merge_tensor(weight, torch.from_numpy(rows).to(weight.device))


def _rows(file: MergeFile, name: str, shape: tuple[int, ...], *, transposed: bool) -> Any:
    return file.delta(name, shape, transposed).rows(0, shape[0])
