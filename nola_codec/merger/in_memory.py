"""Merge a file into a model in memory, in place, with the same bits as a merge on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.adapters import dialect_of
from nola_codec.decoder.decoder import Decoder
from nola_codec.merger.memory_change import plan_change
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.merge_files import decode_merge_file

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
    dialect_of(decoder.header, where).require_mergeable(where)
    memory = MemoryModel(model)
    change = plan_change(decode_merge_file(decoder, where), memory)
    change.require_untied(memory)
    change.write(memory)
