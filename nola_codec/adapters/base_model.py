"""Describe a base model to a dialect (`BaseModel`), and the place that a delta needs in it (`MergeTarget`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nola_codec.adapters.adapter_delta import CHANGE_SUFFIX, AdapterDelta
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Layout, LoraModule


class BaseModel(Protocol):
    """The names and shapes of a model's weights, on disk or in memory; `merger.places.WeightShapes` is one."""

    @property
    def where(self) -> str:
        """The model's path, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each weight, by name."""

    @property
    def experts_transposed(self) -> bool | None:
        """True if the experts of one tensor are stored (in, out) each, False if (out, in); None if it is not known."""

    def find(self, name: str) -> str | None:
        """Return the stored weight that a name means; the name may have or lack the outer prefixes of the model.

        None is returned if there is no such weight or more than one.
        """

    def tells(self, component: str) -> bool:
        """Return True if the prefixes of some weights say that they belong to a component of a pipeline."""

    def is_transposed(self, path: str, fan_in_fan_out: bool) -> bool:
        """Return True if the weight of a linear module is stored (in, out).

        Args:
            path: The path of the module.
            fan_in_fan_out: The flag of the adapter's configuration. It counts only if the type of the model does not
                tell.
        """


@dataclass(frozen=True)
class MergeTarget:
    """The tensor that a delta is to be added to, and the shape that the tensor must have.

    Attributes:
        name: The delta's name.
        layout: As in `LoraModule`.
        shape: The delta's shape as a module of that layout holds it: (out, in), (out, in, *kernel) or (vocab, dim).
        scaling: The module's scaling; only a merge of its `lora_B.bias` uses it.
        fan_in_fan_out: True if the configuration says that the weight is stored (in, out).
        weight: The name of the tensor that the delta is added to; empty if PEFT's rules find it by `name`. The name may
            be flattened, and may have or lack outer prefixes.
        reshaped: True if the tensor may have the same rows in another shape, such as a flattened kernel.
        alternatives: Other names that the tensor may have, if it does not have the name `weight`.
    """

    name: str
    layout: Layout
    shape: tuple[int, ...]
    scaling: float = 1.0
    fan_in_fan_out: bool = False
    weight: str = ""
    reshaped: bool = False
    alternatives: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: LoraModule, weight: str = "") -> MergeTarget:
        """Return the target of a module's delta."""
        shape = delta_shape(module.layout, module.a_shape, module.b_shape)
        return cls(module.name, module.layout, shape, module.scaling, module.fan_in_fan_out, weight)


def delta_shape(layout: Layout, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a module's delta from the stored shapes of its factors."""
    if layout == "embedding":
        return (a_shape[1], b_shape[0])
    return (b_shape[0], *a_shape[1:])


def target_of(delta: AdapterDelta, path: str) -> MergeTarget:
    """Return the target of a delta whose module has this path in the base model."""
    weight = f"{path}.{delta.changed_tensor[1]}"
    if delta.product is not None:
        return MergeTarget.of(delta.product, weight)
    # A ``.diff`` may be of a parameter that is not the weight of a module, such as ``query_norm.scale`` of Flux.
    bare = (path,) if not delta.modules and delta.name.endswith(CHANGE_SUFFIX) else ()
    return MergeTarget(delta.name, "linear", delta.shape, weight=weight, reshaped=True, alternatives=bare)


def require_one_component(components: Iterable[str], base: BaseModel) -> None:
    """Raise AdapterError ``merge-components`` if nothing tells apart several components of a pipeline.

    Args:
        components: The component of each delta; an empty string for a name that tells none.
        base: The base model. The names of its weights may tell components by their prefixes.
    """
    found = Counter(components)
    several = [component for component in found if component]
    if len(several) > 1 and not all(base.tells(component) for component in several):
        listed = ", ".join(f"{count} of {component or 'no component'}" for component, count in found.items())
        message = f"deltas of several components of a pipeline ({listed}); give the pipeline's directory as the base"
        raise AdapterError(message, code="merge-components")


_MOST_LISTED = 8


def mismatch_message(problems: Sequence[str], likely: str = "") -> str:
    """Return one message for all parts of an adapter that have no place in a base model.

    Args:
        problems: One line for each part. Only the first few are listed, and the others are counted.
        likely: A clause about the likely cause of all of them.
    """
    head = f"{len(problems)} {'part' if len(problems) == 1 else 'parts'} of the adapter"
    head += f" {'does' if len(problems) == 1 else 'do'} not fit the base model{f' ({likely})' if likely else ''}"
    more = len(problems) - _MOST_LISTED
    listed = [*problems[:_MOST_LISTED], *([f"and {more} more"] if more > 0 else [])]
    return f"{head}:\n  " + "\n  ".join(listed)
