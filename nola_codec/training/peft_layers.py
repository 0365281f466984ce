"""What PEFT's layers have to train: pairs of factors (LoRA), or diagonals between frozen matrices (VeRA, RandLoRA).

Read against peft 0.21 (`tuners/lora/layer.py`, `tuners/vera/layer.py`, `tuners/randlora/layer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.container.names import natural_key
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Layout


@dataclass(frozen=True)
class Part:
    """One trained tensor.

    Attributes:
        side: 0 lora_B, 1 lora_A; None for a diagonal.
        holder, attribute: The module that has it, and its name there.
    """

    side: int | None
    holder: nn.Module
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        """The parameter."""
        found = self.holder[self.attribute] if isinstance(self.holder, nn.ParameterDict) else None
        tensor: torch.Tensor = getattr(self.holder, self.attribute) if found is None else found
        return tensor


@dataclass(frozen=True)
class Adapted:
    """What makes one record of a file: a layer's pair of factors, or one of its diagonals.

    Attributes:
        name: Of the record.
        parts: lora_B and lora_A; or the diagonal.
        scaling, layout, fan_in_fan_out: As in `LoraModule`.
    """

    name: str
    parts: tuple[Part, ...]
    scaling: float = 1.0
    layout: Layout = "linear"
    fan_in_fan_out: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts."""
        return tuple(tuple(part.tensor.shape) for part in self.parts)


def adapted(model: nn.Module, config: dict[str, Any], adapter: str) -> list[Adapted]:
    """Everything that an adapter trains through its own tensors, in the order of a file's records.

    Raises:
        EncodeError: ``not-peft``: factors on bare parameters.
    """
    diagonals = PEFT.variant(config).diagonals
    found = _diagonals(model, adapter, diagonals) if diagonals else _factors(model, adapter)
    return sorted(found, key=lambda item: natural_key(item.name))


def begun(items: list[Adapted]) -> bool:
    """Whether training has begun: what PEFT makes zero (lora_B, vera_lambda_b, randlora_lambda) is not."""
    first = [item for item in items if item.parts[0].side == 0 or item.name.endswith(("lambda_b", "randlora_lambda"))]
    return any(bool(item.parts[0].tensor.any()) for item in first)


def _diagonals(model: nn.Module, adapter: str, names: tuple[str, ...]) -> Iterator[Adapted]:
    for path, module in model.named_modules():
        for name in names:
            holder = getattr(module, name, None)
            if isinstance(holder, nn.ParameterDict) and adapter in holder:
                yield Adapted(f"{path}.{name}", (Part(None, holder, adapter),))


def _factors(model: nn.Module, adapter: str) -> Iterator[Adapted]:
    for path, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or adapter not in getattr(layer, "scaling", ()):
            continue
        if type(layer).__name__ == "ParamWrapper":
            message = "factors on bare parameters (experts) cannot be parametrized"
            raise EncodeError(message, code="not-peft", where=path)
        own: Any = layer
        layout: Layout = "linear"
        if adapter in own.lora_embedding_A:
            parts = Part(0, own.lora_embedding_B, adapter), Part(1, own.lora_embedding_A, adapter)
            layout = "embedding"
        else:
            parts = Part(0, own.lora_B[adapter], "weight"), Part(1, own.lora_A[adapter], "weight")
            layout = "linear" if parts[1].tensor.ndim == 2 else "conv"
        swapped = bool(getattr(layer, "fan_in_fan_out", False))
        yield Adapted(path, parts, float(own.scaling[adapter]), layout, swapped)
