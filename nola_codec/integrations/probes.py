"""A probe in one layer of a running model: the layer's adapter, and the moments of what passes.

The gradients of its factors hold all that is wanted: with G the gradient of delta_W, d/d lora_B = G lora_A^T and
d/d lora_A = lora_B^T G, times scaling and strength. No gradient of delta_W's own size is ever made.
"""

from __future__ import annotations

from typing import Any

import torch

from nola_codec.fit.weighting import Moments
from nola_codec.model.adapter import LoraModule
from nola_codec.training.attach import through_lora_A, through_lora_B


class Probe:
    """Context in which a layer also applies its adapter, at a given strength.

    Attributes:
        name: Of the module.
    """

    def __init__(self, layer: torch.nn.Module, module: LoraModule, strength: float, sketch: int) -> None:
        """Sit beside `layer`.

        Args:
            layer: Of the model, of the shape that `layer_shape` gives.
            module: Its adapter.
            strength: Factor on the adapter's output.
            sketch: Rows of the sketch of inputs.
        """
        self.name = module.name
        self._layer, self._layout = layer, module.layout
        self._scale = strength * module.scaling
        self._shape = (sketch, *module.a_shape[1:])
        device = next(layer.parameters()).device
        rank = module.rank
        self._a = torch.tensor(module.lora_A.reshape(rank, *module.a_shape[1:]), device=device, requires_grad=True)
        self._b = torch.tensor(module.lora_B, device=device, requires_grad=True)
        # Of the probe's own, so that no draw depends on the layers around it or on the caller's generator.
        self._signs = torch.Generator(device).manual_seed(0)
        self._inputs = torch.zeros(sketch, module.lora_A.shape[1], device=device)
        self._cross, self._left, self._right = (
            torch.zeros(rank, rank, dtype=torch.float64, device=device) for _ in range(3)
        )

    def __enter__(self) -> Probe:
        self._handle = self._layer.register_forward_hook(self._pass)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def take(self) -> None:
        """Add the gradients of the row that went through, and forget them."""
        a, b = self._a.grad, self._b.grad
        if a is not None and b is not None and self._scale:  # an adapter scaled to nothing gains nothing
            a = a.double().reshape(len(a), -1) / self._scale
            b = b.double() / self._scale
            self._cross += self._b.detach().double().T @ b
            self._left += b.T @ b
            self._right += a @ a.T
        self._a.grad = self._b.grad = None

    def moments(self) -> Moments:
        """Of everything that was taken."""
        return Moments(
            self._inputs.cpu().numpy(),
            self._cross.cpu().numpy(), self._left.cpu().numpy(), self._right.cpu().numpy(),
        )  # fmt: skip

    def _pass(self, layer: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].detach() if self._layout == "embedding" else inputs[0]
        self._sketch(x.detach())
        delta = through_lora_B(self._layout, self._project(x, self._a), self._b)
        return output + (self._scale * delta).to(output.dtype)

    def _project(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return through_lora_A(self._layer, self._layout, x, weight)

    def _sketch(self, x: torch.Tensor) -> None:
        """Add random signs times the inputs: a weight's gradient is a sum over positions of signs and inputs."""
        rows = self._shape[0]
        if self._layout == "linear":
            x = x.reshape(-1, x.shape[-1]).to(self._inputs.dtype)
            gradient = self._random_signs((rows, len(x))) @ x
        else:
            with torch.enable_grad():
                weight = torch.zeros(self._shape, device=x.device, requires_grad=True)
                made = self._project(x, weight)
                (gradient,) = torch.autograd.grad(made, weight, self._random_signs(made.shape))
        self._inputs += gradient.reshape(rows, -1) / rows**0.5

    def _random_signs(self, shape: tuple[int, ...]) -> torch.Tensor:
        return 2.0 * torch.randint(0, 2, shape, generator=self._signs, device=self._inputs.device) - 1
