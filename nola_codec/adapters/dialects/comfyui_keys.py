"""Tensors that ComfyUI and BFL put beside factors: changes of single tensors, whole tensors, and new shapes.

<module>.diff, .diff_b           added to the weight, and to the bias (also ``.w_norm``, ``.b_norm`` of LyCORIS)
<block>.diff_m                   added to the parameter ``modulation`` of a block of Wan
<module>.set_weight              takes the place of the weight
<norm>.weight, .bias, .scale     take the place of these tensors of a norm (control LoRAs of BFL and Diffusers)
<module>.reshape_weight          the shape to which the weight is widened before the delta is added
<module>.dora_scale              the magnitude of DoRA
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nola_codec.adapters.adapter_delta import is_change
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.rendering import list_first
from nola_codec.stores.dtypes import INTEGER_DTYPES, to_numpy

SET_WEIGHT = ".set_weight"
RESHAPE_WEIGHT = ".reshape_weight"

NORM = r".+\.(?:\w*norm\w*)\.(?:weight|bias|scale)"
"""A pattern for the tensors of a norm."""

_NORM = re.compile(NORM)


def are_changes_alone(keys: Mapping[str, object]) -> bool:
    """Return True if a file has changes of tensors, and neither factors nor dense changes of `encode_delta`."""
    changes = [key for key in keys if is_change(key)]
    dense = any(key.endswith((".weight.diff", ".bias.diff")) for key in changes)
    return bool(changes) and not dense and not any(".lora_" in key or "_lora." in key for key in keys)


def notes_on_carried(carried: Mapping[str, RawTensor]) -> tuple[str, ...]:
    """Return the sentences that tell the user what the carried tensors of this kind do to a model."""
    whole = [key for key in sorted(carried) if key.endswith(SET_WEIGHT) or _NORM.fullmatch(key)]
    shapes = [key for key in sorted(carried) if key.endswith(RESHAPE_WEIGHT)]
    notes = []
    if whole:
        many = "one whole tensor" if len(whole) == 1 else f"{len(whole)} whole tensors"
        verb = "replaces one of the model, and is" if len(whole) == 1 else "replace tensors of the model, and are"
        notes.append(f"{many} beside the factors ({whole[0]}{', ...' if whole[1:] else ''}) {verb} carried exactly")
    if shapes:
        notes.append(
            f"{list_first(shapes, 1)} asks for a wider weight than the "
            "model's; this is carried, and such an adapter cannot be merged"
        )
    return tuple(notes)


def replaced_tensors(carried: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Return carried tensors under the names of the model's tensors that they replace.

    Raises:
        AdapterError: ``merge-reshape``: the adapter is for a model with another shape of a weight.
    """
    named = {}
    for key, tensor in carried.items():
        if key.endswith(RESHAPE_WEIGHT):
            shape = list(map(int, to_numpy(tensor).reshape(-1))) if tensor.dtype in INTEGER_DTYPES else "another shape"
            message = f"the weight is widened to {shape} before the delta is added; a merge does not change shapes"
            raise AdapterError(message, code="merge-reshape", where=key)
        named[key.removesuffix(SET_WEIGHT) + ".weight" if key.endswith(SET_WEIGHT) else key] = tensor
    return named
