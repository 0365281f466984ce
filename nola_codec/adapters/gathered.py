"""Refuse adapters whose tensors are empty because a distributed training saved them ungathered."""

from __future__ import annotations

from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError


def require_gathered(source: AdapterSource) -> None:
    """Check that no tensor has the shape (0,), which ZeRO-3 and FSDP leave of a parameter that lies on other devices.

    Raises:
        AdapterError: ``ungathered``: some tensors are empty; the message counts them and names the first.
    """
    tensors = source.file.tensors
    empty = [key for key, info in tensors.items() if info.shape == (0,)]
    if empty:
        message = (
            f"{len(empty)} of {len(tensors)} tensors are empty: shards of DeepSpeed ZeRO-3 or FSDP were saved without "
            "gathering them. Run zero_to_fp32.py in the checkpoint's folder, or save again with "
            "stage3_gather_16bit_weights_on_model_save (ZeRO-3) or FULL_STATE_DICT (FSDP)"
        )
        raise AdapterError(message, code="ungathered", where=f"{source.where}: {empty[0]}")
