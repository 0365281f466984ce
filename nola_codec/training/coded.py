"""Train a tensor through its coefficients: the tensor, and its place in a model and in a file.

`CodedTensor` is a parametrization for `torch.nn.utils.parametrize`: the parameter of a module becomes the
coefficients, and the weight of the module is what they synthesize. While training the weight is computed in floats; in
evaluation it is what the file that `save` would write decodes to, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nola_codec.model.adapter import Layout
from nola_codec.training.quantizer import round_coefficients
from nola_codec.training.synthesis import Synthesis

if TYPE_CHECKING:
    from typing_extensions import Self

    from nola_codec.training.group import TensorGroup

Initialization = Literal["same-norm", "least-squares"]


class CodedTensor(nn.Module):
    """The map from coefficients (1, num_basis) to a tensor.

    The coefficients are a row because PEFT takes a factor of only one dimension for a damaged one.

    Attributes:
        shape: The shape of the tensor; its dtype is float32.
        synthesis: The basis as a linear map.
        group: The tensors with which this one goes into a file.
        initialization: The way in which `right_inverse` gets coefficients from a tensor. ``same-norm`` keeps the norm
            of the tensor, which a fresh initialization needs. ``least-squares`` comes as near to the tensor as the
            coefficients can.
        side: The place of the tensor in a model and in a file; None until it has one.
    """

    def __init__(
        self,
        shape: torch.Size | tuple[int, ...],
        synthesis: Synthesis,
        group: TensorGroup,
        initialization: Initialization = "same-norm",
    ) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.synthesis, self.group, self.initialization = synthesis, group, initialization
        self.side: CodedSide | None = None
        self._made: tuple[torch.Tensor, tuple[object, ...], torch.Tensor] | None = None

    def forward(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the tensor of coefficients (1, num_basis), in float32 and in its shape.

        A layer may ask for its weight several times in a step. So the tensor is made once and returned again until a
        backward pass has gone through it, since an optimizer steps only after one. (The version counters of tensors do
        not tell when an optimizer has stepped, since fused optimizers do not raise them.)
        """
        if not self.training and self.side is not None:  # it has no side while it is being registered
            return self.group.decode_tensor(self).to(coefficients.device)
        state = (coefficients._version, torch.is_inference_mode_enabled(), self.group.bits)
        graded = torch.is_grad_enabled() and coefficients.requires_grad
        if graded and self._made is not None and self._made[0] is coefficients and self._made[1] == state:
            return self._made[2]
        values = coefficients[0].float()  # (1, num_basis) -> (num_basis,)
        if self.group.bits is not None:
            values = round_coefficients(values, self.group.bits, self.synthesis.grain)
        made = self.synthesis(values).reshape(self.shape)  # (num_basis,) -> (length,) -> shape
        if graded:
            made.register_hook(self._discard)  # type: ignore[no-untyped-call]
            self._made = (coefficients, state, made)
        return made

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train` does, and forget the tensor that was made before."""
        self._made = None
        self.group.clear_cache()
        return super().train(mode)

    def _discard(self, grad: torch.Tensor) -> None:
        self._made = None

    def right_inverse(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the coefficients that training starts from, float32 (1, num_basis), for a tensor of this shape."""
        flat = tensor.detach().reshape(-1).float()
        found = self.synthesis.least_squares(flat)
        if self.initialization == "same-norm":
            norm, made = flat.norm(), self.synthesis.forward(found).norm()
            found = found * (norm / made) if made > 0 else found
        return found[None]

    def extra_repr(self) -> str:
        """Return the shape, and the number and width of coefficients, for `repr`."""
        return f"{tuple(self.shape)}, num_basis={self.synthesis.num_basis}, bits={self.group.bits}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


@dataclass(frozen=True)
class RecordDescription:
    """The description of a trained tensor or pair of factors in a file: its record without the coefficients.

    Attributes:
        stream: The generator stream of the record.
        shapes: (b_shape, a_shape) of a pair, or (shape,) of a vector.
        scaling, layout, fan_in_fan_out: As in `LoraModule`.
    """

    stream: int
    shapes: tuple[tuple[int, ...], ...]
    scaling: float = 1.0
    layout: Layout = "linear"
    fan_in_fan_out: bool = False


@dataclass(eq=False)
class CodedSide:
    """One side of a record of the file, and the module that holds its coefficients.

    Attributes:
        record: The name of the record: a module path for factors, a key for a vector.
        index: 0 for lora_B, 1 for lora_A; None for a vector.
        tensor: The map from the coefficients to the side.
        holder: The module that has the coefficients as its parameter `attribute`.
        attribute: The name of that parameter.
        loaded: (coefficients, symbols, scale code) that were read from a file; None if no file was read.
    """

    record: str
    index: int | None
    tensor: CodedTensor
    holder: nn.Module
    attribute: str
    loaded: tuple[torch.Tensor, npt.NDArray[np.uint16], int] | None = None

    def __post_init__(self) -> None:
        self.tensor.side = self

    @property
    def coefficients(self) -> torch.Tensor:
        """The trained parameter, (1, num_basis)."""
        found: torch.Tensor = self.holder.get_parameter(self.attribute)
        return found


def near_square_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of the near-square matrix that a tensor is reshaped from (NOLA, section 3.3).

    The number of rows is the largest divisor of the number of elements that is not above its square root.

    >>> near_square_shape((64, 64, 3, 3))
    (192, 192)
    """
    elements = math.prod(shape)
    rows = next(d for d in range(math.isqrt(elements), 0, -1) if elements % d == 0)
    return rows, elements // rows
