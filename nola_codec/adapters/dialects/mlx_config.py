"""Read and make the ``adapter_config.json`` of mlx-lm.

mlx-lm (`tuner/utils.py`, `load_adapters`) needs ``num_layers`` and ``lora_parameters`` with rank, scale and dropout. It
puts LoRA layers into the last ``num_layers`` layers, at the ``keys`` of a layer, and also at ``keys`` that are whole
paths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects.mlx_names import LAYER, OUTSIDE
from nola_codec.adapters.dialects.peft_experts import expert_module
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule

DEFAULT_SCALE = 20.0
"""The scale of mlx-lm's LoRA layers if they are given none; mlx-examples, which had no configuration, took it too."""

_PARAMETERS = "lora_parameters"
_FLAT = ("scale", "rank", "lora_layers", "num_layers", "fine_tune_type")
_ANY_LAYER = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.\d+\.(.+)")
ALL_LAYERS = -1
"""The number of layers, counted from the last one, that MLX puts LoRA into; -1 stands for all. A layer without factors
in the file stays as it is, since MLX begins with lora_b = 0."""


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    """Return True if a configuration is MLX's: it has ``lora_parameters``, or the names of an older flat one."""
    return _PARAMETERS in config or ("peft_type" not in config and any(name in config for name in _FLAT))


def scale_of(config: Mapping[str, Any], where: str) -> float | None:
    """Return the scale of a configuration of MLX; None if it has none.

    Raises:
        AdapterError: ``not-lora`` for a configuration of full fine-tuning; ``bad-config``.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(mismatch("fine_tune_type", "lora or dora", kind), code="not-lora", where=where)
    parameters = config.get(_PARAMETERS, config)
    if not isinstance(parameters, dict):
        message = mismatch(_PARAMETERS, "a map", type(parameters).__name__)
        raise AdapterError(message, code="bad-config", where=where)
    scale = parameters.get("scale")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise AdapterError(mismatch(f"{_PARAMETERS}.scale", "a finite number", scale), code="bad-config", where=where)
    return float(scale)


def config_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note for a configuration of April to October 2024 with an alpha, whose meaning changed in between."""
    parameters = config.get(_PARAMETERS)
    if "num_layers" in config or not isinstance(parameters, Mapping):
        return ()
    scale, alpha, rank = (parameters.get(name) for name in ("scale", "alpha", "rank"))
    numbers = [value for value in (scale, alpha, rank) if isinstance(value, (int, float)) and value]
    if len(numbers) < 3 or alpha == rank:
        return ()
    old = numbers[0] * numbers[1] / numbers[2]
    return (
        f"the configuration has scale {scale:g} and alpha {alpha:g}: scale is taken, as mlx-lm does since June 2024; "
        f"before, it multiplied by scale * alpha / rank = {old:g}",
    )


def complete_config(config: Mapping[str, Any] | None, modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Return a configuration with which mlx-lm loads an adapter: the given one, with what it lacks.

    Raises:
        AdapterError: ``not-expressible``: the modules have several scalings.
    """
    config = {} if config is None else dict(config)
    if len({module.scaling for module in modules}) > 1:
        message = "an MLX adapter has one scale for all modules, and these have different ones"
        raise AdapterError(message, code="not-expressible")
    parameters = config.get(_PARAMETERS)
    parameters = dict(parameters) if isinstance(parameters, Mapping) else {"keys": _own_keys(modules)}
    made = {"rank": modules[0].rank, "scale": modules[0].scaling, "dropout": 0.0}
    for name, value in made.items():
        parameters.setdefault(name, config.get(name, value))
    layers = config.get("lora_layers")
    config.setdefault("num_layers", layers if type(layers) is int else ALL_LAYERS)
    config.setdefault("fine_tune_type", "lora")
    return {**config, _PARAMETERS: parameters}


def restate(config: Mapping[str, Any], modules: Sequence[LoraModule]) -> dict[str, Any] | None:
    """Return a configuration with the rank and scale of modules; None if there was none and the scale is 1."""
    if not config and modules[0].scaling == 1.0:
        return None
    old = dict(config) if is_mlx_config(config) else {**config, "fine_tune_type": "lora", "num_layers": ALL_LAYERS}
    parameters = {"dropout": 0.0, **dict(old.get(_PARAMETERS) or {})}
    return {**old, _PARAMETERS: {**parameters, "rank": modules[0].rank, "scale": modules[0].scaling}}


def with_keys_of(config: Mapping[str, Any], modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Return a configuration with the keys of other modules, if it lists keys, and for all layers."""
    if not is_mlx_config(config):
        return dict(config)
    parameters = dict(config.get(_PARAMETERS) or {})
    if "keys" in parameters:
        parameters["keys"] = sorted({*parameters["keys"], *keys_of(modules)})
    return {**config, "num_layers": ALL_LAYERS, _PARAMETERS: parameters}


def _own_keys(modules: Sequence[LoraModule]) -> list[str]:
    """Return the keys of modules of an adapter that MLX wrote, whatever model they are of."""
    names = {expert_module(module.name) for module in modules}
    matches = {name: _ANY_LAYER.fullmatch(name) for name in names}
    return sorted({name if match is None else match[1] for name, match in matches.items()})


def make_config(modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Return a configuration with which mlx-lm makes a LoRA layer for each module; all have one rank and one scale.

    Raises:
        AdapterError: Those of `keys_of`.
    """
    return {
        "fine_tune_type": "lora",
        "num_layers": ALL_LAYERS,
        _PARAMETERS: {
            "rank": modules[0].rank, "scale": modules[0].scaling, "dropout": 0.0, "keys": keys_of(modules),
        },
    }  # fmt: skip


def keys_of(modules: Sequence[LoraModule]) -> list[str]:
    """Return the paths of modules within their layers, or their whole paths outside of layers, for ``keys``.

    Raises:
        AdapterError: ``not-expressible`` for a module that is not in a language model.
    """
    keys = set()
    for module in modules:
        match = LAYER.fullmatch(expert_module(module.name))
        if match is None and OUTSIDE.fullmatch(expert_module(module.name)) is None:
            message = "MLX puts LoRA into the layers of a language model, and this is not in one"
            raise AdapterError(message, code="not-expressible", where=module.name)
        keys.add(module.name if match is None else match["leaf"])
    return sorted(keys)
