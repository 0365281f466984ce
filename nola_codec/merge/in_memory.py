"""A merge into a model in memory, in place: the bits of a merge on disk, without its files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters.dialects import delta as delta_dialect
from nola_codec.adapters.dialects import parameters, peft_diagonals
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.sum import delta_weight, merge_tensor
from nola_codec.merge.diagonal import merge_diagonals
from nola_codec.merge.files import decode_merge_file
from nola_codec.merge.matching import merge_target, mismatch_message
from nola_codec.merge.model_weights import find_in_model
from nola_codec.model.header import Header

if TYPE_CHECKING:
    import torch


def merge_into_model(decoder: Decoder, where: str, model: torch.nn.Module) -> None:
    """Add every delta of a file to the weights of a model, in place, each with one rounding to its dtype.

    The decoded SHA-256 of the file is compared before anything changes.

    Args:
        decoder: The open file.
        where: The file's name, for messages.
        model: The base model.

    Raises:
        AdapterError: ``base-mismatch``, ``tied-weights``, ``overflow``; ``merge-network``, ``merge-vectors``,
            ``merge-raw``, ``merge-projections`` for files that cannot be merged so.
        FormatError, ChecksumMismatch: The file is damaged; nothing is changed.
    """
    header = decoder.header
    if header.dialect == delta_dialect.name:
        _merge_dense_changes(decoder, where, model)
    elif header.dialect == "peft" and peft_diagonals.method_of(header.config) is not None:
        merge_diagonals(decoder, where, model)
    else:
        _require_pairs_only(header, where)
        _merge_pairs(decoder, model)


def _require_pairs_only(header: Header, where: str) -> None:
    if header.dialect == parameters.name:
        message = "the file holds a network's own weights: model.load_state_dict(file.state_dict())"
        raise AdapterError(message, code="merge-network", where=where)
    if header.vectors:
        raise AdapterError(
            f"the file has tensors coded as vectors ({header.vectors[0].name}, ...), which only its dialect "
            "knows how to merge", code="merge-vectors", where=where
        )  # fmt: skip
    if header.raw:
        raise AdapterError(
            f"the file carries tensors that are not deltas ({header.raw[0].name}, ...); "
            "load the decoded adapter with PEFT, or merge with `decode --base`", code="merge-raw", where=where
        )  # fmt: skip


def _merge_pairs(decoder: Decoder, model: torch.nn.Module) -> None:
    """Merge LoRA pairs; each delta is computed on the decoder's device."""
    import torch

    records = decoder.header.lowrank
    targets = [merge_target(record) for record in records]
    weights, places = find_in_model(model, lambda shapes, config: targets)
    factors, _ = decoder.checked()
    with torch.no_grad():
        for record, decoded in zip(records, factors, strict=True):
            place = places[record.name]
            delta = _as_tensor(delta_weight(decoded, record.kind, decoder.xp))
            weight = weights[place.weight]
            merge_tensor(weight, (delta.T if place.transposed else delta).to(weight.device))


def _merge_dense_changes(decoder: Decoder, where: str, model: torch.nn.Module) -> None:
    """Merge a file of dense changes: its names are those of the weights themselves."""
    import torch

    weights = dict(model.named_parameters(remove_duplicate=False))
    file = decode_merge_file(decoder, where)
    found = {delta_dialect.weight_name(name): (name, math.prod(parts[0].shape)) for name, parts in file.parts.items()}
    problems = [
        f"{weight}: " + ("no such weight" if weight not in weights else f"shape {list(weights[weight].shape)}")
        for weight, (_, size) in found.items()
        if weight not in weights or weights[weight].numel() != size
    ]
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch", where="the model")
    with torch.no_grad():
        for name, (delta, _) in found.items():
            weight = weights[name]
            rows = file.delta(delta, tuple(weight.shape), transposed=False).rows(
                0, weight.shape[0] if weight.ndim else 1
            )
            merge_tensor(weight, torch.from_numpy(rows).to(weight.device))


def _as_tensor(array: Any) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor
