"""A tensor that is trained through its coefficients, and the set of such tensors that one file holds.

`CodedTensor` is a parametrization for `torch.nn.utils.parametrize`: the module's parameter becomes the coefficients,
and its weight what they synthesize. While training the weight is made in floats; in evaluation it is what the file
that `save` would write decodes to, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nola_codec.basis import BasisKey
from nola_codec.model.adapter import Layout
from nola_codec.training.quantizer import rounded
from nola_codec.training.synthesis import Synthesis

if TYPE_CHECKING:
    from typing_extensions import Self

InitialValues = Literal["scratch", "projection"]


class CodedTensor(nn.Module):
    """(1, num_basis) coefficients -> a tensor.

    They are a row because PEFT takes a factor of one dimension for a damaged one.

    Attributes:
        synthesis: The basis as a linear map.
        bits: Width of a coefficient in the forward pass and in a file; None trains unrounded, and stores 16 bits.
        start: How `right_inverse` gets coefficients from a tensor: ``scratch`` keeps the norm of the tensor, as a fresh
            initialisation wants it; ``projection`` is least squares.
        ensemble: What the tensor belongs to.
        member: Its place there.
    """

    def __init__(
        self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, synthesis: Synthesis, bits: int | None,
        start: InitialValues, ensemble: Ensemble,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype
        self.synthesis, self.bits, self.start, self.ensemble = synthesis, bits, start, ensemble
        self.member: Member | None = None
        self._made: tuple[torch.Tensor, tuple[object, ...], torch.Tensor] | None = None

    def forward(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The tensor, in its shape and dtype.

        A layer may ask for its weight several times a step, so what was made is handed out again until a backward pass
        has gone through it. (An optimizer steps only then; versions of tensors do not tell, fused ones leave them.)
        """
        if not self.training and self.member is not None:  # while it is being put in its place it has none
            return self.ensemble.decoded(self).to(coefficients.device, self.dtype)
        state = (coefficients._version, torch.is_inference_mode_enabled(), self.bits)
        graded = torch.is_grad_enabled() and coefficients.requires_grad
        if graded and self._made is not None and self._made[0] is coefficients and self._made[1] == state:
            return self._made[2]
        values = coefficients[0].float()
        if self.bits is not None:
            values = rounded(values, self.bits, self.synthesis.grain)
        made = self.synthesis(values).reshape(self.shape).to(self.dtype)
        if graded:
            made.register_hook(self._passed)  # type: ignore[no-untyped-call]
            self._made = (coefficients, state, made)
        return made

    def train(self, mode: bool = True) -> Self:
        """As ever; what was made before is made anew."""
        self._made = None
        self.ensemble.forget()
        return super().train(mode)

    def _passed(self, grad: torch.Tensor) -> None:
        self._made = None

    def right_inverse(self, tensor: torch.Tensor) -> torch.Tensor:
        """Coefficients that a tensor starts from, float32 (1, num_basis)."""
        flat = tensor.detach().reshape(-1).float()
        found = self.synthesis.least_squares(flat)
        if self.start == "scratch":
            norm, made = flat.norm(), self.synthesis.forward(found).norm()
            found = found * (norm / made) if made > 0 else found
        return found[None]

    def extra_repr(self) -> str:
        """For people."""
        return f"{tuple(self.shape)}, num_basis={self.synthesis.num_basis}, bits={self.bits}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


@dataclass(frozen=True)
class Site:
    """What a record says of a trained tensor or pair of factors besides its coefficients.

    Attributes:
        stream: Of the record.
        shapes: (b_shape, a_shape) of a pair, or the shape of a vector alone.
        scaling, layout, fan_in_fan_out: As in `LoraModule`.
    """

    stream: int
    shapes: tuple[tuple[int, ...], ...]
    scaling: float = 1.0
    layout: Layout = "linear"
    fan_in_fan_out: bool = False


@dataclass(eq=False)
class Member:
    """A coded tensor in its place.

    Attributes:
        name: Of the record: a module path for a factor, a key for a vector.
        side: 0 lora_B, 1 lora_A; None for a vector.
        code: Its parametrization.
        holder: The module that has the coefficients under `attribute`.
        attribute: Name of the parameter in the holder.
        loaded: (coefficients, symbols, scale code) as a file had them.
    """

    name: str
    side: int | None
    code: CodedTensor
    holder: nn.Module
    attribute: str
    loaded: tuple[torch.Tensor, npt.NDArray[np.uint16], int] | None = None

    def __post_init__(self) -> None:
        self.code.member = self

    @property
    def coefficients(self) -> torch.Tensor:
        """The trained parameter, (1, num_basis)."""
        found: torch.Tensor = self.holder.get_parameter(self.attribute)
        return found


@dataclass(eq=False)
class Ensemble:
    """Coded tensors that share a file, its seed and its generator.

    Attributes:
        generator, seed, basis: Of all bases.
        sites: What the records say besides, by name.
        members: In the order in which they were made.
        decode: Makes what the members decode to, in their order; see `training.files`.
    """

    generator: int
    seed: int
    basis: int
    decode: Callable[[Ensemble], list[torch.Tensor]]
    sites: dict[str, Site] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    _decoded: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _watched: list[torch.Tensor] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)

    def synthesis(self, stream: int, side: int | None, length: int, num_basis: int, *, kept: bool) -> Synthesis:
        """The basis of one side of the record with this stream, or of a vector (side None).

        `num_basis` is cut to `length`, beyond which more coefficients would say nothing more.
        """
        key = BasisKey(self.generator, self.seed, 2 * stream + (side or 0))
        grain = 2 if side is None else 1  # scales of vectors are in sixteenths of an octave
        return Synthesis(self.basis, key, length, min(num_basis, length), grain=grain, kept=kept)

    def decoded(self, code: CodedTensor) -> torch.Tensor:
        """What a file written now would decode a tensor to; made anew when coefficients have changed.

        Its own are compared by value, since fused optimizers leave no trace; the others', which may move an exponent
        that all share, by their versions.
        """
        found = self._decoded.get(id(code))
        member = code.member
        if (
            found is not None
            and member is not None
            and self._versions == [tensor._version for tensor in self._watched]
            and torch.equal(found[0], member.coefficients)
        ):
            return found[1]
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves with gradients of inputs too
            made = self.decode(self)
            self._watched = [m.coefficients for m in self.members]
            self._versions = [tensor._version for tensor in self._watched]
            self._decoded = {
                id(m.code): (own.detach().clone(), tensor)
                for m, own, tensor in zip(self.members, self._watched, made, strict=True)
            }
        return self._decoded[id(code)][1]

    def forget(self) -> None:
        """Decode anew when asked next."""
        self._decoded, self._watched = {}, []

    def set_bits(self, bits: int | None) -> None:
        """Another width for all members, from the next forward pass on."""
        for member in self.members:
            member.code.bits, member.loaded = bits, None
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": {}, "_watched": []}


def near_square(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a tensor as a near-square matrix, rows * columns being its elements (NOLA, section 3.3).

    Rows are the largest divisor of the number of elements that is not above its square root.

    >>> near_square((64, 64, 3, 3))
    (192, 192)
    """
    elements = math.prod(shape)
    rows = next(d for d in range(math.isqrt(elements), 0, -1) if elements % d == 0)
    return rows, elements // rows
