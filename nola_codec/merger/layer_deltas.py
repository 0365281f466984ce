"""Make the delta of one layer from all records of a file that belong to it.

This module is for deltas that are not one pair of factors: those of VeRA, RandLoRA, LyCORIS and experts, and changes of
whole models, where a vector may be added to a pair. They are made as in a merge on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.merge_files import decode_merge_file

if TYPE_CHECKING:
    import torch


def layer_delta(
    decoder: Decoder, where: str, name: str, shape: tuple[int, ...] | None, place: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Return delta_W of a layer in float32, from all records that belong to it.

    Args:
        decoder: The open file.
        where: The file's name, for messages.
        name: The path of the module, with or without PEFT's prefix.
        shape: The shape of the layer's weight; None is the shape of the delta, if the file tells it.
        place: A function that makes a tensor of an array, on the right device.

    Raises:
        AdapterError: ``merge-projections``, ``unknown-name``, ``needs-shape``, ``bad-shape``.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    file = decode_merge_file(decoder, where)
    dialect = dialect_of(file.adapter)
    dialect.require_complete(file.adapter, where)
    found = next((n for n in (name, PREFIX + name) if n in file.parts), None)
    if found is None:
        raise AdapterError(f"no delta named {name!r} in the file", code="unknown-name", where=where)
    if dialect.needs_layer_shape and shape is None:
        message = "the file does not say how many inputs the layer has: give the layer's shape, (out, in)"
        raise AdapterError(message, code="needs-shape", where=f"{where}: {found}")
    if not dialect.needs_layer_shape:
        parts = file.parts[found]
        own = parts[0].shape if len(parts) == 1 else (len(parts), *parts[0].shape)
        if shape is not None and tuple(shape) != own:
            raise AdapterError(mismatch("shape", own, tuple(shape)), code="bad-shape", where=f"{where}: {found}")
        shape = own
    whole = tuple(shape or ())
    rows = file.delta(found, whole, False).rows(0, whole[0] if whole else 1)
    return place(rows.astype(np.float32))
