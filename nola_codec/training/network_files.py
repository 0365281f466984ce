"""Write a network with coded parameters as a `.nola` file in the dialect `parameters`, and load such a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nola_codec.adapters.dialects import parameters
from nola_codec.decoder.torch_raw import from_torch, to_torch, torch_dtype
from nola_codec.errors import EncodeError, mismatch
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_file, require_free
from nola_codec.training.coded import RecordDescription, near_square_shape
from nola_codec.training.composed import Composition
from nola_codec.training.group import TensorGroup
from nola_codec.training.network import (
    ComposedParameter,
    compose_weight,
    find_composed_tensors,
    require_plain,
    sync_group,
)
from nola_codec.training.trained_files import HeaderExtras, TrainedFile, encode_group, restore_side


def save_network(
    network: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """Write a network as a file; see `training.save`."""
    own, found = sync_group(network)
    require_free(Path(out), overwrite=overwrite)
    shapes = {
        parameter.name: list(parameter.composed.shape)
        for parameter in found
        if parameter.composed.rank is not None and tuple(parameter.composed.shape) != _matrix_shape(parameter)
    }
    config = {parameters.SHAPES: shapes} if shapes else None
    extras = HeaderExtras(parameters.PARAMETERS.name, config, {"format": "pt"}, _raw_tensors(network, found))
    data = encode_group(own, extras, measured)
    with atomic_file(out) as stream:
        stream.write(data)
    return len(data)


def load_network(network: nn.Module, trained: TrainedFile) -> nn.Module:
    """Put a file into a network; see `training.load`. A network that the file does not fit stays as it is."""
    header = trained.header
    if header.dialect != parameters.PARAMETERS.name:
        message = mismatch("dialect", parameters.PARAMETERS.name, header.dialect)
        raise EncodeError(f"not a file of a network's parameters: {message}", code="not-trained")
    products = {r.name: r.kind.product_shape for r in header.pairs}
    shapes = parameters.tensor_shapes(header.config, products)
    shapes |= {r.name: r.kind.stored_shapes[0] for r in header.vectors}
    if next(find_composed_tensors(network), None) is not None:
        own, found = sync_group(network)
        _require_same_coding(own, found, trained, shapes)
        _require_same_carried(_state_without_coefficients(network, found), trained)
    else:
        _require_fitting(network, trained, shapes)
        own = _parametrize_like(network, trained, shapes)
    for side in own.sides:
        restore_side(side, trained)
    network.load_state_dict({key: to_torch(tensor) for key, tensor in trained.raw.items()}, strict=False)
    return network


def _require_same_carried(state: Mapping[str, torch.Tensor], trained: TrainedFile) -> None:
    """Check that the carried tensors of a file are those of a state dict. Raises EncodeError ``not-trained``."""
    for key in sorted(state.keys() ^ trained.raw.keys()):
        raise EncodeError("is only in the network or only in the file", code="not-trained", where=key)
    for key, tensor in trained.raw.items():
        wanted = tuple(state[key].shape), state[key].dtype
        if (tensor.shape, torch_dtype(tensor.dtype)) != wanted:
            raise EncodeError(mismatch("tensor", wanted, (tensor.shape, tensor.dtype)), code="not-trained", where=key)


def _require_same_coding(
    own: TensorGroup, found: list[ComposedParameter], trained: TrainedFile, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that the coding of a network is that of a file. Raises EncodeError ``not-trained``."""
    header = trained.header
    wanted = {(side.record, side.index or 0) for side in own.sides}
    if wanted != set(trained.symbols):
        name, _ = min(wanted ^ set(trained.symbols))
        raise EncodeError("is coded only in the network or only in the file", code="not-trained", where=name)
    coding = own.seed, own.bits
    if coding != (header.seed, trained.bits):
        found_there = header.seed, trained.bits
        raise EncodeError(mismatch("seed, bits", coding, found_there), code="not-trained")
    records = {record.name: record for record in header.coded}
    for parameter in found:
        name, composed, record = parameter.name, parameter.composed, records[parameter.name]
        theirs: tuple[Any, ...] = shapes[name], record.stream, record.kind.basis, tuple(record.kind.num_basis)
        counts = tuple(part.synthesis.num_basis for part in composed.parts)
        mine = tuple(composed.shape), own.records[name].stream, own.basis, counts
        ranks = composed.rank, record.kind.rank if record.kind.is_pair else None
        if mine != theirs or ranks[0] != ranks[1]:
            what = "shape, stream, basis, num_basis, rank"
            message = mismatch(what, (*mine, ranks[0]), (*theirs, ranks[1]))
            raise EncodeError(message, code="not-trained", where=name)


