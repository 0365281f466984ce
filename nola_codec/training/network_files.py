"""A network with coded parameters <-> a `.nola` file in the dialect `parameters`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nola_codec.adapters.dialects import parameters
from nola_codec.decoder.torch_raw import from_torch, to_torch, torch_dtype
from nola_codec.errors import EncodeError, expected
from nola_codec.model.records import LowRankKind, LowRankRecord
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_file, require_free
from nola_codec.training.coded import Ensemble, near_square
from nola_codec.training.files import Dress, Trained, decoded_members, file_bytes, restore
from nola_codec.training.network import Place, attach, gathered, places, require_plain


def save_network(
    network: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """See `training.save`."""
    own, found = gathered(network)
    require_free(Path(out), overwrite=overwrite)
    shapes = {
        place.name: list(place.composed.shape)
        for place in found
        if place.composed.rank is not None and tuple(place.composed.shape) != _matrix(place)
    }
    config = {parameters.SHAPES: shapes} if shapes else None
    dress = Dress(parameters.PARAMETERS.name, config, {"format": "pt"}, _carried(network, found))
    data = file_bytes(own, dress, measured)
    with atomic_file(out) as stream:
        stream.write(data)
    return len(data)


def load_network(network: nn.Module, trained: Trained) -> nn.Module:
    """See `training.load`. A network that the file does not fit stays as it is."""
    header = trained.header
    if header.dialect != parameters.PARAMETERS.name:
        message = expected("dialect", parameters.PARAMETERS.name, header.dialect)
        raise EncodeError(f"not a file of a network's parameters: {message}", code="not-trained")
    products = {r.name: (r.kind.rows, r.kind.columns) for r in header.lowrank}
    shapes = parameters.tensor_shapes(header.config, products)
    shapes |= {r.name: r.kind.shape for r in header.vectors}
    if next(places(network), None) is not None:
        own, found = gathered(network)
        _require_same(own, found, trained, shapes)
        _require_carried(_plain(network, found), trained)
    else:
        _require_fitting(network, trained, shapes)
        _parametrize_like(network, trained)
        own, _ = gathered(network)
    for member in own.members:
        restore(member, trained)
    network.load_state_dict({key: to_torch(tensor) for key, tensor in trained.raw.items()}, strict=False)
    return network


def _require_carried(state: Mapping[str, torch.Tensor], trained: Trained) -> None:
    """Raises EncodeError ``not-trained`` where the file's other tensors are not those of a state dict."""
    for key in sorted(state.keys() ^ trained.raw.keys()):
        raise EncodeError("is in the network or in the file alone", code="not-trained", where=key)
    for key, tensor in trained.raw.items():
        wanted = tuple(state[key].shape), state[key].dtype
        if (tensor.shape, torch_dtype(tensor.dtype)) != wanted:
            raise EncodeError(expected("tensor", wanted, (tensor.shape, tensor.dtype)), code="not-trained", where=key)


def _require_same(own: Ensemble, found: list[Place], trained: Trained, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises EncodeError ``not-trained`` where the network's coding is not the file's."""
    header = trained.header
    wanted = {(member.name, member.side or 0) for member in own.members}
    if wanted != set(trained.symbols):
        name, _ = min(wanted ^ set(trained.symbols))
        raise EncodeError("is coded in the network or in the file alone", code="not-trained", where=name)
    coding = own.generator, own.seed, own.members[0].code.bits
    if coding != (header.generator, header.seed, trained.bits):
        found_there = header.generator, header.seed, trained.bits
        raise EncodeError(expected("generator, seed, bits", coding, found_there), code="not-trained")
    records = {record.name: record for record in header.coded}
    for place in found:
        record, site = records[place.name], own.sites[place.name]
        theirs: tuple[Any, ...] = shapes[place.name], record.stream, record.kind.basis, tuple(record.kind.num_basis)
        counts = tuple(code.synthesis.num_basis for code in place.composed.codes)
        mine = tuple(place.composed.shape), site.stream, own.basis, counts
        ranks = place.composed.rank, record.kind.rank if isinstance(record, LowRankRecord) else None
        if mine != theirs or ranks[0] != ranks[1]:
            what = "shape, stream, basis, num_basis, rank"
            message = expected(what, (*mine, ranks[0]), (*theirs, ranks[1]))
            raise EncodeError(message, code="not-trained", where=place.name)


def _require_fitting(network: nn.Module, trained: Trained, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises EncodeError ``not-trained`` where a plain network cannot be coded as a file is."""
    modules = dict(network.named_modules())
    for record in trained.header.coded:
        path, _, attribute = record.name.rpartition(".")
        shape, kind = shapes[record.name], record.kind
        weight = getattr(modules.get(path), attribute, None) if attribute else None
        if not isinstance(weight, nn.Parameter) or tuple(weight.shape) != shape:
            message = expected("parameter", f"one of shape {list(shape)}", _described(weight))
            raise EncodeError(message, code="not-trained", where=record.name)
        require_plain(network, record.name, modules[path])
        whole = all((record.name, side) in trained.symbols for side in range(len(kind.num_basis)))
        if isinstance(kind, LowRankKind):
            whole &= (kind.rows, kind.columns) == (shape if len(shape) == 2 else near_square(shape))
            whole &= kind.rank <= min(kind.rows, kind.columns)
        if not whole or any(n > most for n, most in zip(kind.num_basis, kind.vector_lengths, strict=True)):
            message = "coded as no parameter of a network is: another matrix, or more numbers than it has"
            raise EncodeError(message, code="not-trained", where=record.name)
    bases = {record.kind.basis for record in trained.header.coded}
    if len(bases) != 1:
        raise EncodeError(expected("basis", "one for all", sorted(bases)), code="not-trained")
    coded = {record.name for record in trained.header.coded}
    _require_carried({key: value for key, value in network.state_dict().items() if key not in coded}, trained)


def _parametrize_like(network: nn.Module, trained: Trained) -> None:
    """Compose the parameters of a plain network that the file has records of."""
    header = trained.header
    own = Ensemble(header.generator, header.seed, header.coded[0].kind.basis, decoded_members)
    for record in header.coded:
        kind = record.kind
        lowrank = isinstance(kind, LowRankKind)
        attach(
            network.get_submodule(record.name.rpartition(".")[0]), record.name, ensemble=own, stream=record.stream,
            num_basis=tuple(kind.num_basis), form="nola" if lowrank else "pranc", bits=trained.bits,
            rank=kind.rank if isinstance(kind, LowRankKind) else 1,
        )  # fmt: skip


def _described(value: object) -> object:
    return list(value.shape) if isinstance(value, torch.Tensor) else "none"


def _matrix(place: Place) -> tuple[int, int]:
    """(rows, columns) of the product."""
    lora_B, lora_A = place.composed.codes
    return lora_B.shape[0], lora_A.shape[1]


def _plain(network: nn.Module, found: list[Place]) -> dict[str, torch.Tensor]:
    """The state dict without coefficients."""
    coded = {key for place in found for key in place.keys}
    return {key: value for key, value in network.state_dict().items() if key not in coded}


def _carried(network: nn.Module, found: list[Place]) -> dict[str, RawTensor]:
    carried = {}
    for key, value in _plain(network, found).items():
        if not isinstance(value, torch.Tensor):
            raise EncodeError(f"a {type(value).__name__} in the state dict cannot be carried", code="dtype", where=key)
        carried[key] = from_torch(value)
    return carried
