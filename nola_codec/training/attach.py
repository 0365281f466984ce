"""Let the layers of a running model also apply an adapter, whose factors the caller makes. The model stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Codable, Layout

FactorPair = tuple[torch.Tensor, torch.Tensor]
"""(lora_B (out, r), lora_A (r, in)) of one module; lora_A of a convolution is (r, in * kernel elements)."""


def layer_shape(layer: nn.Module, layout: Layout) -> tuple[int, ...] | None:
    """Return (out, in), (out, in, *kernel) or (dim, vocab) of a layer; None if it cannot also apply such factors."""
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


class PlacedModel(nn.Module):
    """A model whose layers do not have the names of the adapter's modules, such as a UNet of Diffusers.

    Attributes:
        model: The model itself; a call of this module calls it.
        paths: The path in `model` of the layer that each module of the adapter changes, by the name of the module. A
            module without a path belongs to another model, and changes nothing here.
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.paths = model, dict(paths)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Call the model."""
        return self.model(*inputs, **named)


def find_modules(model: nn.Module, modules: Sequence[Codable]) -> dict[str, nn.Module]:
    """Return the layer of the model that each module changes, by the name of the module.

    A module that belongs to another model than a `PlacedModel` is left out.

    Raises:
        EncodeError: ``base-module``: the model has no such layer, or one of another type or shape.
    """
    placed = model.paths if isinstance(model, PlacedModel) else None
    model = model.model if isinstance(model, PlacedModel) else model
    own = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '') or ''}."
    found = {}
    missing = []
    for module in modules:
        if placed is not None and module.name not in placed:
            continue
        path = module_path(module.name) if placed is None else placed[module.name]
        names = [name for name in (path, prefix + path, path.removeprefix(prefix)) if name in own]
        if not names:
            missing.append(path)
            continue
        layer = own[names[0]]
        b_shape, a_shape = module.stored_shapes
        wanted = (b_shape[0], *a_shape[1:])
        shape = layer_shape(layer, module.layout)
        if shape != wanted:
            message = f"expected {module.layout} of shape {wanted}, found {type(layer).__name__} {shape or ''}"
            raise EncodeError(message.rstrip(), code="base-module", where=names[0])
        found[module.name] = layer
    if missing:
        raise EncodeError(
            f"the base model lacks {len(missing)} of {len(modules)} adapted modules, the first {missing[0]}",
            code="base-module",
        )
    return found


@contextmanager
def freeze_weights(model: nn.Module) -> Iterator[None]:
    """Turn off the gradients of a model's own weights in this context."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def apply_lora_A(layer: nn.Module, layout: Layout, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Apply a layer with lora_A in place of its weight, and without bias.

    Args:
        layer: The layer, for the settings of a convolution.
        layout: The layout of the module.
        x: Inputs (..., in), (batch, in, ...) of a convolution, or token ids (...).
        weight: lora_A (r, in, *kernel) or (r, vocab).

    Returns:
        (..., r), or (batch, r, ...) of a convolution.
    """
    if layout == "embedding":
        return functional.embedding(x, weight.T)
    x = x.to(weight.dtype)
    if layout == "conv":
        result: torch.Tensor = layer._conv_forward(x, weight, None)  # type: ignore[operator]
        return result
    return functional.linear(x, weight)


def apply_lora_B(layout: Layout, inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Apply lora_B, `weight` (out, r), to the output of `apply_lora_A`, whose dimension r becomes out."""
    if layout == "conv":
        return torch.einsum("or,br...->bo...", weight, inner)
    return inner @ weight.T


@contextmanager
def attach_factors(
    model: nn.Module, modules: Sequence[Codable], factors: Callable[[], Mapping[str, FactorPair]]
) -> Iterator[None]:
    """Let layers also apply an adapter in this context: y + scaling * lora_B @ lora_A @ x.

    Args:
        model: Any model; its layers are found by `find_modules`.
        modules: The modules, for their names, shapes and scalings. Their own factors are not used.
        factors: A function that is called in every forward pass of a layer. It returns lora_B (out, r) and
            lora_A (r, in) by module name, of any rank r. A module that is not in the mapping adds nothing.

    Raises:
        EncodeError: ``base-module``: the model has no such layer.
    """
    layers = find_modules(model, modules)

    def hook(module: Codable) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor]:
        def add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            pair = factors().get(module.name)
            if pair is None:
                return output
            lora_B, lora_A = pair
            inner = apply_lora_A(layer, module.layout, inputs[0], lora_A.reshape(-1, *module.stored_shapes[1][1:]))
            return output + apply_lora_B(module.layout, inner, lora_B * module.scaling).to(output.dtype)

        return add

    handles = [layers[each.name].register_forward_hook(hook(each)) for each in modules if each.name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
