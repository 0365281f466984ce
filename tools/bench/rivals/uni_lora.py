"""Uni-LoRA (arXiv 2506.00799): one trained vector for the whole model.

Every number of every factor is one of the d numbers of the vector, chosen by a seed, over the root of how many share
it; so the map from the vector to all factors is an isometry. The choice is that of PEFT's `UniLoraModel`. A file
holds the vector and the seed.
"""

from __future__ import annotations

import torch
from torch import nn

from rivals.training import Factors, linear_layers, rounded

RANK = 4
"""The rank of the paper and of PEFT's default."""
BOUND = 0.02
"""PEFT's default: the vector starts uniformly distributed within this bound, since zeros would have no gradient."""


class UniLora:
    """The vector of a model; see `training.Form`."""

    def __init__(self, model: nn.Module, length: int, seed: int, rank: int = RANK) -> None:
        from peft.tuners.unilora.model import UniLoraModel

        self._seed, self._rank = seed, rank
        self._shapes = {name: tuple(layer.weight.shape) for name, layer in linear_layers(model).items()}
        total = rank * sum(out + into for out, into in self._shapes.values())
        self._indices: torch.Tensor = UniLoraModel.generate_index(total, length, seed)
        self._weights = torch.bincount(self._indices, minlength=length).clamp_min(1).float().rsqrt()[self._indices]
        draw = torch.Generator().manual_seed(seed)
        self._vector = nn.Parameter((2 * torch.rand(1, length, generator=draw) - 1) * BOUND)

    def parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Return the vector, (1, length)."""
        return [(self._vector, 1.0)]

    def factors(self) -> Factors:
        """Return the factors of each layer; lora_A comes before lora_B in the order of PEFT."""
        return self._with(self._vector)

    def write(self, bits: int) -> tuple[int, Factors]:
        """Round the vector; the header has the seed, the rank and the length."""
        count, vector = rounded(self._vector, bits, ["uni-lora", self._seed, self._rank, self._vector.numel()])
        return count, self._with(vector)

    def _with(self, vector: torch.Tensor) -> Factors:
        flat = vector.ravel()[self._indices] * self._weights
        made, at = {}, 0
        for name, (out, into) in self._shapes.items():
            middle, end = at + self._rank * into, at + self._rank * (into + out)
            made[name] = flat[middle:end].view(out, self._rank), flat[at:middle].view(self._rank, into)
            at = end
        return made