def _require_fitting(network: nn.Module, trained: TrainedFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a plain network can be coded as a file is. Raises EncodeError ``not-trained``."""
    modules = dict(network.named_modules())
    for record in trained.header.coded:
        path, _, attribute = record.name.rpartition(".")
        shape, kind = shapes[record.name], record.kind
        weight = getattr(modules.get(path), attribute, None) if attribute else None
        if not isinstance(weight, nn.Parameter) or tuple(weight.shape) != shape:
            message = mismatch("parameter", f"one of shape {list(shape)}", _describe(weight))
            raise EncodeError(message, code="not-trained", where=record.name)
        require_plain(network, record.name, modules[path])
        whole = all((record.name, side) in trained.symbols for side in range(len(kind.num_basis)))
        if kind.is_pair:
            whole &= kind.product_shape == (shape if len(shape) == 2 else near_square_shape(shape))
            whole &= kind.rank <= min(kind.product_shape)
        if not whole or any(n > most for n, most in zip(kind.num_basis, kind.vector_lengths, strict=True)):
            message = "no parameter of a network is coded so: it has another matrix, or more coefficients than elements"
            raise EncodeError(message, code="not-trained", where=record.name)
    bases = {record.kind.basis for record in trained.header.coded}
    if len(bases) != 1:
        raise EncodeError(mismatch("basis", "one for all", sorted(bases)), code="not-trained")
    coded = {record.name for record in trained.header.coded}
    _require_same_carried({key: value for key, value in network.state_dict().items() if key not in coded}, trained)


def _parametrize_like(network: nn.Module, trained: TrainedFile, shapes: Mapping[str, tuple[int, ...]]) -> TensorGroup:
    """Compose those parameters of a plain network that a file has records of."""
    own = TensorGroup(trained.coding)
    for record in trained.header.coded:
        kind = record.kind
        parts: tuple[tuple[int, ...], ...] = (shapes[record.name],)
        if kind.is_pair:
            parts = tuple(side.shape for side in kind.sides)
        described = RecordDescription(record.stream, parts)
        composition = Composition(shapes[record.name], tuple(kind.num_basis), described)
        layer = network.get_submodule(record.name.rpartition(".")[0])
        compose_weight(layer, record.name, composition, own)
    return own


def _describe(value: object) -> object:
    return list(value.shape) if isinstance(value, torch.Tensor) else "none"


def _matrix_shape(parameter: ComposedParameter) -> tuple[int, int]:
    """Return (rows, columns) of the product that a tensor is reshaped from."""
    lora_B, lora_A = parameter.composed.parts
    return lora_B.shape[0], lora_A.shape[1]


def _state_without_coefficients(network: nn.Module, found: list[ComposedParameter]) -> dict[str, torch.Tensor]:
    coded = {key for parameter in found for key in parameter.keys}
    return {key: value for key, value in network.state_dict().items() if key not in coded}


def _raw_tensors(network: nn.Module, found: list[ComposedParameter]) -> dict[str, RawTensor]:
    carried = {}
    for key, value in _state_without_coefficients(network, found).items():
        if not isinstance(value, torch.Tensor):
            raise EncodeError(f"a {type(value).__name__} in the state dict cannot be carried", code="dtype", where=key)
        carried[key] = from_torch(value)
    return carried
