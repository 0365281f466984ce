"""Hot swap: the parts of `integrations.peft.load` that put a file into an adapter that is live already."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.dialects.peft_attention import layer_scaling
from nola_codec.adapters.ranks import with_rank
from nola_codec.adapters.registry import dialect_of
from nola_codec.model.adapter import Adapter

if TYPE_CHECKING:
    import torch

# Fields of a configuration that say where the factors are, how large they are, how they are scaled or where they came
# from. The tensors decide the first two, `set_live_config` sets the scalings, and dropout is no part of inference.
_FREE = frozenset({
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "base_model_name_or_path", "revision", "inference_mode", "task_type",
    "auto_mapping", "peft_version", "init_lora_weights", "lora_dropout", "runtime_config",
})  # fmt: skip
_FREE_ELSEWHERE = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version",
})  # fmt: skip


def live_ranks(model: torch.nn.Module, adapter_name: str) -> dict[str, int]:
    """Return the rank that each layer of a live LoRA has, by the name of the layer."""
    ranks = {}
    for name, module in model.named_modules():
        for holder in ("lora_A", "lora_embedding_A"):
            found: Any = getattr(module, holder, None)
            if found is not None and adapter_name in found:
                factor = found[adapter_name]
                ranks[name] = len(getattr(factor, "weight", factor))
    return ranks


def fit_live_ranks(adapter: Adapter, model: torch.nn.Module, adapter_name: str) -> Adapter:
    """Return an adapter whose smaller ranks are those of the live one, by components that are zero."""
    ranks = live_ranks(model, adapter_name)
    wider = [with_rank(m, max(m.rank, ranks.get(m.name, m.rank))) for m in adapter.modules]
    if all(new is old for new, old in zip(wider, adapter.modules, strict=True)):
        return adapter
    return dialect_of(adapter).with_modules(adapter, wider)


def is_swappable(model: Any, adapter_name: str, config: Any) -> bool:
    """Return True if a live adapter has the method and the options of a configuration, but for what a swap can set."""
    live = model.peft_config[adapter_name]
    if live.peft_type != config.peft_type:
        return False
    free = _FREE if live.peft_type == "LORA" else _FREE_ELSEWHERE
    old, new = live.to_dict(), config.to_dict()
    return all(_same(old.get(key), new.get(key)) for key in {*old, *new} - free)


def set_live_config(model: Any, adapter_name: str, config: Any, adapter: Adapter) -> None:
    """Give a live adapter, whose tensors are set, the scalings and the configuration that belong to them."""
    live = model.peft_config[adapter_name]
    if live.peft_type == "LORA":
        for module in adapter.modules:
            scaling = layer_scaling(module.name, module.scaling)
            _set_scaling(model.get_submodule(module.name), adapter_name, scaling, config.use_rslora)
        config.lora_dropout = live.lora_dropout
    config.inference_mode = live.inference_mode
    model.peft_config[adapter_name] = config


def _set_scaling(layer: Any, adapter_name: str, scaling: float, use_rslora: bool) -> None:
    """Set the scaling of a layer, and the numbers that PEFT computes it from again when it scales the layer."""
    held = layer.scaling[adapter_name]
    if hasattr(held, "fill_"):  # a tensor, after `prepare_model_for_compiled_hotswap`: the graph stays valid
        held.fill_(scaling)
    else:
        layer.scaling[adapter_name] = scaling
    rank = live_ranks(layer, adapter_name)[""]
    layer.r[adapter_name] = rank
    layer.lora_alpha[adapter_name] = scaling * (math.sqrt(rank) if use_rslora else rank)
    layer.use_rslora[adapter_name] = use_rslora


def _same(old: object, new: object) -> bool:
    """Return True if two values of a configuration mean the same; a set and a list of its elements do.

    PEFT adds the heads of classifiers to ``modules_to_save`` each time that it makes a model, whether they are in it or
    not, so elements that are there twice do not count.
    """
    if isinstance(old, set | list | tuple) and isinstance(new, set | list | tuple):
        return set(map(str, old)) == set(map(str, new))
    return old == new or (not old and not new)
