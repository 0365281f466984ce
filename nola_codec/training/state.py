"""The state that `parametrize` and `parametrize_weights` store in a model for `save`, `load` and `deparametrize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nola_codec.errors import EncodeError
from nola_codec.training.group import TensorGroup

_ATTRIBUTE = "nola_state"


@dataclass(frozen=True)
class TrainingState:
    """The coded tensors of a model, and the kind of file that they go into.

    Attributes:
        group: The coded tensors.
        dialect: The dialect of the file that `save` writes.
        adapter: The name of the adapter in PEFT; empty if the model has none.
    """

    group: TensorGroup
    dialect: str
    adapter: str = ""


def attach_state(model: nn.Module, state: TrainingState) -> None:
    """Store a state in a model."""
    model.__dict__[_ATTRIBUTE] = state


def detach_state(model: nn.Module) -> None:
    """Remove the state from a model."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)


def find_state(model: nn.Module) -> TrainingState | None:
    """Return the state of a model or of a module in it; None if there is none."""
    found: list[Any] = [module.__dict__[_ATTRIBUTE] for module in model.modules() if _ATTRIBUTE in module.__dict__]
    return found[0] if found else None


def require_state(model: nn.Module) -> TrainingState:
    """Return the state of a model. Raises EncodeError ``not-parametrized`` if there is none."""
    found = find_state(model)
    if found is None:
        raise EncodeError("the model is not parametrized", code="not-parametrized")
    return found


def refuse_parametrized(model: nn.Module) -> None:
    """Raise EncodeError ``parametrized`` if a model has a state."""
    if find_state(model) is not None:
        raise EncodeError("the model is parametrized already", code="parametrized")
