"""NOLA on the factors of a PEFT model: `parametrize` and `deparametrize`.

    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    parametrize(model, num_basis=128, bits=4)
    ...                                     # any training loop: Trainer, QLoRA bases, DoRA
    save(model, "task.nola")

`torch.nn.utils.parametrize` makes the weights of the factors functions of their coefficients, so PEFT itself needs no
change. This follows peft 0.21 (`tuners/lora/layer.py`, `utils/save_and_load.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize as parametrization

from nola_codec.errors import EncodeError, mismatch
from nola_codec.training.coded import CodedSide, CodedTensor, Initialization, RecordDescription
from nola_codec.training.coding import Coding, CodingOptions, resolve_coding
from nola_codec.training.group import TensorGroup
from nola_codec.training.peft_layers import (
    AdapterRecord,
    adapter_config,
    find_adapter,
    find_adapter_records,
    has_started,
)
from nola_codec.training.state import TrainingState, attach_state, detach_state, refuse_parametrized, require_state
from nola_codec.training.trained_files import decode_group

if TYPE_CHECKING:
    from typing_extensions import Unpack

NUM_BASIS = 128
"""Coefficients of a factor or diagonal of an adapter, if the coding does not give their number."""
_HANDLES = "_nola_handles"


def parametrize(
    model: nn.Module,
    coding: Coding | None = None,
    *,
    initialization: Initialization | None = None,
    adapter: str | None = None,
    **options: Unpack[CodingOptions],
) -> TensorGroup:
    """Train the LoRA factors of a PEFT model through coefficients over a pseudo-random basis (NOLA, eq. 2).

    Each factor lora_B (out, r) and lora_A (r, in) is one coded vector, reshaped. So is each diagonal (n,) of VeRA and
    RandLoRA. Optimizers made **before** keep working: the parameter object of a factor stays, and holds the
    coefficients (1, num_basis).

        >>> parametrize(model, num_basis=128, bits=4)  # doctest: +SKIP

    Args:
        model: A `PeftModel` with a LoRA adapter on linear, convolution and embedding layers, or with VeRA or RandLoRA.
            The base model may be of any kind.
        coding: The coding of the tensors. Its num_basis may be a mapping from the end of a module's path to a number
            (``{"q_proj": 128, "mlp.up_proj": 64}``; for a diagonal ``{"vera_lambda_b": 64}``). Factors that it does
            not name are frozen, and must not have a delta. Diagonals that it does not name are trained as they are.
        initialization: ``same-norm`` keeps the norm that each tensor was initialized with; ``least-squares`` comes as
            near to the tensor itself as the coefficients can. None is ``least-squares`` if training has started (some
            lora_B is not zero), else ``same-norm``.
        adapter: The name of the adapter; None is the active one.
        options: Fields of `Coding`, in place of those of `coding`.

    Returns:
        The group of coded tensors; `save` and the others also find it at the model.

    Raises:
        EncodeError: ``option``; ``not-peft``; ``parametrized``: the model is parametrized already;
            ``not-parametrized``: no layer is selected.
    """
    chosen = resolve_coding(coding, options)
    if chosen.rank is not None or chosen.form != "nola":
        found = f"rank {chosen.rank}" if chosen.rank is not None else f"form {chosen.form}"
        message = mismatch("coding", "no rank and no form, since the adapter has its own", found)
        raise EncodeError(message, code="option")
    if initialization not in (None, "same-norm", "least-squares"):
        raise EncodeError(mismatch("initialization", "same-norm or least-squares", repr(initialization)), code="option")
    name = find_adapter(model, adapter)
    refuse_parametrized(model)
    records = find_adapter_records(model, adapter_config(model, name), name)
    if initialization is None:
        initialization = "least-squares" if has_started(records) else "same-norm"
    counts = [_num_basis_of(record.name, chosen) for record in records]
    if not any(counts):
        raise EncodeError("no layer of the adapter is selected", code="not-parametrized")
    group = TensorGroup(chosen)
    for record, count, stream in zip(records, counts, _streams(records, chosen.shared_basis), strict=True):
        described = RecordDescription(
            stream, record.shapes, record.scaling, record.layout, record.fan_in_fan_out
        )  # fmt: skip
        if count is not None:
            group.add(record.name, described, _code_record(record, stream, count, group, initialization))
        elif len(record.tensors) == 2:
            _freeze_record(record)
            group.add(record.name, described, ())
        # A diagonal that num_basis does not name is trained as it is, and the file carries it.
    attach_state(model, TrainingState(group, "peft", name))
    return group


def _streams(records: Sequence[AdapterRecord], shared: bool) -> list[int]:
    """Return the generator stream of each record: its number, or if shared one stream for records of equal shapes."""
    if not shared:
        return list(range(len(records)))
    by_shapes: dict[tuple[tuple[int, ...], ...], int] = {}
    return [by_shapes.setdefault(record.shapes, len(by_shapes)) for record in records]


def _code_record(
    record: AdapterRecord, stream: int, num_basis: int, group: TensorGroup, initialization: Initialization
) -> list[CodedSide]:
    """Replace the tensors of a record by their coefficients, and return the sides of the record."""
    sides = []
    for each in record.tensors:
        tensor = each.tensor
        kept = group.coding.keep_basis
        synthesis = group.make_synthesis(stream, each.index, tensor.numel(), num_basis, kept=kept)
        tensor.data = tensor.data.float()  # coefficients are trained in single precision
        coded = CodedTensor(tensor.shape, synthesis, group, initialization)
        parametrization.register_parametrization(each.holder, each.attribute, coded)
        holder: Any = each.holder.parametrizations[each.attribute]  # type: ignore[index]
        sides.append(CodedSide(record.name, each.index, coded, holder, "original"))
        _rename_state(each.holder, each.attribute)
    return sides


def _freeze_record(record: AdapterRecord) -> None:
    """Freeze factors that num_basis does not name. Raises EncodeError ``option`` if their delta is not zero."""
    if all(each.tensor.any() for each in record.tensors):
        raise EncodeError("has a delta, but num_basis does not name it", code="option", where=record.name)
    for each in record.tensors:
        each.tensor.requires_grad_(False)


def deparametrize(model: nn.Module) -> nn.Module:
    """Make a plain PEFT model again: each factor becomes what the file that `save` would write decodes to.

    Returns:
        The model.

    Raises:
        EncodeError: ``not-parametrized``; ``not-peft``: the model was parametrized by `parametrize_weights`.
    """
    state = require_state(model)
    if state.dialect != "peft":
        message = (
            "only an adapter of PEFT can be made plain; `save` the change of weights, and merge that file into the base"
        )
        raise EncodeError(message, code="not-peft")
    for side, tensor in zip(state.group.sides, decode_group(state.group), strict=True):
        owner, attribute = _find_owner(model, side.holder)
        original = side.holder.original
        assert isinstance(original, torch.Tensor)
        device = original.device
        parametrization.remove_parametrizations(owner, attribute, leave_parametrized=False)
        for handle in owner.__dict__.pop(_HANDLES):
            handle.remove()
        with torch.no_grad():
            getattr(owner, attribute).set_(tensor.to(device))
    detach_state(model)
    return model


def _num_basis_of(path: str, coding: Coding) -> int | None:
    """Return the number of coefficients of each tensor of a record; None if the coding does not name the record."""
    if not isinstance(coding.num_basis, Mapping):
        return coding.num_basis_for_all(NUM_BASIS)
    ends = [end for end in coding.num_basis if path == end or path.endswith("." + end)]
    return coding.num_basis[max(ends, key=len)] if ends else None


def _rename_state(holder: nn.Module, attribute: str) -> None:
    """Give coefficients another key in state dicts: ``nola`` in place of ``weight``, or an embedding's own key.

    PEFT removes the name of an adapter from keys that end in ``.<adapter>.<one word>``, and puts it back when it loads.
    So the keys of coefficients have to end in one word too.
    """
    inner = f"parametrizations.{attribute}.original"
    outer = "nola" if attribute == "weight" else attribute

    def shorten_key(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        if prefix + inner in state:
            state[prefix + outer] = state.pop(prefix + inner)

    def lengthen_key(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + outer in state:
            state[prefix + inner] = state.pop(prefix + outer)

    hooked: Any = holder
    handles = [
        hooked.register_state_dict_post_hook(shorten_key),
        hooked.register_load_state_dict_pre_hook(lengthen_key),
    ]
    holder.__dict__[_HANDLES] = handles


def _find_owner(model: nn.Module, parametrizations: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that has these parametrizations, and the name of the tensor in it."""
    for module in model.modules():
        for attribute, found in (getattr(module, "parametrizations", None) or {}).items():
            if found is parametrizations:
                return module, attribute
    raise EncodeError("the parametrization of a factor is not in the model any more", code="not-parametrized")
