"""The ensemble of a model: made with checked options, and found again at the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.errors import EncodeError, expected
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.training.coded import Ensemble
from nola_codec.training.files import decoded_members
from nola_codec.training.quantizer import TRAINED_BITS

_STATE = "nola_state"


@dataclass(frozen=True)
class State:
    """What `parametrize` leaves at a model.

    Attributes:
        ensemble: The coded tensors.
        dialect: Of the file that `save` writes.
        adapter: Name of PEFT's adapter, or an empty string.
    """

    ensemble: Ensemble
    dialect: str
    adapter: str = ""


def new_ensemble(basis: str, generator: str, seed: int) -> Ensemble:
    """An empty ensemble, its options checked. Raises EncodeError ``option``."""
    for what, name, names in (("basis", basis, BASIS_NAMES), ("prng", generator, GENERATOR_NAMES)):
        if name not in names:
            raise EncodeError(expected(what, ", ".join(names), repr(name)), code="option")
    if not 0 <= seed < 1 << 64:
        raise EncodeError(expected("seed", "0 to 2^64 - 1", seed), code="option")
    return Ensemble(GENERATOR_NAMES[generator], seed, BASIS_NAMES[basis], decoded_members)


def check_width(bits: int | None) -> None:
    """Raises EncodeError ``option`` for a width that cannot be trained."""
    if bits is not None and bits not in TRAINED_BITS:
        raise EncodeError(expected("bits", "1 to 8, or None", bits), code="option")


def remember(model: nn.Module, state: State) -> None:
    """Leave a state at a model."""
    model.__dict__[_STATE] = state


def forget(model: nn.Module) -> None:
    """Take the state away."""
    for module in model.modules():
        module.__dict__.pop(_STATE, None)


def find_state(model: nn.Module) -> State | None:
    """The state of a model or of a part of it."""
    found: list[Any] = [module.__dict__[_STATE] for module in model.modules() if _STATE in module.__dict__]
    return found[0] if found else None


def state_of(model: nn.Module) -> State:
    """The state of a model. Raises EncodeError ``not-parametrized``."""
    found = find_state(model)
    if found is None:
        raise EncodeError("the model is not parametrized", code="not-parametrized")
    return found


def refuse_parametrized(model: nn.Module) -> None:
    """Raises EncodeError ``parametrized`` for a model that has a state."""
    if find_state(model) is not None:
        raise EncodeError("the model is parametrized already", code="parametrized")
