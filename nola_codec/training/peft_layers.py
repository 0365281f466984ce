"""Find the tensors that PEFT's layers train: pairs of factors (LoRA), or diagonals of frozen matrices (VeRA, RandLoRA).

This follows peft 0.21 (`tuners/lora/layer.py`, `tuners/vera/layer.py`, `tuners/randlora/layer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.adapters.dialects.peft_attention import delta_scaling
from nola_codec.adapters.dialects.peft_methods import CODED
from nola_codec.container.names import natural_key
from nola_codec.errors import EncodeError, mismatch
from nola_codec.model.adapter import Layout


@dataclass(frozen=True)
class AdapterTensor:
    """One trained tensor of an adapter: one side of a record.

    Attributes:
        index: 0 for lora_B, 1 for lora_A; None for a diagonal.
        holder, attribute: The module that has the tensor, and the name of the tensor in it.
    """

    index: int | None
    holder: nn.Module
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor, a parameter of `holder`."""
        found = self.holder[self.attribute] if isinstance(self.holder, nn.ParameterDict) else None
        tensor: torch.Tensor = getattr(self.holder, self.attribute) if found is None else found
        return tensor


@dataclass(frozen=True)
class AdapterRecord:
    """The tensors of one record of a file: the pair of factors of a layer, or one of its diagonals.

    Attributes:
        name: The name of the record.
        tensors: lora_B (out, r) and lora_A (r, in); or the diagonal (n,).
        scaling, layout, fan_in_fan_out: As in `LoraModule`.
    """

    name: str
    tensors: tuple[AdapterTensor, ...]
    scaling: float = 1.0
    layout: Layout = "linear"
    fan_in_fan_out: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors."""
        return tuple(tuple(each.tensor.shape) for each in self.tensors)


def find_adapter(model: Any, adapter: str | None) -> str:
    """Return the name of an adapter of a PEFT model, after checking that its tensors can be coded.

    Args:
        model: The model.
        adapter: The name of the adapter; None is the active one.

    Raises:
        EncodeError: ``not-peft``: the model is no `PeftModel`, or has no such adapter, or one of another method.
        AdapterError: The method is none that is read, or has an option that `parse_config` refuses.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise EncodeError("expected a PEFT model with a LoRA, VeRA or RandLoRA adapter", code="not-peft")
    active = getattr(model, "active_adapter", None)
    if not hasattr(model, "get_base_model") or active is None:
        # get_peft_model puts the layers of an adapter into the base model itself, and leaves its configuration there.
        message = (
            "this base model already has the layers of an adapter, since get_peft_model puts them into the model that "
            "it is given: use the PeftModel that it returned, or load the base model anew"
        )
        raise EncodeError(message, code="not-peft")
    if adapter is None:
        adapter = str(active if isinstance(active, str) else active[0])
    if adapter not in configs:
        raise EncodeError(mismatch("adapter", ", ".join(configs), repr(adapter)), code="not-peft")
    check_adapter_config(adapter_config(model, adapter), f"adapter {adapter}")
    return adapter


def adapter_config(model: Any, adapter: str) -> dict[str, Any]:
    """Return the configuration of an adapter as PEFT would write it to `adapter_config.json`."""
    config = model.peft_config[adapter]
    values = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    values["inference_mode"] = True
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def check_adapter_config(config: dict[str, Any], where: str) -> None:
    """Refuse adapters that are neither LoRA, VeRA nor RandLoRA.

    Raises:
        EncodeError: ``not-peft``: `encode` codes adapters of the method, but their tensors are no pairs of factors and
            no diagonals.
        AdapterError: as `parse_config`.
    """
    variant, method = PEFT.variant(config), config.get("peft_type")
    if method != "LORA" and method in CODED and not variant.diagonals:
        message = (
            f"an adapter of {method} cannot be trained through coefficients, which takes LoRA, VeRA or RandLoRA; train "
            "it as it is, and encode what PEFT saves"
        )
        raise EncodeError(message, code="not-peft", where=where)
    variant.check_config(config, where)


def find_adapter_records(model: nn.Module, config: dict[str, Any], adapter: str) -> list[AdapterRecord]:
    """Find all trained tensors of an adapter, in the order of the records of a file.

    Raises:
        EncodeError: ``not-peft``: the adapter has factors on bare parameters (experts).
    """
    diagonals = PEFT.variant(config).diagonals
    found = _diagonals(model, adapter, diagonals) if diagonals else _factors(model, adapter)
    return sorted(found, key=lambda item: natural_key(item.name))


def has_started(records: list[AdapterRecord]) -> bool:
    """Return True if training has started.

    It has if some lora_B, vera_lambda_b or randlora_lambda is not zero, since PEFT initializes all of these to zero.
    """
    zeros = ("lambda_b", "randlora_lambda")
    first = [record for record in records if record.tensors[0].index == 0 or record.name.endswith(zeros)]
    return any(bool(record.tensors[0].tensor.any()) for record in first)


def _diagonals(model: nn.Module, adapter: str, names: tuple[str, ...]) -> Iterator[AdapterRecord]:
    for path, module in model.named_modules():
        for name in names:
            holder = getattr(module, name, None)
            if isinstance(holder, nn.ParameterDict) and adapter in holder:
                yield AdapterRecord(f"{path}.{name}", (AdapterTensor(None, holder, adapter),))


def _factors(model: nn.Module, adapter: str) -> Iterator[AdapterRecord]:
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or adapter not in getattr(layer, "scaling", ()):
            continue
        if type(layer).__name__ == "ParamWrapper":
            message = "factors on bare parameters (experts) cannot be parametrized"
            raise EncodeError(message, code="not-peft", where=path)
        own: Any = layer
        layout: Layout = "linear"
        if adapter in own.lora_embedding_A:
            pair = AdapterTensor(0, own.lora_embedding_B, adapter), AdapterTensor(1, own.lora_embedding_A, adapter)
            layout = "embedding"
        else:
            pair = AdapterTensor(0, own.lora_B[adapter], "weight"), AdapterTensor(1, own.lora_A[adapter], "weight")
            layout = "linear" if pair[1].tensor.ndim == 2 else "conv"
        swapped = bool(getattr(layer, "fan_in_fan_out", False))
        yield AdapterRecord(path, pair, delta_scaling(path, float(own.scaling[adapter])), layout, swapped)
