"""Compose a tensor of any shape of coded parts: a product of two factors (NOLA), or one vector (PRANC).

    nola:   W (rows, columns) = lora_B (rows, r) @ lora_A (r, columns)
    pranc:  W (n,) = vector (n,)

Each part is a `CodedTensor` with coefficients of its own, and W is reshaped to the shape of the tensor (NOLA, arXiv
2310.02556, eq. 2 and section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nola_codec.adapters.adapter_delta import multiply_factors
from nola_codec.errors import EncodeError, mismatch
from nola_codec.training.coded import CodedSide, CodedTensor, RecordDescription, near_square_shape
from nola_codec.training.coding import Coding
from nola_codec.training.group import TensorGroup

NUM_BASIS = 64
"""Coefficients of a part, if the coding does not give their number."""
RANK = 4
"""Rank of a product, if the coding does not give it."""


@dataclass(frozen=True)
class Composition:
    """The parts that a tensor is composed of.

    Attributes:
        shape: The shape of the tensor.
        num_basis: The number of coefficients of each part.
        record: The stream of the record, and the shapes of its parts: ((rows, r), (r, columns)) or (shape,).
    """

    shape: tuple[int, ...]
    num_basis: tuple[int, ...]
    record: RecordDescription


def plan_composition(
    shape: tuple[int, ...], coding: Coding, group: TensorGroup, matrix: tuple[int, int] | None = None
) -> Composition:
    """Plan the parts of a tensor.

    Args:
        shape: The shape of the tensor.
        coding: The coding of the tensor. Its rank is cut to the smaller side of the matrix.
        group: The group that the tensor will join; it chooses the stream.
        matrix: (rows, columns) of the product; None is `near_square_shape`.

    Raises:
        EncodeError: ``option``: a dimension is zero, or the coding has a mapping for num_basis.
    """
    for size in shape:
        if size < 1:
            raise EncodeError(mismatch("shape", "positive numbers", shape), code="option")
    count = coding.num_basis_for_all(NUM_BASIS)
    if coding.form == "pranc":
        shapes: tuple[tuple[int, ...], ...] = (shape,)
    else:
        rows, columns = matrix or near_square_shape(shape)
        rank = min(RANK if coding.rank is None else coding.rank, rows, columns)
        shapes = ((rows, rank), (rank, columns))
    stream = group.choose_stream(shapes, shared=coding.shared_basis)
    return Composition(shape, (count,) * len(shapes), RecordDescription(stream, shapes))


class ComposedTensor(nn.Module):
    """The map from the coefficients of each part, (1, num_basis), to a tensor.

    It is a parametrization for `torch.nn.utils.parametrize`. In evaluation the tensor is, bit for bit, what the file
    that `save` would write decodes to.

    Attributes:
        shape, dtype: The shape and the dtype of the tensor.
        group: The tensors with which this one goes into a file.
    """

    def __init__(
        self, composition: Composition, dtype: torch.dtype, group: TensorGroup, *, keep_basis: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.dtype, self.group = torch.Size(composition.shape), dtype, group
        self._record = composition.record
        shapes = composition.record.shapes
        self._parts = nn.ModuleList()
        for side, (shape, count) in enumerate(zip(shapes, composition.num_basis, strict=True)):
            index = side if len(shapes) == 2 else None
            synthesis = group.make_synthesis(self._record.stream, index, math.prod(shape), count, kept=keep_basis)
            self._parts.append(CodedTensor(shape, synthesis, group))
        self._decoded: tuple[list[torch.Tensor], torch.device, torch.Tensor] | None = None

    @property
    def parts(self) -> list[CodedTensor]:
        """The parts: lora_B (rows, r) and lora_A (r, columns), or the tensor itself as one vector."""
        return [cast("CodedTensor", part) for part in self._parts]

    @property
    def rank(self) -> int | None:
        """The rank of the product; None for a vector."""
        return self.parts[1].shape[0] if len(self._parts) == 2 else None

    def register(self, holder: nn.Module, attributes: Sequence[str], name: str | None = None) -> None:
        """Add the tensor to its group.

        Args:
            holder: The module that has the coefficients.
            attributes: The names of its parameters, one for each part.
            name: The path of the tensor in a network; None if it is not known yet.
        """
        sides = [
            CodedSide(name or "", None if self.rank is None else index, part, holder, attribute)
            for index, (part, attribute) in enumerate(zip(self.parts, attributes, strict=True))
        ]
        self.group.add(name, self._record, sides)

    def synthesize(self, *coefficients: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of coefficients (1, num_basis) each: lora_B and lora_A, or the tensor alone; float32."""
        return [part(values) for part, values in zip(self.parts, coefficients, strict=True)]

    def forward(self, *coefficients: torch.Tensor) -> torch.Tensor:
        """Return the tensor in its shape and dtype. In evaluation it has no gradient."""
        if not self.training:
            return self._decode(coefficients[0].device)
        parts = self.synthesize(*coefficients)
        made = parts[0] @ parts[1] if len(parts) == 2 else parts[0]  # (rows, r) @ (r, columns) -> (rows, columns)
        return made.reshape(self.shape).to(self.dtype)

    def right_inverse(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return random coefficients, (1, num_basis) each, that compose a tensor of the same root mean square.

        If the given tensor is zero, the coefficients of lora_B (or of the vector) are zero.
        """
        rms = float(tensor.detach().float().square().mean().sqrt()) if tensor.device.type != "meta" else 1.0
        drawn = [torch.empty(1, part.synthesis.num_basis, device=tensor.device) for part in self.parts]
        for values, scale in zip(drawn, self.part_rms(rms or 1.0), strict=True):
            fill_normal(values, scale)
        if rms == 0:
            drawn[0].zero_()
        return tuple(drawn)

    def part_rms(self, rms: float) -> tuple[float, ...]:
        """Return the root mean square s of each part, from the root mean square of the tensor.

        An element of the product is a sum of r products of two elements, so rms^2 = r s^4.
        """
        return (rms,) if self.rank is None else (math.sqrt(rms / math.sqrt(self.rank)),) * 2

    def _decode(self, device: torch.device) -> torch.Tensor:
        """Return the tensor that the file decodes to. It is kept until a part of it changes."""
        with torch.inference_mode(False), torch.no_grad():  # so that the kept tensor can be used under autograd too
            parts = [self.group.decode_tensor(part) for part in self.parts]
            if self._decoded is None or self._decoded[1] != device or any(
                mine is not now for mine, now in zip(self._decoded[0], parts, strict=True)
            ):  # fmt: skip
                made = parts[0]
                if len(parts) == 2:
                    made = torch.from_numpy(multiply_factors(parts[0].numpy(), parts[1].numpy())).float()
                self._decoded = parts, device, made.reshape(self.shape).to(device, self.dtype)
        return self._decoded[2]

    def extra_repr(self) -> str:
        """Return the shape and the rank, for `repr`."""
        return f"{tuple(self.shape)}, rank={self.rank}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": None}


def fill_normal(values: torch.Tensor, rms: float) -> None:
    """Fill a tensor with normal numbers, scaled so that their root mean square is `rms`.

    Without the scaling, the root mean square of only a few numbers could differ much from it.
    """
    with torch.no_grad():
        values.normal_()
        values.mul_(rms / values.square().mean().sqrt())
