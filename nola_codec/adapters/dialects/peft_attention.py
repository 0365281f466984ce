"""The output projection of PyTorch's `MultiheadAttention`, to which PEFT adds its delta twice.

PEFT (`tuners/lora/layer.py`, `MultiheadAttention`) puts factors on both projections of an attention: those of the input
are called ``<attention>``, and those of the output ``<attention>.base_layer.out_proj``. Both have one rank and one
alpha, which a configuration states under the name of the attention. Its forward pass merges the factors into the
weights. It adds the delta of the output to the weight itself, and then lets the layer of the output merge it once more,
in peft 0.15 (0.14 has no such layer), 0.17, 0.19, 0.20 and 0.21 alike. So the trained model has twice this delta.

Everywhere else in this package a module's scaling makes the delta that the model has: twice PEFT's scaling here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nola_codec.adapters.dialects.peft_config import PREFIX, PeftSettings
from nola_codec.model.adapter import LoraModule

_OUTPUT = ".base_layer.out_proj"
_TIMES = 2.0


def attention_of(path: str, settings: PeftSettings | None = None) -> str | None:
    """Return the path of the attention whose output projection a path names; None for any other path.

    Args:
        path: The path of a module, with or without PEFT's prefix.
        settings: The configuration, if there is one. A module whose parameter has factors (`target_parameters`) is
            wrapped too, and is no attention for PEFT.
    """
    owner = path.removesuffix(_OUTPUT)
    if owner == path or (settings is not None and settings.parameter_of(owner.removeprefix(PREFIX)) is not None):
        return None
    return owner


def delta_scaling(name: str, scaling: float, settings: PeftSettings | None = None) -> float:
    """Return the scaling that makes the delta of the model, from the scaling that PEFT's layer has."""
    return scaling if attention_of(name, settings) is None else scaling * _TIMES


def layer_scaling(name: str, scaling: float, settings: PeftSettings | None = None) -> float:
    """Return the scaling that PEFT's layer has, from the scaling that makes the delta of the model."""
    return scaling if attention_of(name, settings) is None else scaling / _TIMES


def as_deltas(modules: Iterable[LoraModule], settings: PeftSettings | None = None) -> list[LoraModule]:
    """Return modules whose scalings make the deltas, from modules whose scalings are those of PEFT's layers."""
    return [replace(m, scaling=delta_scaling(m.name, m.scaling, settings)) for m in modules]


def as_layers(modules: Iterable[LoraModule], settings: PeftSettings | None = None) -> list[LoraModule]:
    """Return modules whose scalings are those of PEFT's layers, from modules whose scalings make the deltas."""
    return [replace(m, scaling=layer_scaling(m.name, m.scaling, settings)) for m in modules]
