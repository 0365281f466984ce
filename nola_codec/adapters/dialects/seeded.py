"""Deltas of a few trained numbers and a frozen part that a seed or the base model makes: the contract of such methods.

`unilora`, `tinylora`, `vblora`, `fourierft` and `waveft` follow it. Each method says what the keys of its tensors mean,
which of them a rate may code, and how they make the delta of a layer, as left (out, K) @ right (K, in).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.adapter_delta import CombinedDelta, Values
from nola_codec.adapters.dialects.lycoris import MAX_ELEMENTS
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import to_float64

_MOST_PRODUCTS = 1 << 34
"""The most multiplications of a delta whose error is measured. The error of a larger delta is estimated."""

_INTEGERS: Mapping[str, str] = {"U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

Shape = tuple[int, ...]
MatrixPair = tuple[Float64Array, Float64Array]
Integers = npt.NDArray[np.int64]
MakeFactors = Callable[[Values, tuple[int, int]], MatrixPair]


@dataclass(frozen=True)
class Layer:
    """One layer of an adapter: the tensors that make its delta, and the way in which they do.

    Attributes:
        keys: The keys of the tensors of floats that make the delta.
        shape: (out, in), or None if only the model tells the shape.
        make: The function that returns left (out, K) and right (K, in) in float64, with the same bits on every machine,
            from the values by key and the shape.
        scale: The number that the product of both is multiplied by.
    """

    keys: tuple[str, ...]
    shape: tuple[int, int] | None
    make: MakeFactors
    scale: float = 1.0


class MethodTensors:
    """The tensors of an adapter as a method takes them: floats that may be coded, and carried integers."""

    def __init__(self, adapter: Adapter) -> None:
        """Take the vectors and the carried tensors of an adapter."""
        self._vectors = {vector.name: vector.values for vector in adapter.vectors}
        self._raw = adapter.raw

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each tensor, by key."""
        carried = {key: tensor.shape for key, tensor in self._raw.items()}
        return carried | {key: values.shape for key, values in self._vectors.items()}

    def is_coded(self, key: str) -> bool:
        """Return True if the tensor is a vector, and not carried."""
        return key in self._vectors

    def floats(self, key: str) -> Float64Array:
        """Return a tensor of floats in float64, exact. Raises AdapterError ``not-float``."""
        if key in self._vectors:
            return self._vectors[key].astype(np.float64)
        return to_float64(self._raw[key], where=key)

    def integers(self, key: str, below: int) -> Integers:
        """Return a carried tensor of integers from 0 to below - 1.

        Raises:
            AdapterError: ``bad-shape``: it is no tensor of integers, or has another number.
        """
        tensor = self._raw.get(key)
        dtype = None if tensor is None else _INTEGERS.get(tensor.dtype)
        if tensor is None or dtype is None:
            found = "a coded vector" if tensor is None else tensor.dtype
            raise AdapterError(mismatch("dtype", "integers", found), code="bad-shape", where=key)
        values = np.frombuffer(tensor.data, dtype).astype(np.int64).reshape(tensor.shape)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < below:
            message = mismatch("indices", f"0 to {below - 1}", f"{int(values.min())} to {int(values.max())}")
            raise AdapterError(message, code="bad-shape", where=key)
        return values


