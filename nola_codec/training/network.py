"""The layers of an existing network, trained through coefficients: `parametrize_network`, and what a network holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.adapters.dialects.model_change import Selection
from nola_codec.errors import EncodeError
from nola_codec.training.coded import Ensemble
from nola_codec.training.composed import Composed, Form, NolaParameter, compose, enlist, ensemble
from nola_codec.training.ensembles import refuse_parametrized

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, nn.Embedding, *_CONVOLUTIONS)


def parametrize_network(
    network: nn.Module,
    num_basis: int = 64,
    *,
    rank: int = 4,
    form: Form = "nola",
    basis: str = "hadamard",
    bits: int | None = None,
    shared_basis: bool = False,
    generator: str = "philox4x32-10",
    seed: int = 0,
    keep_basis: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    within: Ensemble | None = None,
) -> Ensemble:
    """Train the weights of linear, convolution and embedding layers through coefficients, from scratch (NOLA, eq. 2).

    Weights start random and as large as they were; biases, norms and other tensors stay as they are, and are carried in
    the file. Make the optimizer **afterwards**: the coefficients are new parameters.

    Args:
        network: Any module with such layers. Its class and its paths stay.
        num_basis: Coefficients of each factor, or of each vector; at most as many as it has numbers.
        rank: Of the factors; at most the smaller side of the matrix.
        form: ``nola``: lora_B @ lora_A, each a combination of basis vectors; ``pranc``: one flat vector a weight.
        basis: ``hadamard`` (n log n whatever num_basis is), ``rademacher`` or ``uniform`` (the paper's, dense).
        bits: Width of a coefficient, 1 to 8, rounded in every forward pass; None trains unrounded, stores 16 bits.
        shared_basis: One basis for all weights of one shape.
        generator: Of the basis, by name.
        seed: Of the generator, 0 to 2^64 - 1.
        keep_basis: Keep a dense basis in memory, 4 bytes an entry, and do not make it again at each step.
        include: Only weights in whose name (``layer1.0.conv1.weight``) one of these regular expressions is found.
        exclude: Not those in which one of these is.
        within: An ensemble with weights of this network, to which these are added, with its basis, generator and seed:
            so that layers may have different numbers of coefficients.

    Returns:
        The ensemble; also found at the network by `save`.

    Raises:
        EncodeError: ``option``, ``not-parametrized`` (no such layer), ``tied-weights``; ``parametrized`` after
            `parametrize` or `parametrize_weights`.
    """
    refuse_parametrized(network)
    selection = Selection(include, exclude)
    found = [
        (path, layer)
        for path, layer in network.named_modules()
        if isinstance(layer, _LAYERS)
        and not parametrization.is_parametrized(layer, "weight")
        and isinstance(layer.weight, nn.Parameter)
        and selection.wants(_joined(path, "weight"))
    ]
    if not found:
        raise EncodeError("no layer of the network is meant", code="not-parametrized")
    for path, layer in found:
        require_plain(network, _joined(path, "weight"), layer)
    own = within if within is not None else ensemble(basis, generator=generator, seed=seed)
    for path, layer in found:
        attach(
            layer, _joined(path, "weight"), ensemble=own, num_basis=num_basis, rank=rank, form=form, bits=bits,
            shared_basis=shared_basis, keep_basis=keep_basis,
        )  # fmt: skip
    return own


def attach(layer: nn.Module, name: str, **coding: Any) -> None:
    """Parametrize one weight.

    Args:
        layer: Its module.
        name: Its path; the last part is the attribute.
        coding: As for `compose`.
    """
    attribute = name.rpartition(".")[2]
    weight = cast("torch.Tensor", getattr(layer, attribute))
    shape = tuple(weight.shape)
    matrix = shape if len(shape) == 2 else None
    made = compose(shape, weight.dtype, matrix=cast("Any", matrix), **coding)
    parametrization.register_parametrization(layer, attribute, made, unsafe=True)  # not evaluated yet
    place = cast("Any", layer).parametrizations[attribute]
    enlist(made, place, [f"original{i}" for i in range(len(made.codes))], name)
    place.train(layer.training)


@dataclass(frozen=True)
class Place:
    """Where a composed tensor is in a network.

    Attributes:
        name: Path of the parameter that it stands for.
        composed: What makes it.
        keys: Its coefficients in the network's own state dict.
    """

    name: str
    composed: Composed
    keys: tuple[str, ...]


def places(network: nn.Module) -> Iterator[Place]:
    """Every composed tensor of a network, once for each path."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, NolaParameter):
            yield Place(path, module.composed, tuple(_joined(path, key) for key in module.attributes))
        for attribute, chain in cast("Any", getattr(module, "parametrizations", None) or {}).items():
            if len(chain) == 1 and isinstance(chain[0], Composed):
                prefix = _joined(path, f"parametrizations.{attribute}.original")
                yield Place(_joined(path, attribute), chain[0], tuple(f"{prefix}{i}" for i in range(chain.ntensors)))


def gathered(network: nn.Module) -> tuple[Ensemble, list[Place]]:
    """The ensemble of a network's composed tensors, its records named by their paths, and the tensors.

    What the ensemble has besides, of layers that the network has no more, is taken out of it.

    Raises:
        EncodeError: ``not-parametrized``; ``ensembles`` for tensors of several; ``tied-weights`` for a layer that has
            several paths.
    """
    found = list(places(network))
    if not found or not all(place.name for place in found):
        message = "the network has no coded parameters" if not found else "a lone parameter has no name in a file"
        raise EncodeError(message, code="not-parametrized")
    names: dict[int, str] = {}
    for place in found:
        if names.setdefault(id(place.composed), place.name) != place.name:
            message = f"is {names[id(place.composed)]} too; a file has one name for a tensor"
            raise EncodeError(message, code="tied-weights", where=place.name)
    own = found[0].composed.ensemble
    other = next((place for place in found if place.composed.ensemble is not own), None)
    if other is not None:
        message = "belongs to another ensemble than the layers before; make all with one (ensemble=...)"
        raise EncodeError(message, code="ensembles", where=other.name)
    path_of = {id(code): place.name for place in found for code in place.composed.codes}
    members = [member for member in own.members if id(member.code) in path_of]
    sites = {path_of[id(member.code)]: own.sites[member.name] for member in members}
    for member in members:
        member.name = path_of[id(member.code)]
    own.members[:] = members
    own.sites.clear()
    own.sites.update(sites)
    return own, found


def require_plain(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Refuse what a composed weight would break in silence. Raises EncodeError ``tied-weights``, ``option``."""
    weight = getattr(layer, name.rpartition(".")[2])
    alike = [other for other, value in network.named_parameters(remove_duplicate=False) if value is weight]
    if len(alike) > 1:
        message = f"is the same tensor as {next(o for o in alike if o != name)}; exclude it"
        raise EncodeError(message, code="tied-weights", where=name)
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.max_norm or layer.sparse):
        message = "an embedding with padding_idx, max_norm or sparse gradients cannot be composed; exclude it"
        raise EncodeError(message, code="option", where=name)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
