"""Layers to train from scratch with few coefficients: `NolaLinear`, `NolaConv2d`, `NolaEmbedding`, `NolaParameter`.

    group = TensorGroup(num_basis=16, seed=7)
    network = nn.Sequential(NolaLinear(784, 256, group=group), nn.ReLU(), NolaLinear(256, 10, group=group))

The weight of a layer is a `NolaParameter`, and its bias an ordinary parameter. Both start with the variance that
PyTorch's own layers start with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

from nola_codec.training.coding import TensorOptions
from nola_codec.training.composed import ComposedTensor, fill_normal, plan_composition
from nola_codec.training.group import resolve_group

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NolaParameter(nn.Module):
    """A tensor that is trained through coefficients; a call of the module gives the tensor.

    Its parameters are ``coefficients_B`` and ``coefficients_A``, or ``coefficients`` in the form ``pranc``: float32
    (1, num_basis).

        >>> weight = NolaParameter((64, 3, 3, 3), num_basis=16)
        >>> weight().shape, sum(p.numel() for p in weight.parameters())
        (torch.Size([64, 3, 3, 3]), 32)

    Attributes:
        composed: The map from the coefficients to the tensor.
        std: The root mean square of the tensor at the start.
        attributes: The names of the parameters, lora_B's first.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        matrix: tuple[int, int] | None = None,
        std: float | None = None,
        device: object = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[TensorOptions],
    ) -> None:
        """Make a tensor, and draw the coefficients that it starts from.

        Args:
            shape: The shape of the tensor.
            matrix: (rows, columns) of the product that is reshaped to the tensor; None is `near_square_shape`.
            std: The root mean square of the tensor at the start; None is that of PyTorch's layers, 1 / sqrt(3 fan_in).
            device: The device of the coefficients.
            dtype: The dtype of the tensor.
            options: ``group``, ``coding``, and fields of `Coding`; see `TensorOptions`.

        Raises:
            EncodeError: ``option``: a shape or an option is not allowed.
        """
        super().__init__()
        own = tuple(shape)
        group, coding = resolve_group(options)
        composition = plan_composition(own, coding, group, matrix)
        self.composed = ComposedTensor(
            composition, dtype or torch.get_default_dtype(), group, keep_basis=coding.keep_basis
        )
        self.std = 1 / math.sqrt(3 * math.prod(own[1:] if len(own) > 1 else own)) if std is None else std
        self.attributes = ("coefficients",) if self.composed.rank is None else ("coefficients_B", "coefficients_A")
        for attribute, part in zip(self.attributes, self.composed.parts, strict=True):
            values = torch.empty(1, part.synthesis.num_basis, device=cast("Any", device))
            setattr(self, attribute, nn.Parameter(values))
        self.composed.register(self, self.attributes)
        self.reset_parameters()

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.composed.shape

    @property
    def coefficients_of_parts(self) -> tuple[torch.Tensor, ...]:
        """The coefficients of each part, (1, num_basis), lora_B's first."""
        return tuple(getattr(self, attribute) for attribute in self.attributes)

    def reset_parameters(self) -> None:
        """Draw new coefficients from PyTorch's own generator."""
        for values, scale in zip(self.coefficients_of_parts, self.composed.part_rms(self.std), strict=True):
            fill_normal(values, scale)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return lora_B (rows, r) and lora_A (r, columns), so that a layer can multiply by one after the other.

        None is returned for a vector, and in evaluation, where layers use the product that the file decodes to.
        """
        if not self.training or self.composed.rank is None:
            return None
        lora_B, lora_A = self.composed.synthesize(*self.coefficients_of_parts)
        return lora_B.to(self.composed.dtype), lora_A.to(self.composed.dtype)

    def forward(self) -> torch.Tensor:
        """Return the tensor. In evaluation it is what the file decodes to, and it has no gradient."""
        made: torch.Tensor = self.composed(*self.coefficients_of_parts)
        return made


class _Layer(nn.Module):
    """A layer with a coded weight and a plain bias.

    Attributes:
        weight: The module that gives the weight when it is called.
        bias: The bias (out,), or None.
    """

    weight: NolaParameter
    bias: nn.Parameter | None

    def _add_bias(self, size: int, wanted: bool, fan_in: int, device: object, dtype: torch.dtype | None) -> None:
        made = torch.empty(size, device=cast("Any", device), dtype=dtype) if wanted else None
        if made is not None:
            nn.init.uniform_(made, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        self.bias = None if made is None else nn.Parameter(made)


class NolaLinear(_Layer):
    """`nn.Linear` with weight (out_features, in_features) = lora_B (out, r) @ lora_A (r, in).

    In training, x lora_A^T lora_B^T is computed from left to right if this takes fewer operations than making the
    weight first.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: object = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[TensorOptions],
    ) -> None:
        """Make the layer as `nn.Linear` does; for `options` see `TensorOptions`. Raises EncodeError ``option``."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        size = (out_features, in_features)
        self.weight = NolaParameter(size, matrix=size, device=device, dtype=dtype, **options)
        self._add_bias(out_features, bias, in_features, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rank = self.weight.composed.rank
        if self.training and rank is not None:
            rows = x.numel() // self.in_features
            ends, area = self.in_features + self.out_features, self.in_features * self.out_features
            if rows * rank * ends < (rows + rank) * area:
                lora_B, lora_A = cast("tuple[torch.Tensor, torch.Tensor]", self.weight.factors())
                inner = functional.linear(x, lora_A)  # (..., in) -> (..., r)
                return functional.linear(inner, lora_B, self.bias)  # (..., r) -> (..., out)
        return functional.linear(x, self.weight(), self.bias)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class NolaConv2d(_Layer):
    """`nn.Conv2d` with zero padding and a coded weight.

    The weight (out, in / groups, height, width) is a near-square product of factors, reshaped (NOLA, section 3.3).
    """

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
        **options: Unpack[TensorOptions],
    ) -> None:
        """Make the layer as `nn.Conv2d` does; for `options` see `TensorOptions`. Raises EncodeError ``option``."""
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        size = (out_channels, in_channels // groups, *kernel)
        self.weight = NolaParameter(size, device=device, dtype=dtype, **options)
        self._add_bias(out_channels, bias, in_channels // groups * math.prod(kernel), device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height', width')."""
        return functional.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


class NolaEmbedding(nn.Module):
    """`nn.Embedding` with weight (num_embeddings, embedding_dim) = lora_B (num, r) @ lora_A (r, dim).

    In training, only the rows of the given indexes are computed.

    Attributes:
        weight: The module that gives the weight when it is called.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        device: object = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[TensorOptions],
    ) -> None:
        """Make the layer as `nn.Embedding` does, with its standard deviation of 1 at the start.

        For `options` see `TensorOptions`. Raises EncodeError ``option``.
        """
        super().__init__()
        size = (num_embeddings, embedding_dim)
        self.weight = NolaParameter(size, matrix=size, std=1.0, device=device, dtype=dtype, **options)

    def forward(self, indexes: torch.Tensor) -> torch.Tensor:
        """Map integers (...) to (..., embedding_dim)."""
        factors = self.weight.factors()
        if factors is not None:
            return functional.embedding(indexes, factors[0]) @ factors[1]  # (..., r) @ (r, dim) -> (..., dim)
        return functional.embedding(indexes, self.weight())

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
