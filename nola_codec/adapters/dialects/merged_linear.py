"""The factors of loralib's `MergedLinear`, read as a plain pair of factors with the same delta.

Such a layer is a fused projection (query, key and value in one weight) of n blocks of rows, g of which are adapted, as
`enable_lora` tells. A (r g, in) has the down factors of the adapted blocks below each other, and B (out g / n, r) their
up factors. The delta of an adapted block is B_i A_i, and that of the others is 0. PEFT 0.2 and before had such a layer
too; there B has the shape (out g / n, r, 1).

The plain pair has B (out, r g) with B_i in the rows of block i and the columns of its factor, and zeros elsewhere. Its
product is the delta, without rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor

MAX_BLOCKS = 8

NOTE = "the factors of a fused projection (enable_lora) are stored as plain factors of the same deltas"
"""The note for an adapter with such factors."""


def enabled_blocks(config: Mapping[str, Any] | None, where: str) -> tuple[bool, ...] | None:
    """Return `enable_lora` of a configuration; None if it has none.

    Raises:
        AdapterError: ``bad-config`` for anything but a list of true and false, with one true.
    """
    value = None if config is None else config.get("enable_lora")
    if value is None:
        return None
    is_list = isinstance(value, list) and 1 <= len(value) <= MAX_BLOCKS and all(type(each) is bool for each in value)
    if not is_list or True not in value:
        message = mismatch("enable_lora", "a list of true and false, with one true", value)
        raise AdapterError(message, code="bad-config", where=where)
    return tuple(value)


def is_merged_linear(a_shape: Sequence[int], b_shape: Sequence[int], enabled: Sequence[bool] | None) -> bool:
    """Return True if two shapes are those of such a layer.

    Its A has a multiple of the rank of B, or its B a third dimension. If one block of several is adapted, the shapes
    are those of any pair, and only the flags tell.

    Args:
        a_shape: The shape of A.
        b_shape: The shape of B.
        enabled: The flags of all blocks; None if the configuration does not tell them.
    """
    if len(a_shape) != 2 or len(b_shape) not in (2, 3) or not (all(a_shape) and all(b_shape)):
        return False
    if a_shape[0] % b_shape[1] or b_shape[2:] not in ((), (1,)):
        return False
    one_of_several = enabled is not None and sum(enabled) == 1 < len(enabled)
    return len(b_shape) == 3 or a_shape[0] != b_shape[1] or one_of_several


def plain_factor(lora_B: RawTensor, a_shape: Sequence[int], enabled: Sequence[bool] | None, where: str) -> RawTensor:
    """Return B (out, r g) of the plain pair.

    Args:
        lora_B: The tensor as it is stored.
        a_shape: The shape of A.
        enabled: The flags of all blocks, from the configuration; None if it does not tell them.
        where: The name of the tensor, for messages.

    Raises:
        AdapterError: ``merged-linear``: the configuration does not tell the blocks; ``bad-shape``: the shapes do not
            fit the flags.
    """
    rows, rank = lora_B.shape[:2]
    groups = a_shape[0] // rank
    if enabled is None:
        message = (
            f"the factors of a fused projection ({groups} of its blocks are adapted); adapter_config.json must tell "
            "which, as enable_lora: [true, false, true]"
        )
        raise AdapterError(message, code="merged-linear", where=where)
    if sum(enabled) != groups or rows % groups:
        message = mismatch("shape", f"that of {sum(enabled)} blocks of rank {a_shape[0] // sum(enabled)}", lora_B.shape)
        raise AdapterError(message, code="bad-shape", where=where)
    height = rows // groups
    width = DTYPE_BYTES[lora_B.dtype]
    stored = np.frombuffer(lora_B.data, np.uint8).reshape(groups, height, rank, width)
    made = np.zeros((len(enabled), height, groups, rank, width), np.uint8)
    for column, block in enumerate(np.flatnonzero(enabled)):
        made[block, :, column] = stored[column]
    return RawTensor(lora_B.dtype, (len(enabled) * height, groups * rank), made.tobytes())
