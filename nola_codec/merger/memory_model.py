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

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class MemoryModel:
    """The weights of a module of PyTorch.

    Attributes:
        parameters: The parameters by name; a parameter that two modules share has two names.
        weights: What a `Checkpoint` would tell about each of them.
        config: The configuration of a model of Transformers or Diffusers; empty for other modules.
        quantized: The method of each quantized weight, by name.
        directory: Words for messages.
    """

    directory = Path("the model in memory")

    def __init__(self, model: torch.nn.Module) -> None:
        """Look at a model."""
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.weights: Mapping[str, WeightInfo] = {
            name: WeightInfo("", _dtype_name(weight), tuple(weight.shape)) for name, weight in self.parameters.items()
        }
        config: Any = getattr(model, "config", None)
        found: Any = config.to_dict() if hasattr(config, "to_dict") else config
        plain = dict(found) if isinstance(found, Mapping) else {}
        self.quantized = quantized_parameters(model, plain)
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


def _dtype_name(weight: torch.Tensor) -> str:
    name = str(weight.dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)
