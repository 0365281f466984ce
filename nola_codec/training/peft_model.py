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
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.reader import Source
from nola_codec.decoder.torch_raw import from_torch, to_torch
from nola_codec.errors import EncodeError, expected
from nola_codec.model.tensors import RawTensor
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.training.coded import CodedTensor, Ensemble, InitialValues, Member, Site
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
from nola_codec.training.peft_layers import adapted, begun

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
    start: InitialValues | None = None,
    adapter: str | None = None,
) -> Ensemble:
    """Train the LoRA factors of a PEFT model through coefficients over a pseudo-random basis (NOLA, eq. 2).

    Optimizers made **before** keep working: a factor's parameter object stays and holds the coefficients.

    Of VeRA and RandLoRA the diagonals are trained so, each one vector over a basis.

    Args:
        model: A `PeftModel` with a LoRA adapter: linear, convolution and embedding layers, over whatever base; or with
            VeRA or RandLoRA.
        num_basis: Coefficients of each factor or diagonal, at most as many as it has numbers; or for each module, by
            what its path ends in (``{"q_proj": 128, "mlp.up_proj": 64}``; of a diagonal ``{"vera_lambda_b": 64}``). The
            other factors are frozen, and must have no delta; other diagonals are trained as they are.
        basis: ``hadamard`` (n log n whatever num_basis is), ``rademacher`` or ``uniform`` (the paper's, dense).
        bits: Width of a coefficient, 1 to 8, rounded in every forward pass (quantization-aware training); None trains
            unrounded and stores 16 bits.
        shared_basis: One basis for all factors of one shape (the paper's shared basis).
        generator: Of the basis, by name.
        seed: Of the generator, 0 to 2^64 - 1.
        keep_basis: Keep a dense basis in memory, 4 bytes an entry, and do not make it again at each step.
        start: ``scratch`` keeps the norm of the tensors' initialisation, ``projection`` is least squares; None is
            ``projection`` where training has begun: some lora_B is not zero.
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
    items = adapted(model, _config(model, name), name)
    if start is None:
        start = "projection" if begun(items) else "scratch"
    counts = {item.name: _count(item.name, num_basis) for item in items}
    if not any(counts.values()):
        raise EncodeError("no layer of the adapter is meant", code="not-parametrized")
    streams: dict[tuple[tuple[int, ...], ...], int] = {}
    for index, item in enumerate(items):
        stream = streams.setdefault(item.shapes, len(streams)) if shared_basis else index
        count = counts[item.name]
        if count is None:
            if len(item.parts) == 1:
                continue  # a diagonal is then trained as it is, and carried
            if all(part.tensor.any() for part in item.parts):
                raise EncodeError("has a delta, and num_basis has nothing for it", code="option", where=item.name)
            for part in item.parts:
                part.tensor.requires_grad_(False)
        ensemble.sites[item.name] = Site(stream, item.shapes, item.scaling, item.layout, item.fan_in_fan_out)
        for part in item.parts if count is not None else ():
            assert count is not None
            tensor = part.tensor
            synthesis = ensemble.synthesis(stream, part.side, tensor.numel(), count, kept=keep_basis)
            tensor.data = tensor.data.float()  # coefficients are trained in single precision
            code = CodedTensor(tensor.shape, torch.float32, synthesis, bits, start, ensemble)
            parametrization.register_parametrization(part.holder, part.attribute, code)
            place: Any = part.holder.parametrizations[part.attribute]  # type: ignore[index]
            ensemble.members.append(Member(item.name, part.side, code, place, "original"))
            _rename_state(part.holder, part.attribute)
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
    stored = dict(trained.header.config)
    _check_config(stored, "the file's configuration")
    import peft

    kind: Any = getattr(peft, PEFT.variant(stored).config_class)
    config = kind(**{key: value for key, value in stored.items() if key in kind.__dataclass_fields__})
    config.inference_mode = False
    made: nn.Module = peft.get_peft_model(model, config, adapter_name=adapter)
    return made


def _parametrize_like(model: nn.Module, trained: Trained) -> None:
    header = trained.header
    records = [record for record in header.coded if record.units]
    if not records:
        raise EncodeError("nothing that was trained in it", code="not-trained")
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
        raise EncodeError("expected a PEFT model with a LoRA, VeRA or RandLoRA adapter", code="not-peft")
    if adapter is None:
        active = model.active_adapter
        adapter = str(active if isinstance(active, str) else active[0])
    if adapter not in configs:
        raise EncodeError(expected("adapter", ", ".join(configs), repr(adapter)), code="not-peft")
    _check_config(_config(model, adapter), f"adapter {adapter}")
    return adapter


def _check_config(config: dict[str, Any], where: str) -> None:
    """Refuse adapters that are none of the three; raises AdapterError as `parse_config` does."""
    PEFT.variant(config).check_config(config, where)


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


def peft_dress(model: nn.Module, state: State) -> Dress:
    """What a file of a PEFT model says besides its coefficients."""
    config, raw = _config(model, state.adapter), _carried(model, state)
    draws = PEFT.variant(config).draws(config, raw)
    drawn = {name: (draws[name], raw.pop(name)) for name in draws}
    return Dress("peft", config, {"format": "pt"}, raw, drawn)


def _config(model: Any, adapter: str) -> dict[str, Any]:
    """The adapter's configuration as `adapter_config.json` would have it."""
    config = model.peft_config[adapter]
    values = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    values["inference_mode"] = True
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _carried(model: nn.Module, state: State) -> dict[str, RawTensor]:
    """What PEFT would save beside what is coded: biases, DoRA magnitudes, modules to save, frozen matrices."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=state.adapter)
    coded = state.ensemble.sites
    return {k: from_torch(v) for k, v in found.items() if k not in coded and _FACTOR.search(k) is None}
