"""Merge a file into a model in memory, in place, with the same bits as a merge on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.decoder.decoder import Decoder
from nola_codec.merger.arithmetic.sum import delta_weight, merge_tensor
from nola_codec.merger.layer_deltas import merge_layer_deltas
from nola_codec.merger.matching import merge_target
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.plan import plan_merge
from nola_codec.merger.weight_places import Place
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
        AdapterError: ``base-mismatch``, ``tied-weights``, ``vocabulary``, ``overflow``, and others of `plan_merge`;
            ``merge-network``, ``merge-vectors``, ``merge-projections`` for files that cannot be merged in memory.
        FormatError, ChecksumMismatch: The file is damaged; nothing is changed.
    """
    header = decoder.header
    dialect = dialect_of(header, where)
    dialect.require_mergeable(where)
    memory = MemoryModel(model)
    pairs = None if dialect is not PEFT or header.raw or header.vectors else _plain_pairs(header, memory)
    if pairs is None:
        merge_layer_deltas(decoder, where, memory)
    else:
        _merge_pairs(decoder, memory, pairs)


def _plain_pairs(header: Header, memory: MemoryModel) -> dict[str, Place] | None:
    """Return the place of each pair, by weight; None if a delta is a slice or changes a part of a weight."""
    dialect = dialect_of(header)
    if any(dialect.slice_of(record.name)[0] != record.name for record in header.pairs):
        return None
    places = plan_merge(memory, [merge_target(record) for record in header.pairs]).places
    return None if any(part.taken or part.put for place in places.values() for part in place.parts) else dict(places)


def _merge_pairs(decoder: Decoder, memory: MemoryModel, places: dict[str, Place]) -> None:
    """Merge LoRA pairs; each delta is computed on the decoder's device."""
    import torch

    memory.require_untied((place.weight, place.module) for place in places.values())
    factors = decoder.decode_all()
    by_name = {record.name: (record, decoded) for record, decoded in zip(decoder.header.pairs, factors, strict=True)}
    with torch.no_grad():
        for place in places.values():
            record, decoded = by_name[place.module]
            delta = _as_tensor(delta_weight(decoded, record.kind, decoder.xp))
            weight = memory.parameters[place.weight]
            merge_tensor(weight, (delta.T if place.transposed else delta).reshape(weight.shape).to(weight.device))


def _as_tensor(array: Any) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor
