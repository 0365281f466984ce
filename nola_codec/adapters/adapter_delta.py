"""Split an adapter into its deltas, whatever its dialect, for comparing and merging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from nola_codec.array_types import Float64Array
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import Adapter, Codable, LoraModule, VectorTensor

if TYPE_CHECKING:
    import numpy.typing as npt

CHANGE_SUFFIX = ".diff"
"""The end of the name of a vector that is added to the weight of the module named before it."""

_TENSORS: Mapping[str, str] = {
    CHANGE_SUFFIX: "weight", ".diff_b": "bias", ".w_norm": "weight", ".b_norm": "bias", ".diff_m": "modulation",
}  # fmt: skip
"""The tensor of a module that a vector changes, by the end of the vector's name; Wan has ``modulation`` parameters."""


def is_change(name: str) -> bool:
    """Return True for the name of a vector that is added to a tensor of the model."""
    return name.endswith(tuple(_TENSORS))


Values: TypeAlias = "Mapping[str, npt.NDArray[np.floating]]"
"""The exact value of each part, by the part's name: the product lora_B @ lora_A of a module, or a vector's tensor."""


@dataclass(frozen=True)
class CombinedDelta(ABC):
    """A delta that is made of several coded parts, but not as their sum.

    Attributes:
        name: The module's name.
        parts: The names of the modules and vectors that the delta is made of.
        scale: The number that the combination is multiplied by.
    """

    name: str
    parts: tuple[str, ...]
    scale: float

    @property
    def is_measurable(self) -> bool:
        """True if making the delta is cheap enough to do it whenever the encoder measures an error."""
        return True

    @abstractmethod
    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the delta, (out, in[, kernel]), from the shapes of its parts' values."""

    @abstractmethod
    def combine(self, values: Values) -> Float64Array:
        """Return the delta, (out, in[, kernel]).

        Raises:
            AdapterError: ``bad-shape`` for parts that do not fit each other.
        """

    def squared_distance(self, values: Values, others: Values | None) -> float:
        """Return the squared Frobenius norm of a difference: this delta minus the delta of other values of its parts.

        If ``others`` is None, return the squared norm of this delta alone.
        """
        delta = self.combine(values)
        lost = delta if others is None else delta - self.combine(others)
        return float(np.square(lost).sum())

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a layer (out, in) can have this delta.

        This is asked only if the file does not tell the shape of the delta.
        """
        return False

    def factors(self, values: Values, shape: tuple[int, ...]) -> tuple[Float64Array, Float64Array] | None:
        """Return left (out, K) and right (K, in) if the delta is left @ right, summed in the order of K, times `scale`.

        None, the default, means that `combine` makes the delta.

        Args:
            values: The values of the parts.
            shape: (out, in) of the layer.

        Raises:
            AdapterError: ``bad-shape`` for a layer that the delta does not fit.
        """
        return None


@dataclass(frozen=True)
class AdapterDelta:
    """The change that one adapter makes to one tensor: a sum of products and tensors, or a combination of its parts.

    Attributes:
        name: The module's path in the adapter's dialect; or the tensor's key, if it is not the weight of a module.
        modules, vectors: The coded parts.
        composite: The combination of the parts; None for their sum, where each product is multiplied by its scaling.
    """

    name: str
    modules: tuple[LoraModule, ...] = ()
    vectors: tuple[VectorTensor, ...] = ()
    composite: CombinedDelta | None = None

    @property
    def product(self) -> LoraModule | None:
        """The module, if the delta is one product and nothing else; None if not."""
        single = len(self.modules) == 1 and not self.vectors and self.composite is None
        return self.modules[0] if single else None

    @property
    def changed_tensor(self) -> tuple[str, str]:
        """The name of the module, and the tensor of it that the delta is added to, such as ``"weight"``."""
        if not self.modules and self.composite is None:
            for ending, tensor in _TENSORS.items():
                if self.name.endswith(ending):
                    return self.name.removesuffix(ending), tensor
        return self.name, "weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that `dense` returns."""
        if self.composite is not None:
            shapes = {m.name: m.vector_lengths for m in self.modules}
            return self.composite.shape({**shapes, **{v.name: v.values.shape for v in self.vectors}})
        return self.modules[0].vector_lengths if self.modules else self.vectors[0].values.shape

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the delta in float64: a matrix (out, in) if it has a product, else in the shape of its parts.

        Raises:
            AdapterError: ``bad-shape`` for parts that do not fit each other.
        """
        if self.composite is not None:
            values = part_values([*self.modules, *self.vectors])
            return self.composite.combine({part: values[part]() for part in self.composite.parts})
        total: npt.NDArray[np.float64] | None = None
        for module in self.modules:
            product = np.asarray(side_product(module.sides) * module.scaling, np.float64)
            total = product if total is None else total + product
        for vector in self.vectors:
            values64 = vector.values.astype(np.float64)
            total = values64 if total is None else total + values64.reshape(total.shape)
        return np.zeros(0) if total is None else total


def split_deltas(adapter: Adapter, combined: Sequence[CombinedDelta]) -> list[AdapterDelta]:
    """Return all deltas of an adapter, in the order of their names.

    Args:
        adapter: The adapter, read or decoded.
        combined: The result of the dialect's `combined_deltas`.
    """
    modules = {m.name: m for m in adapter.modules}
    vectors = {v.name: v for v in adapter.vectors}
    found: dict[str, AdapterDelta] = {}
    taken: set[str] = set()
    for composite in combined:
        taken.update(composite.parts)
        found[composite.name] = AdapterDelta(
            composite.name,
            tuple(modules[part] for part in composite.parts if part in modules),
            tuple(vectors[part] for part in composite.parts if part in vectors),
            composite,
        )
    for name, module in modules.items():
        if name not in taken:
            residue = vectors.get(name + CHANGE_SUFFIX)
            taken.add(name + CHANGE_SUFFIX)
            found[name] = AdapterDelta(name, (module,), () if residue is None else (residue,))
    for name, vector in vectors.items():
        if name not in taken:
            found[name] = AdapterDelta(name, (), (vector,))
    return [found[name] for name in sorted(found)]


def part_values(items: Iterable[Codable]) -> dict[str, Callable[[], npt.NDArray[np.floating]]]:
    """Return by the name of each part a function that makes its value: float64 for a product, float32 for a tensor."""
    return {item.name: partial(side_product, item.sides) for item in items}


def side_product(sides: tuple[npt.NDArray[np.float32], ...]) -> npt.NDArray[np.floating]:
    """Return the product lora_B @ lora_A of a pair in float64, (out, in); or the single side of a tensor, float32."""
    if len(sides) == 1:
        return sides[0]
    return multiply_factors(*sides)


def multiply_factors(lora_B: npt.NDArray[np.float32], lora_A: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return lora_B @ lora_A in float64, (rows, columns); exact for decoded factors, in any order of summation."""
    return np.asarray(lora_B.astype(np.float64) @ lora_A.astype(np.float64))
