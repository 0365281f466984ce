"""Fit PEFT's configuration, or the factors of a lone file, to the scalings and ranks that modules have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nola_codec.adapters.dialects.module_rules import fold_scaling, is_power_of_two
from nola_codec.adapters.dialects.peft_attention import as_layers, attention_of
from nola_codec.adapters.dialects.peft_config import PREFIX, PeftSettings, parse_config, with_ranks
from nola_codec.adapters.dialects.peft_experts import expert_module
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import LoraModule
from nola_codec.model.tensors import RawTensor


def config_path(name: str, settings: PeftSettings | None = None) -> str:
    """Return the path that a configuration knows a module by, from the module's name in an adapter.

    Experts have the path of their parameter, and the output projection of an attention has that of the attention.
    """
    path = expert_module(name).removeprefix(PREFIX)
    parameter = settings.parameter_of(path) if settings is not None else None
    return parameter or attention_of(path, settings) or path


def fitting_config(config: Mapping[str, Any], modules: tuple[LoraModule, ...], where: str) -> Mapping[str, Any]:
    """Return the configuration, adapted if PEFT would read other ranks or scalings from it than these modules have.

    Args:
        config: The configuration as it was read; it does not change.
        modules: The modules, with the scalings that make their deltas.
        where: The name of the configuration, for messages.

    Raises:
        AdapterError: ``target-parameters``: modules that share an entry of the configuration (experts of one
            parameter, the two projections of an attention) have several ranks or scalings; and those of
            `parse_config` and `with_ranks`.
    """
    settings = parse_config(config, where)
    layers = as_layers(modules, settings)
    paths = {m.name: config_path(m.name, settings) for m in layers}
    if all(
        settings.rank_of(paths[m.name]) == m.rank and settings.scaling_of(paths[m.name]) == m.scaling for m in layers
    ):
        return config
    if len({(paths[m.name], m.rank, m.scaling) for m in layers}) > len(set(paths.values())):
        message = (
            "the experts of one parameter, or the projections of one attention, have several ranks or scalings, and "
            "the configuration can state only one"
        )
        raise AdapterError(message, code="target-parameters", where=where)
    return with_ranks(config, {paths[m.name]: m.rank for m in layers}, {paths[m.name]: m.scaling for m in layers})


def fold_into_factors(module: LoraModule, raw: Mapping[str, RawTensor]) -> LoraModule:
    """Return a module with the scaling of PEFT's layer multiplied into lora_B, as a lone file holds it.

    Args:
        module: The module, with the scaling that makes its delta.
        raw: The carried tensors by key; a bias beside lora_B would have to be multiplied too.

    Raises:
        AdapterError: ``needs-directory``: the scaling is no power of two, or lora_B has a bias.
    """
    (layer,) = as_layers([module])
    can_fold = is_power_of_two(layer.scaling) and f"{module.name}.lora_B.bias" not in raw
    if layer.scaling != 1.0 and not can_fold:
        message = f"a lone file has no place for the scaling {layer.scaling}; write a directory"
        raise AdapterError(message, code="needs-directory", where=module.name)
    return fold_scaling(layer, "peft")
