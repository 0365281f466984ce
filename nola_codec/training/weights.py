"""Train coded changes of a network's own weights: `parametrize_weights`, for networks without a PEFT adapter.

    W' = W + delta_W,   delta_W (out, in) = lora_B (out, r) @ lora_A (r, in)   (NOLA, eq. 2), or one vector (PRANC)

W is frozen, and delta_W is made of coefficients. The file has the dialect `delta`, which `decode --base` can merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.adapters.dialects.weight_changes import Selection
from nola_codec.container.names import natural_key
from nola_codec.errors import EncodeError
from nola_codec.merger.arithmetic.sum import round_to
from nola_codec.training.coded import CodedSide, CodedTensor, RecordDescription
from nola_codec.training.coding import Coding, CodingOptions, resolve_coding
from nola_codec.training.composed import NUM_BASIS, RANK
from nola_codec.training.group import TensorGroup
from nola_codec.training.state import TrainingState, attach_state, refuse_parametrized

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CodedDelta(nn.Module):
    """The map W -> W + delta_W, for `torch.nn.utils.parametrize`.

    Attributes:
        parts: The `CodedTensor` of a vector, or those of lora_B and lora_A.
        coefficients: The parameters of each part, (1, num_basis).
    """

    def __init__(self, weight: torch.Tensor, parts: Sequence[CodedTensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        starts = [torch.zeros(1, part.synthesis.num_basis) for part in parts]
        if len(parts) == 2:  # lora_A starts as a linear layer of torch does, and lora_B with zeros
            starts[1].uniform_(-1, 1).mul_(1 / math.sqrt(parts[1].shape[1]))
        self.coefficients = nn.ParameterList([nn.Parameter(start.to(weight.device)) for start in starts])
        self._merged: tuple[tuple[object, ...], torch.Tensor] | None = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the changed weight in its shape and dtype. In evaluation it has the bits of a merge of the file."""
        parts = [part(own) for part, own in zip(self.parts, self.coefficients, strict=True)]
        if self.training:
            delta: torch.Tensor = parts[0] if len(parts) == 1 else parts[0] @ parts[1]  # (out, r) @ (r, in)
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
    coding: Coding | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    **options: Unpack[CodingOptions],
) -> TensorGroup:
    """Freeze a network, and train coded changes of its matrices.

        >>> parametrize_weights(network, num_basis=256, form="pranc", include=["proj"])  # doctest: +SKIP

    Args:
        model: Any network.
        coding: The coding of the changes; None is `Coding()`.
        include: Regular expressions. Only parameters are changed whose name matches one of them somewhere; if there are
            none, all parameters with at least two dimensions are.
        exclude: Regular expressions. Parameters whose name matches one of them somewhere stay as they are.
        options: Fields of `Coding`, in place of those of `coding`.

    Returns:
        The group of coded changes; `save` also finds it at the model.

    Raises:
        EncodeError: ``option``; ``parametrized``: the network is parametrized already; ``not-parametrized``: no weight
            is selected.
    """
    group = TensorGroup(resolve_coding(coding, options))
    group.coding.num_basis_for_all(NUM_BASIS)
    selection = Selection(include, exclude)
    refuse_parametrized(model)
    chosen = [
        name
        for name in sorted((name for name, _ in model.named_parameters()), key=natural_key)
        if _is_matrix(model.get_parameter(name)) and selection.wants(name)
    ]
    if not chosen:
        raise EncodeError("no weight is selected", code="not-parametrized")
    model.requires_grad_(False)
    for name in chosen:
        _change_weight(model, name, group)
    attach_state(model, TrainingState(group, "delta"))
    return group


def _change_weight(model: nn.Module, name: str, group: TensorGroup) -> None:
    """Add a coded change to one weight, and a record of it to the group."""
    coding = group.coding
    owner, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    weight = getattr(owner, attribute)
    if coding.form == "pranc":
        key = f"{name}.diff"
        shapes: tuple[tuple[int, ...], ...] = (tuple(weight.shape),)
    else:
        rank, ones = RANK if coding.rank is None else coding.rank, (1,) * (weight.ndim - 2)
        key, shapes = name, ((weight.shape[0], rank, *ones), (rank, *weight.shape[1:]))
    stream = group.choose_stream(shapes, shared=coding.shared_basis)
    indexes: list[int | None] = [None] if coding.form == "pranc" else [0, 1]
    parts = []
    for index, shape in zip(indexes, shapes, strict=True):
        length = math.prod(shape)
        count = coding.num_basis_for_all(NUM_BASIS)
        synthesis = group.make_synthesis(stream, index, length, count, kept=coding.keep_basis)
        flat = (length,) if index is None else (shape[0], length // shape[0])
        parts.append(CodedTensor(flat, synthesis, group))
    change = CodedDelta(weight, parts)
    sides = [
        CodedSide(key, index, part, change.coefficients, str(number))
        for number, (index, part) in enumerate(zip(indexes, parts, strict=True))
    ]
    group.add(key, RecordDescription(stream, shapes, layout="linear" if weight.ndim == 2 else "conv"), sides)
    parametrization.register_parametrization(owner, attribute, change)
    owner.get_parameter(f"parametrizations.{attribute}.original").requires_grad_(False)


def _is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.is_floating_point()
