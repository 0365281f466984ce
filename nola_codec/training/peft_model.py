"""NOLA on the LoRA factors of a PEFT model: `parametrize`, `save`, `load`, `deparametrize`.

    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    parametrize(model, num_basis=128, bits=4)
    ...                                     # any training loop: Trainer, QLoRA bases, DoRA
    save(model, "task.nola")

The factors' weights become functions of their coefficients, by `torch.nn.utils.parametrize`; PEFT does not notice.
Written against peft 0.21 (`tuners/lora/layer.py`, `utils/save_and_load.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.adapters.dialects.peft_config import parse_config
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key
from nola_codec.container.reader import Source
from nola_codec.decoder.torch_raw import from_torch, to_torch
from nola_codec.errors import EncodeError, expected
from nola_codec.model import Layout, LowRankRecord
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.training.coded import CodedTensor, Ensemble, Member, Site, Start
from nola_codec.training.ensembles import (
    State,
    check_width,
    find_state,
    forget,
    new_ensemble,
    refuse_parametrized,
    remember,
    state_of,
)
from nola_codec.training.files import Dress, Trained, decoded_members, read_trained, restore

_HANDLES = "_nola_handles"
_FACTOR = re.compile(r"\.lora_[AB]\.(weight|nola)$|\.lora_embedding_[AB]$")


def parametrize(
    model: nn.Module,
    num_basis: int | Mapping[str, int] = 128,
    *,
    basis: str = "hadamard",
    bits: int | None = None,
    shared_basis: bool = False,
    generator: str = "philox4x32-10",
    seed: int = 0,
    keep_basis: bool = False,
    start: Start | None = None,
    adapter: str | None = None,
) -> Ensemble:
    """Train the LoRA factors of a PEFT model through coefficients over a pseudo-random basis (NOLA, eq. 2).

    Optimizers made **before** keep working: a factor's parameter object stays and holds the coefficients.

    Args:
        model: A `PeftModel` with a LoRA adapter: linear, convolution and embedding layers, over whatever base.
        num_basis: Coefficients of each factor, at most as many as it has numbers; or for each module, by a pattern that
            its path ends in (``{"q_proj": 128, "mlp.up_proj": 64}``); the others are frozen, and must have no delta.
        basis: ``hadamard`` (n log n whatever num_basis is), ``rademacher`` or ``uniform`` (the paper's, dense).
        bits: Width of a coefficient, 1 to 8, rounded in every forward pass (quantization-aware training); None trains
            unrounded and stores 16 bits.
        shared_basis: One basis for all factors of one shape (the paper's shared basis).
        generator: Of the basis, by name.
        seed: Of the generator, 0 to 2^64 - 1.
        keep_basis: Keep a dense basis in memory, 4 bytes an entry, and do not make it again at each step.
        start: ``scratch`` keeps the norm of the factors' initialisation, ``projection`` is least squares; None is
            ``projection`` where some lora_B is not zero.
        adapter: Its name; None is the active one.

    Returns:
        The ensemble of coded factors; also found at the model by `save` and the others.

    Raises:
        EncodeError: ``option``, ``not-peft``, ``parametrized`` (already), ``not-parametrized`` (nothing to do).
    """
    check_width(bits)
    ensemble = new_ensemble(basis, generator, seed)
    name = _adapter_of(model, adapter)
    refuse_parametrized(model)
    layers = sorted(_lora_layers(model, name), key=lambda item: natural_key(item[0]))
    if start is None:
        start = "projection" if any(_factor(layer, name, 0)[2].any() for _, layer in layers) else "scratch"
    counts = {path: _count(path, num_basis) for path, _ in layers}
    if not any(counts.values()):
        raise EncodeError("no LoRA layer of the model is meant", code="not-parametrized")
    streams: dict[tuple[int, ...], int] = {}
    for index, (path, layer) in enumerate(layers):
        _, _, b = _factor(layer, name, 0)
        _, _, a = _factor(layer, name, 1)
        stream = streams.setdefault((*a.shape, *b.shape), len(streams)) if shared_basis else index
        layout: Layout = "embedding" if _is_embedding(layer, name) else "linear" if a.ndim == 2 else "conv"
        ensemble.sites[path] = Site(
            stream, (tuple(b.shape), tuple(a.shape)), float(layer.scaling[name]), layout,
            bool(getattr(layer, "fan_in_fan_out", False)),
        )  # fmt: skip
        count = counts[path]
        if count is None:
            if b.any() and a.any():
                raise EncodeError("has a delta, and num_basis has nothing for it", code="option", where=path)
            a.requires_grad_(False)
            b.requires_grad_(False)
            continue
        for side in (0, 1):
            holder, attribute, factor = _factor(layer, name, side)
            synthesis = ensemble.synthesis(stream, side, factor.numel(), count, kept=keep_basis)
            factor.data = factor.data.float()  # coefficients are trained in single precision
            code = CodedTensor(factor.shape, torch.float32, synthesis, bits, start, ensemble)
            parametrization.register_parametrization(holder, attribute, code)
            place: Any = holder.parametrizations[attribute]  # type: ignore[index]
            ensemble.members.append(Member(path, side, code, place, "original"))
            _rename_state(holder, attribute)
    remember(model, State(ensemble, "peft", name))
    return ensemble


def deparametrize(model: nn.Module) -> nn.Module:
    """Leave a plain LoRA: every factor becomes what the file that `save` would write decodes to. Returns the model."""
    ensemble = state_of(model).ensemble
    for member, tensor in zip(list(ensemble.members), decoded_members(ensemble), strict=True):
        place = member.holder
        owner, attribute = _owner(model, place)
        original = place.original
        assert isinstance(original, torch.Tensor)
        device = original.device
        parametrization.remove_parametrizations(owner, attribute, leave_parametrized=False)
        for handle in owner.__dict__.pop(_HANDLES):
            handle.remove()
        with torch.no_grad():
            getattr(owner, attribute).set_(tensor.to(device))
    forget(model)
    return model


def load(model: nn.Module, source: Source, *, adapter: str = "default") -> nn.Module:
    """Put a file that `save` wrote into a model, ready to be evaluated or trained on.

    Args:
        model: A PEFT model with the same layers, parametrized alike or not at all; or a base model, which then gets
            the adapter of the file's configuration.
        source: The file.
        adapter: Name of a new adapter, for a base model.

    Returns:
        The PEFT model.

    Raises:
        FormatError: the file is damaged.
        EncodeError: ``not-trained``: not such a file, or for another model or other options.
    """
    trained = read_trained(source)
    if not hasattr(model, "peft_config"):
        model = _with_adapter(model, trained, adapter)
    if find_state(model) is None:
        _parametrize_like(model, trained)
    state = state_of(model)
    ensemble, name = state.ensemble, state.adapter
    wanted = {(m.name, m.side or 0) for m in ensemble.members}
    if wanted != set(trained.symbols):
        first = min(wanted ^ set(trained.symbols))
        raise EncodeError("is in the model or in the file alone", code="not-trained", where=first[0])
    bits = {m.code.bits for m in ensemble.members}
    same = (ensemble.generator, ensemble.seed, bits) == (trained.header.generator, trained.header.seed, {trained.bits})
    streams = {record.name: record.stream for record in trained.header.coded}
    if not same or any(ensemble.sites[m.name].stream != streams[m.name] for m in ensemble.members):
        raise EncodeError("the model was parametrized with other options than the file's", code="not-trained")
    for member in ensemble.members:
        restore(member, trained)
    ensemble.forget()
    if trained.raw:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, {key: to_torch(tensor) for key, tensor in trained.raw.items()}, name)
    return model


def _with_adapter(model: nn.Module, trained: Trained, adapter: str) -> nn.Module:
    if trained.header.config is None or trained.header.dialect != "peft":
        raise EncodeError("the file has no PEFT configuration", code="not-trained")
    parse_config(trained.header.config, "the file's configuration")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        **{key: value for key, value in trained.header.config.items() if key in LoraConfig.__dataclass_fields__}
    )
    config.inference_mode = False
    made: nn.Module = get_peft_model(model, config, adapter_name=adapter)
    return made


def _parametrize_like(model: nn.Module, trained: Trained) -> None:
    header = trained.header
    records = [record for record in header.coded if isinstance(record, LowRankRecord) and record.units]
    if not records:
        raise EncodeError("no pair of factors in it", code="not-trained")
    names = {number: name for name, number in BASIS_NAMES.items()}, {n: name for name, n in GENERATOR_NAMES.items()}
    counts = {record.name: max(record.kind.num_basis) for record in records}
    shared = len({record.stream for record in records}) < len(records)
    parametrize(
        model, counts, basis=names[0][records[0].kind.basis], bits=trained.bits, shared_basis=shared,
        generator=names[1][header.generator], seed=header.seed,
    )  # fmt: skip


def _adapter_of(model: Any, adapter: str | None) -> str:
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise EncodeError("expected a PEFT model with a LoRA adapter", code="not-peft")
    if adapter is None:
        active = model.active_adapter
        adapter = str(active if isinstance(active, str) else active[0])
    if adapter not in configs:
        raise EncodeError(expected("adapter", ", ".join(configs), repr(adapter)), code="not-peft")
    parse_config(_config(model, adapter), f"adapter {adapter}")
    return adapter


def _lora_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    """(path as PEFT's keys have it, layer) of every layer with this adapter."""
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "scaling") or adapter not in module.scaling:
            continue
        if type(module).__name__ == "ParamWrapper":
            raise EncodeError(
                "factors on bare parameters (experts) cannot be parametrized", code="not-peft", where=path
            )
        yield path, module


def _is_embedding(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_embedding_A


def _factor(layer: Any, adapter: str, side: int) -> tuple[nn.Module, str, torch.Tensor]:
    """(module, name in it, parameter) of lora_B (side 0) or lora_A."""
    if _is_embedding(layer, adapter):
        holder = (layer.lora_embedding_B, layer.lora_embedding_A)[side]
        return holder, adapter, holder[adapter]
    holder = (layer.lora_B, layer.lora_A)[side][adapter]
    return holder, "weight", holder.weight


def _rename_state(holder: nn.Module, attribute: str) -> None:
    """Call coefficients ``nola`` in state dicts, where a weight was; of an embedding they keep the factor's key.

    PEFT takes an adapter's name out of keys that end in ``.<adapter>.<one word>`` and puts it back when it loads.
    """
    inner = f"parametrizations.{attribute}.original"
    outer = "nola" if attribute == "weight" else attribute

    def name(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        if prefix + inner in state:
            state[prefix + outer] = state.pop(prefix + inner)

    def unname(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + outer in state:
            state[prefix + inner] = state.pop(prefix + outer)

    hooked: Any = holder
    handles = [hooked.register_state_dict_post_hook(name), hooked.register_load_state_dict_pre_hook(unname)]
    holder.__dict__[_HANDLES] = handles


def _count(path: str, num_basis: int | Mapping[str, int]) -> int | None:
    """Coefficients of a module's factors; None where it is not meant."""
    if isinstance(num_basis, Mapping):
        ends = [end for end in num_basis if path == end or path.endswith("." + end)]
        count = num_basis[max(ends, key=len)] if ends else None
    else:
        count = num_basis
    if count is not None and count < 1:
        raise EncodeError(expected("num_basis", "a positive number", count), code="option", where=path)
    return count


def _owner(model: nn.Module, place: nn.Module) -> tuple[nn.Module, str]:
    for module in model.modules():
        for attribute, found in (getattr(module, "parametrizations", None) or {}).items():
            if found is place:
                return module, attribute
    raise EncodeError("a factor's parametrization is gone", code="not-parametrized")


def peft_dress(model: nn.Module, adapter: str) -> Dress:
    """What a file of a PEFT model says besides its coefficients."""
    return Dress("peft", _config(model, adapter), {"format": "pt"}, _carried(model, adapter))


def _config(model: Any, adapter: str) -> dict[str, Any]:
    """The adapter's configuration as `adapter_config.json` would have it."""
    config = model.peft_config[adapter]
    values = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    values["inference_mode"] = True
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _carried(model: nn.Module, adapter: str) -> dict[str, Any]:
    """What PEFT would save beside the factors: biases, DoRA magnitudes, modules to save."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return {key: from_torch(tensor) for key, tensor in state.items() if _FACTOR.search(key) is None}
