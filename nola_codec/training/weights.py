"""Coded changes of a network's own weights: `parametrize_weights`, for networks without a PEFT adapter.

Each chosen weight becomes W + delta_W, W frozen and delta_W made of coefficients: the product of two factors (NOLA,
eq. 2) or one flat vector (PRANC). The file is one of the dialect `delta`, which `decode --base` merges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.container.names import natural_key
from nola_codec.errors import EncodeError, expected
from nola_codec.merge.arithmetic.sum import round_to
from nola_codec.training.coded import CodedTensor, Ensemble, Member, Site
from nola_codec.training.ensembles import State, check_width, new_ensemble, refuse_parametrized, remember

Form = Literal["nola", "pranc"]
FORMS: tuple[Form, ...] = ("nola", "pranc")


class CodedDelta(nn.Module):
    """W -> W + delta_W, for `torch.nn.utils.parametrize`.

    Attributes:
        codes: One `CodedTensor` for a vector; lora_B's and lora_A's for a product.
    """

    def __init__(self, weight: torch.Tensor, codes: Sequence[CodedTensor]) -> None:
        super().__init__()
        self.codes = nn.ModuleList(codes)
        starts = [torch.zeros(1, code.synthesis.num_basis) for code in codes]
        if len(codes) == 2:  # lora_A as torch begins a linear layer, lora_B zero
            starts[1].uniform_(-1, 1).mul_(1 / math.sqrt(codes[1].shape[1]))
        self.coefficients = nn.ParameterList([nn.Parameter(start.to(weight.device)) for start in starts])
        self._merged: tuple[tuple[object, ...], torch.Tensor] | None = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight, in its own shape and dtype; in evaluation with one rounding, as merged files have it."""
        parts = [code(own) for code, own in zip(self.codes, self.coefficients, strict=True)]
        if self.training:
            delta: torch.Tensor = parts[0] if len(parts) == 1 else parts[0] @ parts[1]
            return weight + delta.reshape(weight.shape).to(weight.dtype)
        state = (weight, *parts)
        if self._merged is None or any(a is not b for a, b in zip(self._merged[0], state, strict=True)):
            exact = parts[0].double() if len(parts) == 1 else parts[0].double() @ parts[1].double()
            merged: torch.Tensor = round_to(
                weight.detach().double() + (exact.reshape(weight.shape) + 0.0), weight.dtype
            )
            self._merged = (state, merged)
        return self._merged[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_merged": None}


def parametrize_weights(
    model: nn.Module,
    num_basis: int,
    *,
    form: Form = "nola",
    rank: int = 4,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    basis: str = "hadamard",
    bits: int | None = None,
    generator: str = "philox4x32-10",
    seed: int = 0,
    keep_basis: bool = False,
) -> Ensemble:
    """Freeze a network and train coded changes of its matrices.

    Args:
        model: Any network.
        num_basis: Coefficients of each factor, or of each vector.
        form: ``nola``: a product of factors of `rank`; ``pranc``: one vector a weight.
        rank: Of the product.
        include: Regular expressions; parameters whose names match any are changed. None: all of two dimensions or more.
        exclude: Regular expressions of parameters to leave.
        basis: As in `parametrize`.
        bits: As in `parametrize`.
        generator: As in `parametrize`.
        seed: As in `parametrize`.
        keep_basis: As in `parametrize`.

    Raises:
        EncodeError: ``option``, ``parametrized``, ``not-parametrized`` (no weight is meant).
    """
    check_width(bits)
    if form not in FORMS:
        raise EncodeError(expected("form", " or ".join(FORMS), repr(form)), code="option")
    if num_basis < 1 or rank < 1:
        raise EncodeError(expected("num_basis and rank", "positive numbers", (num_basis, rank)), code="option")
    refuse_parametrized(model)
    ensemble = new_ensemble(basis, generator, seed)
    chosen = [name for name in sorted((n for n, _ in model.named_parameters()), key=natural_key)
              if _means(name, model.get_parameter(name), include, exclude)]  # fmt: skip
    if not chosen:
        raise EncodeError("no weight is meant", code="not-parametrized")
    model.requires_grad_(False)
    for stream, name in enumerate(chosen):
        owner, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        weight = getattr(owner, attribute)
        if form == "pranc":
            key = f"{name}.diff"
            shapes: tuple[tuple[int, ...], ...] = (tuple(weight.shape),)
        else:
            ones = (1,) * (weight.ndim - 2)
            key, shapes = name, ((weight.shape[0], rank, *ones), (rank, *weight.shape[1:]))
        sides: list[int | None] = [None] if form == "pranc" else [0, 1]
        codes = []
        for side in sides:
            shape = shapes[side or 0]
            length = math.prod(shape)
            synthesis = ensemble.synthesis(stream, side, length, num_basis, kept=keep_basis)
            flat = (length,) if side is None else (shape[0], length // shape[0])
            codes.append(CodedTensor(flat, torch.float32, synthesis, bits, "scratch", ensemble))
        change = CodedDelta(weight, codes)
        ensemble.sites[key] = Site(stream, shapes, layout="linear" if weight.ndim == 2 else "conv")
        for number, (side, code) in enumerate(zip(sides, codes, strict=True)):
            ensemble.members.append(Member(key, side, code, change.coefficients, str(number)))
        parametrization.register_parametrization(owner, attribute, change)
        owner.get_parameter(f"parametrizations.{attribute}.original").requires_grad_(False)
    remember(model, State(ensemble, "delta"))
    return ensemble


def _means(name: str, parameter: torch.Tensor, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if parameter.ndim < 2 or not parameter.is_floating_point():
        return False
    meant = any(re.search(pattern, name) for pattern in include) if include else True
    return meant and not any(re.search(pattern, name) for pattern in exclude)
