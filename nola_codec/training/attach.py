"""An adapter beside the layers of a running model: factors come from elsewhere; the model itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Layout, LoraModule

Pair = tuple[torch.Tensor, torch.Tensor]


def layer_shape(layer: nn.Module, layout: Layout) -> tuple[int, ...] | None:
    """(out, in), (out, in, *kernel) or (dim, vocab) of a layer that a probe can sit in, else None."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return None
    if layout == "embedding":
        return (weight.shape[1], weight.shape[0]) if isinstance(layer, nn.Embedding) else None
    if layout == "conv":
        usable = hasattr(layer, "_conv_forward") and getattr(layer, "groups", 1) == 1
        return tuple(weight.shape) if usable else None
    if weight.ndim != 2 or isinstance(layer, nn.Embedding):
        return None
    # Conv1D of GPT-2 stores its weight (in, out).
    return (weight.shape[1], weight.shape[0]) if type(layer).__name__ == "Conv1D" else tuple(weight.shape)


def find_modules(model: nn.Module, modules: Sequence[LoraModule]) -> dict[str, nn.Module]:
    """The model's layer of each module, by the module's name; raises EncodeError ``calibration-module``."""
    own = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    found = {}
    missing = []
    for module in modules:
        path = module_path(module.name)
        names = [name for name in (path, prefix + path, path.removeprefix(prefix)) if name in own]
        if not names:
            missing.append(path)
            continue
        layer = own[names[0]]
        wanted = (module.lora_B.shape[0], *module.a_shape[1:])
        shape = layer_shape(layer, module.layout)
        if shape != wanted:
            message = f"expected {module.layout} of shape {wanted}, found {type(layer).__name__} {shape or ''}"
            raise EncodeError(message.rstrip(), code="calibration-module", where=names[0])
        found[module.name] = layer
    if missing:
        raise EncodeError(
            f"the base model lacks {len(missing)} of {len(modules)} adapted modules, the first {missing[0]}",
            code="calibration-module",
        )
    return found


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of the model's own weights, for a while."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def through_lora_A(layer: nn.Module, layout: Layout, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the layer would make of `weight` (r, in, *kernel), r in place of out, before any bias."""
    if layout == "embedding":
        return functional.embedding(x, weight.T)
    x = x.to(weight.dtype)
    if layout == "conv":
        result: torch.Tensor = layer._conv_forward(x, weight, None)  # type: ignore[operator]
        return result
    return functional.linear(x, weight)


def through_lora_B(layout: Layout, inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What lora_B (out, r) makes of `through_lora_A`."""
    if layout == "conv":
        return torch.einsum("or,br...->bo...", weight, inner)
    return inner @ weight.T


@contextmanager
def attached(
    model: nn.Module, modules: Sequence[LoraModule], factors: Callable[[], Mapping[str, Pair]]
) -> Iterator[None]:
    """Let layers also apply an adapter, for a while.

    Args:
        model: Any; its layers are found by `find_modules`.
        modules: Says layers, shapes and scalings; their factors are not used.
        factors: Asked at every forward pass of a layer for (lora_B (out, r), lora_A (r, in)) by module name, of any
            rank r; a module that is not in it adds nothing.

    Raises:
        EncodeError: ``calibration-module``: the model has no such layer.
    """
    places = find_modules(model, modules)

    def hook(module: LoraModule) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor]:
        def add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            pair = factors().get(module.name)
            if pair is None:
                return output
            lora_B, lora_A = pair
            inner = through_lora_A(layer, module.layout, inputs[0], lora_A.reshape(-1, *module.a_shape[1:]))
            return output + through_lora_B(module.layout, inner, lora_B * module.scaling).to(output.dtype)

        return add

    handles = [places[module.name].register_forward_hook(hook(module)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
