"""A tensor of any shape composed from coefficients: a product of two coded factors (NOLA), or one coded vector (PRANC).

`Composed` maps coefficients to the tensor, and is a parametrization for `torch.nn.utils.parametrize`; `NolaParameter`
is a module that has the coefficients too. In evaluation both give what the file decodes to, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import torch
from torch import nn

from nola_codec.adapters.dialects.parameters import multiply_factors
from nola_codec.errors import EncodeError, expected
from nola_codec.training.coded import CodedTensor, Ensemble, Member, Site, near_square
from nola_codec.training.ensembles import check_width, new_ensemble

if TYPE_CHECKING:
    from typing_extensions import Unpack

Form = Literal["nola", "pranc"]
FORMS: tuple[Form, ...] = ("nola", "pranc")


class Coding(TypedDict, total=False):
    """How a tensor is composed.

    num_basis: Coefficients of each factor, or of the vector; at most as many as it has numbers. 64 if not given.
    rank: Of the factors; at most the smaller side of the matrix. 4 if not given.
    form: ``nola``: lora_B @ lora_A, each a combination of basis vectors (NOLA, eq. 2); ``pranc``: one flat vector.
    bits: Width of a coefficient, 1 to 8, rounded in every forward pass; None trains unrounded and stores 16 bits.
    shared_basis: The basis is that of the first tensor of the ensemble with the same shapes.
    keep_basis: Keep a dense basis in memory, 4 bytes an entry, and do not make it again at each step.
    ensemble: What the tensor belongs to: one file, one seed, one generator and one basis for all tensors of a network.
        Bases are numbered in the order in which the tensors were made. None is an ensemble of its own.
    """

    num_basis: int
    rank: int
    form: Form
    bits: int | None
    shared_basis: bool
    keep_basis: bool
    ensemble: Ensemble | None


def ensemble(basis: str = "hadamard", *, generator: str = "philox4x32-10", seed: int = 0) -> Ensemble:
    """What the tensors of one network, and of one file, have in common.

    Args:
        basis: ``hadamard`` (n log n whatever num_basis is), ``rademacher`` or ``uniform`` (the paper's, dense).
        generator: Of the basis, by name.
        seed: Of the generator, 0 to 2^64 - 1.

    Raises:
        EncodeError: ``option``.
    """
    return new_ensemble(basis, generator, seed)


class Composed(nn.Module):
    """(1, num_basis) coefficients of each part -> a tensor.

    Attributes:
        shape, dtype: Of the tensor.
        codes: Of lora_B (rows, r) and lora_A (r, columns), or of the tensor itself.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, codes: Sequence[CodedTensor]) -> None:
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype
        self._codes = nn.ModuleList(codes)
        self._decoded: tuple[list[torch.Tensor], torch.device, torch.Tensor] | None = None

    @property
    def codes(self) -> list[CodedTensor]:
        """See above."""
        return [cast("CodedTensor", code) for code in self._codes]

    @property
    def ensemble(self) -> Ensemble:
        """What the tensor belongs to."""
        return self.codes[0].ensemble

    @property
    def rank(self) -> int | None:
        """Of the factors; None without."""
        return self.codes[1].shape[0] if len(self._codes) == 2 else None

    def parts(self, *coefficients: torch.Tensor) -> list[torch.Tensor]:
        """[lora_B (rows, r), lora_A (r, columns)] or [the tensor], float32."""
        return [code(values) for code, values in zip(self.codes, coefficients, strict=True)]

    def forward(self, *coefficients: torch.Tensor) -> torch.Tensor:
        """The tensor, in its shape and dtype; in evaluation without a gradient."""
        if not self.training:
            return self._exact(coefficients[0].device)
        parts = self.parts(*coefficients)
        made = parts[0] @ parts[1] if len(parts) == 2 else parts[0]
        return made.reshape(self.shape).to(self.dtype)

    def right_inverse(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Random coefficients that compose a tensor as large as the one given; lora_B is zero where that is zero."""
        rms = float(tensor.detach().float().square().mean().sqrt()) if tensor.device.type != "meta" else 1.0
        drawn = [torch.empty(1, code.synthesis.num_basis, device=tensor.device) for code in self.codes]
        for values, scale in zip(drawn, self.scales(rms or 1.0), strict=True):
            draw(values, scale)
        if rms == 0:
            drawn[0].zero_()
        return tuple(drawn)

    def scales(self, std: float) -> tuple[float, ...]:
        """Root mean squares of the parts that compose a tensor of this one: of r products of two, std^2 = r s^4."""
        return (std,) if self.rank is None else (math.sqrt(std / math.sqrt(self.rank)),) * 2

    def _exact(self, device: torch.device) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves with gradients of inputs too
            parts = [self.ensemble.decoded(code) for code in self.codes]
            if self._decoded is None or self._decoded[1] != device or any(
                mine is not now for mine, now in zip(self._decoded[0], parts, strict=True)
            ):  # fmt: skip
                made = parts[0]
                if len(parts) == 2:
                    made = torch.from_numpy(multiply_factors(parts[0].numpy(), parts[1].numpy())).float()
                self._decoded = parts, device, made.reshape(self.shape).to(device, self.dtype)
        return self._decoded[2]

    def extra_repr(self) -> str:
        """For people."""
        return f"{tuple(self.shape)}, rank={self.rank}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": None}


def draw(values: torch.Tensor, rms: float) -> None:
    """Fill with normal numbers whose root mean square is exactly `rms`: few of them would else miss it by much."""
    with torch.no_grad():
        values.normal_()
        values.mul_(rms / values.square().mean().sqrt())


def compose(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    matrix: tuple[int, int] | None = None,
    stream: int | None = None,
    num_basis: int | tuple[int, ...] = 64,
    rank: int = 4,
    form: Form = "nola",
    bits: int | None = None,
    shared_basis: bool = False,
    keep_basis: bool = False,
    ensemble: Ensemble | None = None,
) -> Composed:
    """A composed tensor, entered into the ensemble's sites; `enlist` makes its coefficients members.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        matrix: (rows, columns) of the product; None is `near_square`.
        stream: Number of its basis; None is the next one.
        num_basis: One number, or one a part.
        rank: See `Coding`, as for the rest.
        form: How the parts make the tensor.
        bits: Width of a coefficient.
        shared_basis: With tensors of the same shapes.
        keep_basis: In memory.
        ensemble: What the tensor belongs to.

    Raises:
        EncodeError: ``option``.
    """
    own = ensemble if ensemble is not None else new_ensemble("hadamard", "philox4x32-10", 0)
    check_width(bits)
    if form not in FORMS:
        raise EncodeError(expected("form", ", ".join(FORMS), repr(form)), code="option")
    counts = num_basis if isinstance(num_basis, tuple) else (num_basis,) * (2 if form == "nola" else 1)
    for what, number in (("rank", rank), *(("num_basis", count) for count in counts), *(("shape", n) for n in shape)):
        if number < 1:
            raise EncodeError(expected(what, "a positive number", number), code="option")
    others = {member.code.bits for member in own.members} - {bits}
    if others:
        raise EncodeError(expected("bits", f"{others.pop()}, as in the rest of the ensemble", bits), code="option")
    rows, columns = matrix or near_square(shape)
    width = min(rank, rows, columns)
    shapes: tuple[tuple[int, ...], ...] = ((rows, width), (width, columns)) if form == "nola" else (tuple(shape),)
    if stream is None:
        alike = [site.stream for site in own.sites.values() if site.shapes == shapes] if shared_basis else []
        stream = alike[0] if alike else 1 + max((site.stream for site in own.sites.values()), default=-1)
    codes = []
    for side, (part, count) in enumerate(zip(shapes, counts, strict=True)):
        place = side if form == "nola" else None
        synthesis = own.synthesis(stream, place, math.prod(part), count, kept=keep_basis)
        codes.append(CodedTensor(part, torch.float32, synthesis, bits, "scratch", own))
    made = Composed(shape, dtype, codes)
    own.sites[_free_name(own)] = Site(stream, shapes)
    return made


def enlist(made: Composed, holder: nn.Module, attributes: Sequence[str], name: str | None = None) -> None:
    """Enter the coefficients of what `compose` made last, under its site's name or, if given, another."""
    own = made.ensemble
    known = next(reversed(own.sites))
    if name is not None:
        own.sites[name] = own.sites.pop(known)
    for side, (code, attribute) in enumerate(zip(made.codes, attributes, strict=True)):
        place = None if made.rank is None else side
        own.members.append(Member(name or known, place, code, holder, attribute))


def _free_name(ensemble: Ensemble) -> str:
    """A name until the tensor's place in a network is known."""
    number = len(ensemble.sites)
    while f"unnamed.{number}" in ensemble.sites:
        number += 1
    return f"unnamed.{number}"


class NolaParameter(nn.Module):
    """A tensor that is trained through coefficients; calling the module gives it.

    Parameters ``coefficients_B`` and ``coefficients_A``, or in the form ``pranc`` ``coefficients``: float32
    (1, num_basis).

        >>> scale = NolaParameter((64, 3, 3, 3), num_basis=16)
        >>> scale().shape, sum(p.numel() for p in scale.parameters())
        (torch.Size([64, 3, 3, 3]), 32)
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        matrix: tuple[int, int] | None = None,
        std: float | None = None,
        device: object = None,
        dtype: torch.dtype | None = None,
        **coding: Unpack[Coding],
    ) -> None:
        """Compose a tensor, and draw the coefficients it starts from.

        Args:
            shape: Of the tensor.
            matrix: (rows, columns) whose product it is; None is `near_square`.
            std: Root mean square of the tensor at the start; None is that of PyTorch's layers, 1 / sqrt(3 fan_in).
            device: Of the coefficients.
            dtype: Of the tensor.
            coding: See `Coding`.

        Raises:
            EncodeError: ``option``.
        """
        super().__init__()
        own = tuple(shape)
        self.composed = compose(own, dtype or torch.get_default_dtype(), matrix=matrix, **coding)
        self.std = 1 / math.sqrt(3 * math.prod(own[1:] if len(own) > 1 else own)) if std is None else std
        self.attributes = ("coefficients",) if self.composed.rank is None else ("coefficients_B", "coefficients_A")
        for attribute, code in zip(self.attributes, self.composed.codes, strict=True):
            values = torch.empty(1, code.synthesis.num_basis, device=cast("Any", device))
            setattr(self, attribute, nn.Parameter(values))
        enlist(self.composed, self, self.attributes)
        self.reset_parameters()

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.composed.shape

    @property
    def coefficients_of_parts(self) -> tuple[torch.Tensor, ...]:
        """The parameters, lora_B's first."""
        return tuple(getattr(self, attribute) for attribute in self.attributes)

    def reset_parameters(self) -> None:
        """Draw the coefficients anew, by PyTorch's own generator."""
        for values, scale in zip(self.coefficients_of_parts, self.composed.scales(self.std), strict=True):
            draw(values, scale)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(lora_B (rows, r), lora_A (r, columns)), where multiplying by one after the other will do: in training."""
        if not self.training or self.composed.rank is None:
            return None
        lora_B, lora_A = self.composed.parts(*self.coefficients_of_parts)
        return lora_B.to(self.composed.dtype), lora_A.to(self.composed.dtype)

    def forward(self) -> torch.Tensor:
        """The tensor; in evaluation what the file decodes to, and without a gradient."""
        made: torch.Tensor = self.composed(*self.coefficients_of_parts)
        return made
