"""Helpers for adapters of image and video models: files under original names, and what diffusers makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nola_codec.adapters import read, write
from nola_codec.adapters.conversion import convert

Shapes = Mapping[str, tuple[int, ...]]
"""The shape (out, in[, kernel]) of the weight of each module, by the module's name in a file."""


def kohya_state(shapes: Shapes, *, rank: int = 2, alpha: float = 1.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a file of sd-scripts with a random pair for each module."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def peft_state(shapes: Shapes, *, rank: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a file with ``lora_A`` and ``lora_B`` for each module, without alphas."""
    return {
        key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value
        for key, value in kohya_state(shapes, rank=rank, seed=seed).items()
        if not key.endswith(".alpha")
    }


def convert_file(
    state: Mapping[str, torch.Tensor],
    target: str,
    folder: Path,
    *,
    base: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a file, and convert it; return the path of the new file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / "source.safetensors", dict(metadata or {"format": "pt"}))
    return write(convert(read(folder / "source.safetensors"), target, base), folder / f"{target}.safetensors")


def probe(inputs: int) -> Any:
    """Return random vectors (inputs, 3). Deltas, which may be large, are compared by their products with them."""
    return np.random.default_rng(inputs).standard_normal((inputs, 3))


def file_deltas(path: Path) -> dict[str, Any]:
    """Return the product of each delta of a converted file, with its scaling, and of `probe`, by module."""
    return {
        m.name: m.scaling * (m.lora_B.astype(np.float64) @ (m.lora_A.astype(np.float64) @ probe(m.lora_A.shape[1])))
        for m in read(path).modules
    }


def state_deltas(state: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the same of a state dict with ``lora_A`` and ``lora_B``; alphas are divided by the ranks."""
    found = {}
    for key, tensor in state.items():
        name = key.removesuffix(".lora_A.weight")
        if name != key:
            lora_A = tensor.flatten(1).double().numpy()
            lora_B = state[f"{name}.lora_B.weight"].flatten(1).double().numpy()
            scale = 1.0 if not alphas else alphas[f"{name}.alpha"] / len(lora_A)
            found[name] = scale * (lora_B @ (lora_A @ probe(lora_A.shape[1])))
    return found


def require_equal(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Assert that two sets of deltas have the same names, and numbers that agree to 1e-6."""
    assert sorted(found) == sorted(wanted)
    for name, delta in wanted.items():
        assert found[name].shape == delta.shape, name
        assert np.allclose(found[name], delta, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(delta).max()))), name


def fused_change(model: torch.nn.Module, apply: Callable[[], None]) -> dict[str, Any]:
    """Load an adapter into a model with `apply`, fuse it, and return the change of each adapted weight, times `probe`.

    The weights are set to zero first, so that nothing is rounded away. A model of diffusers gets its weights back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    apply()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    assert layers, "nothing was loaded"
    changes = {}
    for name, layer in layers.items():
        layer.merge()
        change = layer.get_base_layer().weight.detach().flatten(1).double().numpy()
        changes[name] = change @ probe(change.shape[1])
        layer.unmerge()
    if hasattr(model, "unload_lora"):
        model.unload_lora()
        model.load_state_dict(before)
    return changes


def without_component(deltas: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Return the deltas of a component, by the rest of their names."""
    return {name.removeprefix(f"{component}."): d for name, d in deltas.items() if name.startswith(f"{component}.")}


def load(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file."""
    return dict(load_file(path))
