"""LoRA-XS (arXiv 2405.17604): a trained r x r matrix between the first singular vectors of every weight.

    W = P diag(s) Q^T,   delta_W = P_r R diag(s_r) Q_r^T,   R (r, r) trained from zero

as the authors' code has it, where the singular values are a part of lora_A. A file holds the matrices R alone, since
the singular vectors come from the base model.
"""

from __future__ import annotations

import torch
from torch import nn

from rivals.training import Factors, linear_layers, rounded


class LoraXs:
    """The matrices R of all linear layers of a model; see `training.Form`."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        self._rank = rank
        self._sides = {name: leading(layer.weight.detach(), rank) for name, layer in linear_layers(model).items()}
        self._cores = nn.Parameter(torch.zeros(len(self._sides), rank * rank))

    def parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Return all R, (layers, r * r)."""
        return [(self._cores, 1.0)]

    def factors(self) -> Factors:
        """Return (P_r R, diag(s_r) Q_r^T) of each layer."""
        return self._with(self._cores)

    def write(self, bits: int) -> tuple[int, Factors]:
        """Round every R; the header has the rank."""
        count, cores = rounded(self._cores, bits, ["lora-xs", self._rank])
        return count, self._with(cores)

    def _with(self, cores: torch.Tensor) -> Factors:
        square = cores.view(-1, self._rank, self._rank)
        return {name: (p @ core, q) for (name, (p, q)), core in zip(self._sides.items(), square, strict=True)}


def leading(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P_r (out, r) and diag(s_r) Q_r^T (r, in) of a weight (out, in)."""
    wide = weight.shape[1] > weight.shape[0]
    matrix = (weight.T if wide else weight).double()  # (more, fewer)
    short = torch.linalg.eigh(matrix.T @ matrix).eigenvectors.flip(1)[:, :rank]
    long = matrix @ short  # its columns have the norms s
    s = long.norm(dim=0).clamp_min(1e-30)
    p, q = (short, (long / s).T) if wide else (long / s, short.T)
    return p.float(), (s[:, None] * q).float()
