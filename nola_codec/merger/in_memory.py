"""Merge a file into a model in memory, in place, with the same bits as a merge on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.sum import delta_weight, merge_tensor
from nola_codec.merger.layer_deltas import merge_layer_deltas
from nola_codec.merger.matching import merge_target
from nola_codec.merger.model_weights import find_in_model
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
            ``merge-raw``, ``merge-projections`` for files that cannot be merged in memory.
        FormatError, ChecksumMismatch: The file is damaged; nothing is changed.
    """
    dialect = dialect_of(decoder.header, where)
    if dialect.needs_layer_shape or dialect.changes_stored_weights:
        merge_layer_deltas(decoder, where, model)
    else:
        dialect.require_mergeable(where)
        _require_pairs_only(decoder.header, where)
        _merge_pairs(decoder, model)


def _require_pairs_only(header: Header, where: str) -> None:
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

    records = decoder.header.pairs
    targets = [merge_target(record) for record in records]
    weights, places = find_in_model(model, lambda shapes, config: targets)
    factors = decoder.decode_all()
    with torch.no_grad():
        by_name = {record.name: (record, decoded) for record, decoded in zip(records, factors, strict=True)}
        for place in places.values():
            record, decoded = by_name[place.module]
            delta = _as_tensor(delta_weight(decoded, record.kind, decoder.xp))
            weight = weights[place.weight]
            merge_tensor(weight, (delta.T if place.transposed else delta).reshape(weight.shape).to(weight.device))


def _as_tensor(array: Any) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor
