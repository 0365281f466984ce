"""Conversion between dialects that can express the same adapter; what cannot be said is refused, never dropped.

Factors are carried over to the bit. A scaling moves to where the new dialect keeps it: an alpha, a configuration, one
number for all; or into lora_B, where that is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.dialects import gguf_names, peft_config
from nola_codec.adapters.dialects.deltas import deltas
from nola_codec.adapters.dialects.dialect_names import FORMATS
from nola_codec.adapters.dialects.diffusers import METADATA_KEY
from nola_codec.adapters.dialects.paths import (
    component_of,
    kohya_name,
    kohya_path,
    kohya_split,
    old_diffusers_name,
    old_diffusers_path,
)
from nola_codec.adapters.dialects.peft_experts import is_expert
from nola_codec.errors import AdapterError, expected
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor

# Tensors that PEFT and diffusers spell alike, after the module's name.
_SHARED = re.compile(r"(?P<module>.+)(?P<end>\.lora_B\.bias|\.lora_magnitude_vector(?:\.weight)?)")


def convert(adapter: Adapter, dialect: str, base: Mapping[str, Any] | None = None) -> Adapter:
    """The same adapter in another dialect.

    Args:
        adapter: Its modules must be plain products.
        dialect: One of `FORMATS`.
        base: ``config.json`` of the base model: GGUF's names depend on the architecture.

    Raises:
        AdapterError: ``not-expressible``, naming what the dialect has no words for; ``needs-base`` when names depend on
            the base model and it was not given.
    """
    if dialect == adapter.dialect:
        return adapter
    if adapter.dialect == "parameters":
        raise AdapterError("a network's own weights, which are no adapter", code="not-expressible")
    if dialect not in FORMATS:
        message = expected("format", f"one of {', '.join(FORMATS)}", dialect)
        raise AdapterError(message, code="not-expressible")
    for delta in deltas(adapter):
        if delta.product is None or is_expert(delta.name):
            kind = "experts' factors" if is_expert(delta.name) else "a delta that is no product of two factors"
            message = f"{kind}, which only the dialect {adapter.dialect} expresses"
            raise AdapterError(message, code="not-expressible", where=delta.name)
    modules = gguf_names.from_gguf(adapter, base) if adapter.dialect == "gguf" else adapter.modules
    paths = {module.name: path_of(module.name, adapter.dialect) for module in modules}
    raw = _raw(adapter, dialect, paths)
    renamed = [replace(module, name=paths[module.name]) for module in modules]
    return _EXPRESS[dialect](renamed, raw, base)


def matching_names(first: Adapter, second: Adapter) -> tuple[dict[str, str], dict[str, str]]:
    """For each adapter, delta name -> a key that is equal where both mean the same weight.

    Within a dialect names are the keys. Between dialects paths are compared with dots and underscores alike, and
    without their component where only one of the adapters says it.

    Raises:
        AdapterError: ``not-expressible`` between dialects one of which numbers its modules.
    """
    adapters = (first, second)
    names = [[delta.name for delta in deltas(adapter)] for adapter in adapters]
    if first.dialect == second.dialect:
        return {name: name for name in names[0]}, {name: name for name in names[1]}
    paths = [
        {name: _flat_path(name, adapter.dialect) for name in own} for own, adapter in zip(names, adapters, strict=True)
    ]
    spoken = [all(component for component, _ in own.values()) for own in paths]
    keys = [
        {name: f"{component}.{rest}" if all(spoken) else rest for name, (component, rest) in own.items()}
        for own in paths
    ]
    return keys[0], keys[1]


def _flat_path(name: str, dialect: str) -> tuple[str, str]:
    """Component, and the rest of a path with underscores for dots."""
    component, rest = kohya_split(name) if dialect == "kohya" else ("", "")
    if not component:
        path = path_of(name, dialect)
        component = component_of(path)
        rest = path[len(component) + 1 :] if component else path
    return component, rest.replace(".", "_")


def path_of(name: str, dialect: str) -> str:
    """The path that a module's name stands for in a dialect; GGUF's names stay as they are.

    Raises:
        AdapterError: ``not-expressible`` for names that are numbers, or flattened beyond recovery.
    """
    if dialect == "peft":
        return name.removeprefix(peft_config.PREFIX)
    if dialect == "kohya":
        return kohya_path(name)
    if dialect == "diffusers-old":
        return old_diffusers_path(name)
    if dialect == "parameters":
        raise AdapterError("a network's own weight, which changes no other", code="not-expressible", where=name)
    if dialect in ("cloneofsimo", "sam_lora"):
        message = f"{dialect} numbers its modules; which they are only the program that trained them knows"
        raise AdapterError(message, code="not-expressible", where=name)
    return name


def _raw(adapter: Adapter, dialect: str, paths: Mapping[str, str]) -> dict[str, RawTensor]:
    """Carried tensors by the new dialect's path and ending. Alphas are in the modules' scalings."""
    carried = {}
    for key, tensor in adapter.raw.items():
        if key.endswith(".alpha") and key.removesuffix(".alpha") in paths:
            continue
        match = _SHARED.fullmatch(key)
        if match is None or {adapter.dialect, dialect} != {"peft", "diffusers"} or match["module"] not in paths:
            message = f"{dialect} has no place for this tensor of the dialect {adapter.dialect}"
            raise AdapterError(message, code="not-expressible", where=key)
        carried[paths[match["module"]] + match["end"]] = tensor
    return carried


def _require_linear(modules: Sequence[LoraModule], dialect: str, *, conv: bool) -> None:
    for module in modules:
        if module.layout == "embedding" or (module.layout == "conv" and not conv):
            message = f"{dialect} has no place for factors of {module.layout}s"
            raise AdapterError(message, code="not-expressible", where=module.name)


def _to_peft(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None) -> Adapter:
    components = {component_of(m.name) for m in modules}
    if len(components) > 1:
        message = f"a PEFT adapter is of one model, and this one has {', '.join(sorted(components - {''}))}"
        raise AdapterError(message, code="not-expressible")
    (component,) = components
    start = len(component) + 1 if component else 0
    named = [replace(m, name=peft_config.PREFIX + m.name[start:]) for m in modules]
    ranks = {m.name.removeprefix(peft_config.PREFIX): m.rank for m in named}
    scalings = {m.name.removeprefix(peft_config.PREFIX): m.scaling for m in named}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "target_modules": sorted(ranks),  # whole paths: an ending might match layers that have no factors
        "r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(m.fan_in_fan_out for m in named),
        "use_rslora": False,
        "use_dora": any("lora_magnitude_vector" in key for key in raw),
        "lora_bias": any(key.endswith(".lora_B.bias") for key in raw),
        "inference_mode": True,
    }
    carried = {peft_config.PREFIX + key[start:]: tensor for key, tensor in raw.items()}
    return Adapter("peft", tuple(named), carried, peft_config.with_ranks(config, ranks, scalings), {"format": "pt"})


def _to_kohya(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None) -> Adapter:
    _require_linear(modules, "kohya", conv=True)
    components = [component_of(m.name) for m in modules]
    named = [replace(m, name=kohya_name(m.name, components)) for m in modules]
    alphas = {m.name: _alpha(m) for m in named}
    common = max(set(alphas.values()), key=list(alphas.values()).count)
    alpha: dict[str, Any] = {"dtype": "F32", "shape": [], "value": common}
    others = {name: value for name, value in alphas.items() if value != common}
    ranks = sorted({m.rank for m in named})
    metadata = {
        "ss_network_module": "networks.lora", "ss_network_dim": str(ranks[-1]) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(common) if not others else "Dynamic",
    }  # fmt: skip
    return Adapter("kohya", _unturned(named), {}, {"alpha": alpha | ({"others": others} if others else {})}, metadata)


def _alpha(module: LoraModule) -> float:
    """alpha with alpha / r the scaling again, where a float32 can be it."""
    alpha = float(np.float32(module.scaling * module.rank))
    if alpha / module.rank != module.scaling:
        message = f"no float32 alpha gives the scaling {module.scaling} at rank {module.rank}"
        raise AdapterError(message, code="not-expressible", where=module.name)
    return alpha


def _to_diffusers(
    modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
) -> Adapter:
    _require_linear(modules, "diffusers", conv=True)
    metadata = {"format": "pt"}
    if any(m.scaling != 1.0 for m in modules):
        metadata[METADATA_KEY] = json.dumps(_diffusers_config(modules), sort_keys=True)
    return Adapter("diffusers", _unturned(modules), dict(raw), None, metadata)


def _diffusers_config(modules: Sequence[LoraModule]) -> dict[str, Any]:
    """The flat configuration that diffusers reads: ``unet.r``, ``unet.lora_alpha``, patterns."""
    flat: dict[str, Any] = {}
    for component in sorted({component_of(m.name) for m in modules}):
        start = len(component) + 1 if component else 0
        own = [m for m in modules if component_of(m.name) == component]
        config = peft_config.with_ranks(
            {"r": 8, "lora_alpha": 8},
            {m.name[start:]: m.rank for m in own},
            {m.name[start:]: m.scaling for m in own},
        )
        config["target_modules"] = sorted(m.name[start:] for m in own)
        flat |= {f"{component}.{key}" if component else key: value for key, value in config.items()}
    return flat


def _to_old_diffusers(
    modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
) -> Adapter:
    _require_linear(modules, "diffusers-old", conv=False)
    named = [_folded(replace(m, name=old_diffusers_name(m.name)), "diffusers-old") for m in modules]
    return Adapter("diffusers-old", _unturned(named), {}, None, {"format": "pt"})


def _to_mlx(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None) -> Adapter:
    _require_linear(modules, "mlx", conv=False)
    layers = set()
    keys = set()
    for module in modules:
        match = re.fullmatch(r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)\.(.+)", module.name)
        if match is None or component_of(module.name):
            message = "MLX puts LoRA into the layers of a language model, and this is not in one"
            raise AdapterError(message, code="not-expressible", where=module.name)
        layers.add(int(match[1]))
        keys.add(match[2])
    for what, values in (("rank", {m.rank for m in modules}), ("scaling", {m.scaling for m in modules})):
        if len(values) > 1:
            message = f"MLX has one {what} for all modules, and these have {', '.join(map(str, sorted(values)))}"
            raise AdapterError(message, code="not-expressible")
    config = {
        "fine_tune_type": "lora",
        # MLX counts from the last layer: what lies between has to be there too.
        "num_layers": max(layers) - min(layers) + 1,
        "lora_parameters": {
            "rank": modules[0].rank, "scale": modules[0].scaling, "dropout": 0.0, "keys": sorted(keys),
        },
    }  # fmt: skip
    return Adapter("mlx", _unturned(modules), {}, config, {"format": "mlx"})


def _to_loralib(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None) -> Adapter:
    _require_linear(modules, "loralib", conv=False)
    return Adapter("loralib", _unturned([_folded(m, "loralib") for m in modules]))


def _to_gguf(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None) -> Adapter:
    return gguf_names.to_gguf(modules, base)


def _folded(module: LoraModule, dialect: str) -> LoraModule:
    """With the scaling in lora_B."""
    if module.scaling == 1.0:
        return module
    if abs(np.frexp(module.scaling)[0]) != 0.5:
        message = f"{dialect} has no place for the scaling {module.scaling}, and folding it into a factor would round"
        raise AdapterError(message, code="not-expressible", where=module.name)
    lora_B = (module.lora_B * np.float32(module.scaling)).astype(np.float32)
    return replace(module, lora_B=lora_B, scaling=1.0)


def _unturned(modules: Sequence[LoraModule]) -> tuple[LoraModule, ...]:
    """Sorted, without a flag that only PEFT has; it says how the base stores the weight, not what the delta is."""
    return tuple(sorted((replace(m, fan_in_fan_out=False) for m in modules), key=lambda m: m.name))


_EXPRESS = {
    "peft": _to_peft,
    "kohya": _to_kohya,
    "diffusers": _to_diffusers,
    "diffusers-old": _to_old_diffusers,
    "mlx": _to_mlx,
    "gguf": _to_gguf,
    "loralib": _to_loralib,
}
