"""Ask the dialect of an adapter about one base model: `WeightShapes`, and the deltas by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nola_codec.adapters import deltas, dialect_of
from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.checkpoints.key_renames import experts_transposed
from nola_codec.merger.matching import is_stored_transposed
from nola_codec.merger.model_names import ModelNames
from nola_codec.merger.plan import BaseWeights
from nola_codec.model.adapter import Adapter


@dataclass(frozen=True)
class WeightShapes:
    """The weights of a base model as a dialect sees them (`adapters.base_model.BaseModel`).

    Attributes:
        shapes: The shape of each weight, by name.
        config: ``config.json`` of the model.
        where: The model's path, for messages.
    """

    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    where: str = ""

    @classmethod
    def of(cls, checkpoint: BaseWeights) -> WeightShapes:
        """Return the weights of a checkpoint, or of a model in memory."""
        shapes = {name: info.shape for name, info in checkpoint.weights.items()}
        return cls(shapes, checkpoint.config, str(checkpoint.directory))

    @property
    def experts_transposed(self) -> bool | None:
        """True if the experts of one tensor are stored (in, out) each, False if (out, in); None if it is not known."""
        return experts_transposed(self.config)

    def find(self, name: str) -> str | None:
        """Return the stored weight that a name means; see `ModelNames`."""
        return self.names.find(name)

    def is_transposed(self, path: str, fan_in_fan_out: bool) -> bool:
        """Return True if the weight of a linear module is stored (in, out); see `is_stored_transposed`."""
        return is_stored_transposed(path, self.config, fan_in_fan_out)

    def tells(self, component: str) -> bool:
        """Return True if prefixes of the names tell a component of a pipeline; see `StoredNames`."""
        return self.names.alike.tells(component)

    @cached_property
    def names(self) -> ModelNames:
        """The weights by name."""
        return ModelNames(self.shapes, self.config)


def grouped_deltas(adapter: Adapter) -> dict[str, list[AdapterDelta]]:
    """Return the deltas of an adapter by name; those that are slices of one weight are together, in order.

    Raises:
        AdapterError: ``foreign-dialect``, or what the dialect raises.
    """
    dialect = dialect_of(adapter)
    found: dict[str, list[tuple[int, AdapterDelta]]] = {}
    for delta in deltas(adapter):
        name, number = dialect.slice_of(delta.name)
        found.setdefault(name, []).append((number, delta))
    return {name: [part for _, part in sorted(parts, key=lambda each: each[0])] for name, parts in found.items()}
