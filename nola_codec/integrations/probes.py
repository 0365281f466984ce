"""`Probe`: it applies the adapter of one layer of a running model, and collects moments of inputs and gradients.

The gradients of the factors are enough for that. With G (out, in), the gradient of delta_W,

    d/d lora_B (out, r) = G @ lora_A^T,   d/d lora_A (r, in) = lora_B^T @ G,   times scaling and strength,

so that no gradient as large as delta_W is ever made.
"""

from __future__ import annotations

from typing import Any

import torch

from nola_codec.fit.weighting import Moments
from nola_codec.model.adapter import LoraModule
from nola_codec.training.attach import apply_lora_A, apply_lora_B


class Probe:
    """A context manager: inside it, a layer also applies its adapter, at a given strength.

    Attributes:
        name: The name of the module.
    """

    def __init__(self, layer: torch.nn.Module, module: LoraModule, strength: float, sketch: int) -> None:
        """Make a probe; it acts only inside the context.

        Args:
            layer: A layer of the model.
            module: The adapter of the layer.
            strength: The factor that the output of the adapter is multiplied by.
            sketch: The number of rows in the sketch of the inputs.
        """
        self.name = module.name
        self._layer, self._layout = layer, module.layout
        self._scale = strength * module.scaling
        self._shape = (sketch, *module.a_shape[1:])
        device = next(layer.parameters()).device
        rank = module.rank
        self._a = torch.tensor(module.lora_A.reshape(rank, *module.a_shape[1:]), device=device, requires_grad=True)
        self._b = torch.tensor(module.lora_B, device=device, requires_grad=True)
        # Each probe has a generator, so that no draw depends on other layers or on the generator of the caller.
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
        """Add the moments of the batch that was run, and clear its gradients."""
        a, b = self._a.grad, self._b.grad
        if a is not None and b is not None and self._scale:  # an adapter with scaling 0 has no gradients
            a = a.double().reshape(len(a), -1) / self._scale
            b = b.double() / self._scale
            self._cross += self._b.detach().double().T @ b
            self._left += b.T @ b
            self._right += a @ a.T
        self._a.grad = self._b.grad = None

    def moments(self) -> Moments:
        """Return the moments of all batches so far."""
        return Moments(
            self._inputs.cpu().numpy(),
            self._cross.cpu().numpy(), self._left.cpu().numpy(), self._right.cpu().numpy(),
        )  # fmt: skip

    def _pass(self, layer: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].detach() if self._layout == "embedding" else inputs[0]
        self._sketch(x.detach())
        delta = apply_lora_B(self._layout, self._project(x, self._a), self._b)
        return output + (self._scale * delta).to(output.dtype)

    def _project(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return apply_lora_A(self._layer, self._layout, x, weight)

    def _sketch(self, x: torch.Tensor) -> None:
        """Add random signs (sketch, positions) @ inputs (positions, in) to the sketch.

        This product is the gradient of a weight (sketch, in) where the gradient of the output is the signs, so autograd
        computes it for convolutions and embeddings.
        """
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
