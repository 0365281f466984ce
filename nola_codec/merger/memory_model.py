"""A model in memory, seen as a checkpoint: the names, dtypes and shapes of its weights, and its configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.checkpoints.checkpoint import WeightInfo
from nola_codec.errors import AdapterError
from nola_codec.merger.quantized_modules import quantized_parameters

if TYPE_CHECKING:
    import torch

_WRAPPED = ("base_layer", "original_module")
"""The attributes in which the layers of PEFT hold the module that they stand for."""

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class MemoryModel:
    """The weights of a module of PyTorch.

    If PEFT has put adapters into it, these are the weights of the base model, under the names that they have without
    PEFT.

    Attributes:
        parameters: The parameters by name; a parameter that two modules share has two names.
        owners: The module that holds each parameter, if the names of the modules tell it.
        weights: What a `Checkpoint` would tell about each of them.
        config: The configuration of a model of Transformers or Diffusers; empty for other modules.
        quantized: The method of each quantized weight, by name.
        directory: Words for messages.
    """

    directory = Path("the model in memory")

    def __init__(self, model: torch.nn.Module) -> None:
        """Look at a model."""
        model = _base_model(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        wrappers = {path: inner for path, module in modules.items() if (inner := _wrapped(module))}
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.owners: dict[str, torch.nn.Module | None] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            base_name = _base_name(name, wrappers) if wrappers else name
            if base_name is not None:
                self.parameters[base_name] = parameter
                self.owners[base_name] = modules.get(name.rpartition(".")[0])
        self.weights: Mapping[str, WeightInfo] = {
            name: WeightInfo("", dtype_name(weight), tuple(weight.shape)) for name, weight in self.parameters.items()
        }
        config: Any = getattr(model, "config", None)
        told: Any = config.to_dict() if hasattr(config, "to_dict") else config
        plain = dict(told) if isinstance(told, Mapping) else {}
        quantized = quantized_parameters(model, plain)
        self.quantized = {_base_name(name, wrappers) or name: method for name, method in quantized.items()}
        self.config: Mapping[str, Any] = {**plain, "architectures": [type(model).__name__]}

    def require_untied(self, changed: Iterable[tuple[str, str]]) -> None:
        """Refuse to change a weight that another module shares.

        Args:
            changed: The name of each weight that changes, and of the part of the adapter that changes it.

        Raises:
            AdapterError: ``tied-weights``.
        """
        uses = Counter(id(weight) for weight in self.parameters.values())
        for weight, part in changed:
            if uses[id(self.parameters[weight])] > 1:
                raise AdapterError(
                    f"{weight} is tied to another weight, which would change with it; untie them, or merge with "
                    "`decode --base`, which unties them", code="tied-weights", where=part
                )  # fmt: skip


def _base_model(model: Any) -> torch.nn.Module:
    """Return the model inside a `PeftModel`; any other model as it is."""
    inner: torch.nn.Module = model.get_base_model() if _is_of_peft(model) and hasattr(model, "peft_config") else model
    return inner


def _wrapped(module: torch.nn.Module) -> str:
    """Return the attribute in which a layer of PEFT holds the module that it stands for; empty for other modules."""
    return next((name for name in _WRAPPED if hasattr(module, name)), "") if _is_of_peft(module) else ""


def _base_name(name: str, wrappers: Mapping[str, str]) -> str | None:
    """Return the name that a parameter has without PEFT; None for a parameter that PEFT added.

    Args:
        name: The name in the model.
        wrappers: The attribute of each layer of PEFT that holds the module, by the layer's path.
    """
    parts, kept = name.split("."), []
    for number, part in enumerate(parts):
        inner = wrappers.get(".".join(parts[:number]))
        if inner is None:
            kept.append(part)
        elif part != inner:
            return None
    return ".".join(kept)


def _is_of_peft(module: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def dtype_name(weight: torch.Tensor) -> str:
    """Return the name of a tensor's dtype as in `RawTensor`; PyTorch's own name for a dtype that files cannot carry."""
    name = str(weight.dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)
