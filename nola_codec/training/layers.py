"""Layers to train from scratch with few coefficients: `NolaLinear`, `NolaConv2d`, `NolaEmbedding`.

    common = ensemble(seed=7)
    network = nn.Sequential(NolaLinear(784, 256, num_basis=16, ensemble=common), nn.ReLU(),
                            NolaLinear(256, 10, num_basis=16, ensemble=common))

Their weight is a `NolaParameter`; a bias is an ordinary parameter. PyTorch's variance at the start.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from nola_codec.training.composed import Coding, NolaParameter

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Layer(nn.Module):
    """A coded weight and a plain bias.

    Attributes:
        weight: Of the layer, to be called.
        bias: (out,) or None.
    """

    weight: NolaParameter
    bias: nn.Parameter | None

    def _bias(self, size: int, wanted: bool, fan_in: int, device: object, dtype: torch.dtype | None) -> None:
        made = torch.empty(size, device=cast("Any", device), dtype=dtype) if wanted else None
        if made is not None:
            nn.init.uniform_(made, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        self.bias = None if made is None else nn.Parameter(made)


class NolaLinear(_Layer):
    """`nn.Linear` with weight (out_features, in_features) = lora_B @ lora_A.

    In training x A^T B^T is computed where that takes fewer operations than composing the weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: object = None,
        dtype: torch.dtype | None = None,
        **coding: Unpack[Coding],
    ) -> None:
        """As `nn.Linear`; `coding` as in `Coding`. Raises EncodeError ``option``."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        size = (out_features, in_features)
        self.weight = NolaParameter(size, matrix=size, device=device, dtype=dtype, **coding)
        self._bias(out_features, bias, in_features, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        rank = self.weight.composed.rank
        if self.training and rank is not None:
            rows = x.numel() // self.in_features
            ends, area = self.in_features + self.out_features, self.in_features * self.out_features
            if rows * rank * ends < (rows + rank) * area:
                lora_B, lora_A = cast("tuple[torch.Tensor, torch.Tensor]", self.weight.factors())
                return functional.linear(functional.linear(x, lora_A), lora_B, self.bias)
        return functional.linear(x, self.weight(), self.bias)

    def extra_repr(self) -> str:
        """For people."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class NolaConv2d(_Layer):
    """`nn.Conv2d` with zeros around, whose weight, 4-D, is a near-square matrix reshaped (NOLA, section 3.3)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: object = None,
        dtype: torch.dtype | None = None,
        **coding: Unpack[Coding],
    ) -> None:
        """As `nn.Conv2d`; `coding` as in `Coding`. Raises EncodeError ``option``."""
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = NolaParameter(
            (out_channels, in_channels // groups, *kernel), device=device, dtype=dtype, **coding
        )
        self._bias(out_channels, bias, in_channels // groups * math.prod(kernel), device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height', width')."""
        return functional.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """For people."""
        return f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


class NolaEmbedding(nn.Module):
    """`nn.Embedding` with weight (num_embeddings, embedding_dim) = lora_B @ lora_A.

    In training only the rows asked for are composed.

    Attributes:
        weight: To be called.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        device: object = None,
        dtype: torch.dtype | None = None,
        **coding: Unpack[Coding],
    ) -> None:
        """As `nn.Embedding`, its standard deviation of 1 included. Raises EncodeError ``option``."""
        super().__init__()
        size = (num_embeddings, embedding_dim)
        self.weight = NolaParameter(size, matrix=size, std=1.0, device=device, dtype=dtype, **coding)

    def forward(self, indexes: torch.Tensor) -> torch.Tensor:
        """(...) integers -> (..., embedding_dim)."""
        factors = self.weight.factors()
        if factors is not None:
            return functional.embedding(indexes, factors[0]) @ factors[1]
        return functional.embedding(indexes, self.weight())

    def extra_repr(self) -> str:
        """For people."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