class SeededMethod(ABC):
    """A method of PEFT that trains few numbers: the names of its tensors, and the deltas that they make.

    Attributes:
        peft_type: The name of the method in PEFT's configuration.
        title: The name of the method, for messages.
        config_class: The name of PEFT's class for the configuration.
        coded: The pattern of the keys of the tensors that a rate may code; `may_code` may leave out some.
        exact: The pattern of the keys of the tensors of the method that are always carried as they came.
        needs_layer_shape: True if only the layer of the model tells the shape of a delta.
    """

    peft_type: str
    title: str
    config_class: str
    coded: re.Pattern[str]
    exact: re.Pattern[str] = re.compile(r"(?!)")
    needs_layer_shape: bool = False

    def may_code(self, key: str, shape: Shape) -> bool:
        """Return True if a rate may code a tensor; by default that is what `coded` says."""
        return self.coded.fullmatch(key) is not None

    @abstractmethod
    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the entries of a configuration that say how tensors are read. Raises AdapterError ``bad-config``."""

    @abstractmethod
    def check_shapes(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str) -> None:
        """Check that all tensors of the method are there, and have shapes that fit each other and the configuration.

        Raises:
            AdapterError: ``missing-partner``, ``bad-shape``, ``rank-mismatch``.
        """

    @abstractmethod
    def layers(self, tensors: MethodTensors, config: Mapping[str, Any]) -> dict[str, Layer]:
        """Return the layers whose delta the file tells, by the name of the module.

        Raises:
            AdapterError: ``bad-shape``, ``bad-config``.
        """

    @abstractmethod
    def describe_missing(self, tensors: MethodTensors, config: Mapping[str, Any]) -> str:
        """Return what the file lacks of some deltas and what to do for a merge; empty if it lacks nothing."""

    def reduce(self, adapter: Adapter) -> Adapter:
        """Return the adapter in the form that a rate codes; by default unchanged."""
        return adapter


@dataclass(frozen=True)
class SeededDelta(CombinedDelta):
    """The delta of one layer of such a method.

    Attributes:
        name: The module's name.
        parts: The keys of the tensors that are coded, among those of the layer.
        scale: The number that the delta is multiplied by.
        layer: The layer.
        carried: The values of the other tensors of the layer, by key.
        size: The number of elements of the first tensor of the layer.
    """

    layer: Layer
    carried: Mapping[str, Float64Array] = field(default_factory=dict)
    size: int = 0

    @property
    def is_measurable(self) -> bool:
        """True if the delta is small enough to be made again whenever its error is measured."""
        if self.layer.shape is None:
            return True
        rows, columns = self.layer.shape
        return rows * columns <= MAX_ELEMENTS and rows * columns * min(rows, columns) <= _MOST_PRODUCTS

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return (out, in); or the shape of the trained numbers, if only the model tells that of the delta."""
        return self._numbers({}).shape if self.layer.shape is None else self.layer.shape

    def combine(self, values: Values) -> Float64Array:
        """Return the delta in `shape`, for measuring and not for merging.

        If only the model tells the shape of the delta, this is the trained numbers times the scale. Their distances are
        nearly those of deltas, since their frozen part is nearly orthogonal.
        """
        if self.layer.shape is None:
            return self._numbers(values) * self.scale
        left, right = self.layer.make(self._all(values), self.layer.shape)
        return np.asarray(left @ right * self.scale)

    def squared_distance(self, values: Values, others: Values | None) -> float:
        """Return the squared norm as in `CombinedDelta`, for deltas in `shape`."""
        if self.layer.shape is None:
            return super().squared_distance(values, others)
        left, right = self.layer.make(self._all(values), self.layer.shape)
        if others is not None:
            second = self.layer.make(self._all(others), self.layer.shape)
            left, right = np.hstack([left, second[0]]), np.vstack([right, -second[1]])
        if 2 * left.shape[1] <= min(self.layer.shape):  # |L R|^2 = tr(L^T L R R^T)
            return max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))) * self.scale**2
        return float(np.square(left @ right).sum()) * self.scale**2

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a layer (out, in) can have this delta."""
        if self.layer.shape is None:
            return len(shape) == 2 and self._numbers({}).size <= shape[0] * shape[1]
        return tuple(shape) == self.layer.shape

    def factors(self, values: Values, shape: tuple[int, ...]) -> MatrixPair:
        """Return left (out, K) and right (K, in); arguments and errors as in `CombinedDelta`."""
        if not self.fits(shape):
            found = self.layer.shape or f"any with at least {self._numbers({}).size} elements"
            raise AdapterError(mismatch("shape", found, list(shape)), code="bad-shape", where=self.name)
        return self.layer.make(self._all(values), (shape[0], shape[1]))

    def _all(self, values: Values) -> dict[str, Float64Array]:
        return {
            key: self.carried[key] if key in self.carried else np.asarray(values[key], np.float64)
            for key in self.layer.keys
        }

    def _numbers(self, values: Values) -> Float64Array:
        """Return the trained numbers of a layer whose shape is not known; their values do not matter for the shape."""
        (key,) = self.layer.keys
        if key in self.carried:
            return self.carried[key]
        return np.asarray(values.get(key, np.zeros(self.size)), np.float64)


def make_deltas(method: SeededMethod, adapter: Adapter) -> tuple[SeededDelta, ...]:
    """Return the delta of each layer that the file tells, in the order of their names.

    Raises:
        AdapterError: ``bad-shape``, ``bad-config``: the tensors of a stranger's `.nola` file do not fit each other.
    """
    tensors, config = MethodTensors(adapter), adapter.config or {}
    shapes = tensors.shapes
    method.check_config(config, method.title)
    method.check_shapes(shapes, config, method.title)
    exact: dict[str, Float64Array] = {}
    made = []
    for name, layer in sorted(method.layers(tensors, config).items()):
        for key in layer.keys:
            if not tensors.is_coded(key) and key not in exact:
                exact[key] = tensors.floats(key)
        parts = tuple(key for key in layer.keys if tensors.is_coded(key))
        carried = {key: exact[key] for key in layer.keys if key not in parts}
        size = int(np.prod(shapes[layer.keys[0]]))
        made.append(SeededDelta(name, parts, layer.scale, layer, carried, size))
    return tuple(made)


def require_shape(shapes: Mapping[str, Shape], key: str, wanted: Iterable[int | None], where: str) -> Shape:
    """Return the shape of a tensor, after checking it.

    Args:
        shapes: The shape of each tensor, by key.
        key: The key of the tensor.
        wanted: The size of each dimension; None stands for any size but 0.
        where: The file's name, for messages.

    Raises:
        AdapterError: ``missing-partner``: there is no such tensor; ``bad-shape``: it has another shape.
    """
    sizes = tuple(wanted)
    if key not in shapes:
        raise AdapterError("is missing", code="missing-partner", where=f"{where}: {key}")
    shape = shapes[key]
    fits = len(shape) == len(sizes) and all(
        size > 0 and want in (None, size) for size, want in zip(shape, sizes, strict=True)
    )
    if not fits:
        text = "[" + ", ".join("n" if want is None else str(want) for want in sizes) + "]"
        raise AdapterError(mismatch("shape", text, list(shape)), code="bad-shape", where=f"{where}: {key}")
    return shape


def require_flag(config: Mapping[str, Any], option: str, default: bool, where: str) -> bool:
    """Return an option that is true or false. Raises AdapterError ``bad-config``."""
    value = config.get(option, default)
    if not isinstance(value, bool):
        raise AdapterError(mismatch(option, "true or false", value), code="bad-config", where=where)
    return value


def require_seed(config: Mapping[str, Any], option: str, default: int, where: str) -> int:
    """Return an option that is an integer of 64 bits. Raises AdapterError ``bad-config``."""
    value = config.get(option, default)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise AdapterError(mismatch(option, "an integer of 64 bits", value), code="bad-config", where=where)
    return value


def require_count(config: Mapping[str, Any], option: str, default: int, where: str) -> int:
    """Return an option that is an integer from 1 to 2^31. Raises AdapterError ``bad-config``."""
    value = config.get(option, default)
    if type(value) is not int or not 1 <= value <= 1 << 31:
        raise AdapterError(mismatch(option, "an integer from 1 to 2^31", value), code="bad-config", where=where)
    return value


def modules_of(keys: Collection[str], ending: str) -> list[str]:
    """Return the modules that have a tensor with a key of this ending, in the order of their names."""
    return sorted(key.removesuffix(ending) for key in keys if key.endswith(ending))


def with_raw(adapter: Adapter, made: Mapping[str, RawTensor], gone: Collection[str]) -> dict[str, RawTensor]:
    """Return the carried tensors of an adapter with others added and some left out."""
    return {key: tensor for key, tensor in {**adapter.raw, **made}.items() if key not in gone}
