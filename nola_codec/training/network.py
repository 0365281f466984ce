"""Train the layers of an existing network through coefficients: `parametrize_network`, and its composed tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.adapters.dialects.weight_changes import Selection
from nola_codec.errors import EncodeError
from nola_codec.training.coding import Coding, CodingOptions, TensorOptions
from nola_codec.training.composed import ComposedTensor, Composition, plan_composition
from nola_codec.training.group import TensorGroup, resolve_group
from nola_codec.training.layers import NolaParameter
from nola_codec.training.state import refuse_parametrized

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, nn.Embedding, *_CONVOLUTIONS)


def parametrize_network(
    network: nn.Module,
    coding: Coding | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    group: TensorGroup | None = None,
    **options: Unpack[CodingOptions],
) -> TensorGroup:
    """Train the weights of linear, convolution and embedding layers through coefficients, from scratch (NOLA, eq. 2).

    Weights start random, with the root mean square that they had. Biases, norms and other tensors stay as they are, and
    the file carries them. Make the optimizer **afterwards**, since the coefficients are new parameters.

        >>> parametrize_network(resnet, num_basis=320, rank=8, bits=4)  # doctest: +SKIP

    Args:
        network: Any module with such layers. Its class and the paths of its modules stay.
        coding: The coding of the weights; None is the group's coding, or `Coding()`.
        include: Regular expressions. Only weights are coded whose name (``layer1.0.conv1.weight``) matches one of them
            somewhere; if there are none, all weights are.
        exclude: Regular expressions. Weights whose name matches one of them somewhere are not coded.
        group: A group with weights of this network, to which these are added, so that layers may have different
            numbers of coefficients. None makes a new group.
        options: Fields of `Coding`, in place of those of `coding`.

    Returns:
        The group; `save` also finds it at the network.

    Raises:
        EncodeError: ``option``; ``not-parametrized``: no layer is selected; ``tied-weights``; ``parametrized``: the
            network is parametrized already by `parametrize` or `parametrize_weights`.
    """
    refuse_parametrized(network)
    given: TensorOptions = {**options, "coding": coding, "group": group}
    own, chosen = resolve_group(given)
    selection = Selection(include, exclude)
    found = [
        (_join(path, "weight"), layer)
        for path, layer in network.named_modules()
        if isinstance(layer, _LAYERS)
        and not parametrization.is_parametrized(layer, "weight")
        and isinstance(layer.weight, nn.Parameter)
        and selection.wants(_join(path, "weight"))
    ]
    if not found:
        raise EncodeError("no layer of the network is selected", code="not-parametrized")
    for name, layer in found:
        require_plain(network, name, layer)
    for name, layer in found:
        shape = tuple(layer.weight.shape)
        matrix = shape if len(shape) == 2 else None
        composition = plan_composition(shape, chosen, own, matrix)
        compose_weight(layer, name, composition, own, keep_basis=chosen.keep_basis)
    return own


def compose_weight(
    layer: nn.Module, name: str, composition: Composition, group: TensorGroup, *, keep_basis: bool = False
) -> None:
    """Replace a weight of a layer by coefficients that it is made of.

    Args:
        layer: The module that has the weight.
        name: The path of the weight; its last part is the attribute.
        composition: The parts of the weight.
        group: The group that it joins.
        keep_basis: True if a dense basis stays in memory.
    """
    attribute = name.rpartition(".")[2]
    weight = cast("torch.Tensor", getattr(layer, attribute))
    made = ComposedTensor(composition, weight.dtype, group, keep_basis=keep_basis)
    parametrization.register_parametrization(layer, attribute, made, unsafe=True)  # it cannot be decoded yet
    holder = cast("Any", layer).parametrizations[attribute]
    made.register(holder, [f"original{index}" for index in range(len(made.parts))], name)
    holder.train(layer.training)


@dataclass(frozen=True)
class ComposedParameter:
    """A composed tensor and its place in a network.

    Attributes:
        name: The path of the parameter that it replaces.
        composed: The map from its coefficients to the tensor.
        keys: The keys of its coefficients in the network's own state dict.
    """

    name: str
    composed: ComposedTensor
    keys: tuple[str, ...]


def find_composed_tensors(network: nn.Module) -> Iterator[ComposedParameter]:
    """Yield every composed tensor of a network, once for each path that it has."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, NolaParameter):
            yield ComposedParameter(path, module.composed, tuple(_join(path, key) for key in module.attributes))
        for attribute, chain in cast("Any", getattr(module, "parametrizations", None) or {}).items():
            if len(chain) == 1 and isinstance(chain[0], ComposedTensor):
                prefix = _join(path, f"parametrizations.{attribute}.original")
                keys = tuple(f"{prefix}{index}" for index in range(chain.ntensors))
                yield ComposedParameter(_join(path, attribute), chain[0], keys)


def sync_group(network: nn.Module) -> tuple[TensorGroup, list[ComposedParameter]]:
    """Update the group of a network's composed tensors, and return it with those tensors.

    Records get the paths of the tensors as their names. Records of layers that are no longer in the network are
    removed.

    Raises:
        EncodeError: ``not-parametrized``; ``ensembles`` for tensors of several groups; ``tied-weights`` for a layer
            that has several paths.
    """
    found = list(find_composed_tensors(network))
    if not found or not all(parameter.name for parameter in found):
        message = "the network has no coded parameters" if not found else "a lone parameter has no name in a file"
        raise EncodeError(message, code="not-parametrized")
    names: dict[int, str] = {}
    for parameter in found:
        if names.setdefault(id(parameter.composed), parameter.name) != parameter.name:
            message = f"is the same tensor as {names[id(parameter.composed)]}; a file has one name for each tensor"
            raise EncodeError(message, code="tied-weights", where=parameter.name)
    own = found[0].composed.group
    other = next((parameter for parameter in found if parameter.composed.group is not own), None)
    if other is not None:
        message = "belongs to another group than the layers before it; give all layers the same group (group=...)"
        raise EncodeError(message, code="ensembles", where=other.name)
    path_of = {id(part): parameter.name for parameter in found for part in parameter.composed.parts}
    sides = [side for side in own.sides if id(side.tensor) in path_of]
    records = {path_of[id(side.tensor)]: own.records[side.record] for side in sides}
    for side in sides:
        side.record = path_of[id(side.tensor)]
    own.sides, own.records = sides, records
    return own, found


def require_plain(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Check that a weight can be composed without breaking the network.

    Raises:
        EncodeError: ``tied-weights``: another parameter is the same tensor; ``option``: an embedding with padding_idx,
            max_norm or sparse gradients.
    """
    weight = getattr(layer, name.rpartition(".")[2])
    alike = [other for other, value in network.named_parameters(remove_duplicate=False) if value is weight]
    if len(alike) > 1:
        message = f"is the same tensor as {next(o for o in alike if o != name)}; exclude it"
        raise EncodeError(message, code="tied-weights", where=name)
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.max_norm or layer.sparse):
        message = "an embedding with padding_idx, max_norm or sparse gradients cannot be composed; exclude it"
        raise EncodeError(message, code="option", where=name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
