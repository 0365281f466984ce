"""Deltas of two frozen matrices and trained diagonals: the contract of such methods, as in `vera` and `randlora`.

All layers share the matrices A and B. The matrices are as large as the largest layer needs, and each layer uses their
first rows and columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import CombinedDelta, Values
from nola_codec.adapters.dialects.lycoris import MAX_ELEMENTS
from nola_codec.adapters.dialects.peft_draws import DrawRule
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch

_MOST_PRODUCTS = 1 << 34
"""The most multiplications of a delta whose error is measured. The error of a larger delta is estimated."""

Shape = tuple[int, ...]
MatrixPair = tuple[Float64Array, Float64Array]


class DiagonalMethod(ABC):
    """A method that trains diagonals: the names of its tensors, and the way in which it makes a delta of them.

    Attributes:
        peft_type: The name of the method in PEFT's configuration.
        title: The name of the method, for messages.
        config_class: The name of PEFT's class for the configuration.
        diagonals: The ends of the keys of a layer's two diagonals, in the order in which all methods here take them.
        projections: The ends of the keys of A and of B.
        dimensions: The number of dimensions of a diagonal; the matrices have one more.
    """

    peft_type: str
    title: str
    config_class: str
    diagonals: tuple[str, str]
    projections: tuple[str, str]
    dimensions: int

    @abstractmethod
    def scale(self, config: Mapping[str, Any], where: str) -> float:
        """Return the number that every delta is multiplied by. Raises AdapterError ``bad-config``."""

    def note(self, config: Mapping[str, Any]) -> str:
        """Return a sentence for the user about an adapter with this configuration; by default none."""
        return ""

    @abstractmethod
    def draw_rule(self, config: Mapping[str, Any], a_shape: Shape, b_shape: Shape) -> DrawRule:
        """Return how PEFT draws the matrices A and B from a seed."""

    @abstractmethod
    def rank_of(self, first: Shape, second: Shape) -> tuple[int, int]:
        """Return the rank that the shapes of two diagonals tell, and the number (0 or 1) of the one that tells it."""

    @abstractmethod
    def misfit(self, first: Shape, second: Shape, rank: int) -> str | None:
        """Return a message if the shapes of two diagonals of that rank do not fit each other, or None."""

    @abstractmethod
    def are_projections(self, a: Shape, b: Shape) -> bool:
        """Return True if two shapes can be those of A and B, without a dimension of 0."""

    @abstractmethod
    def lie_between(self, first: Shape, second: Shape, a: Shape, b: Shape) -> bool:
        """Return True if diagonals of these shapes fit matrices of these shapes, which `are_projections` accepts."""

    @abstractmethod
    def widest(self, lengths: tuple[int, int], a: Shape, b: Shape) -> tuple[int, int]:
        """Return the rows and columns of the largest delta that these diagonals can make.

        Args:
            lengths: The last dimension of each diagonal.
            a: The shape of A.
            b: The shape of B.
        """

    @abstractmethod
    def fits_layer(self, shape: tuple[int, int], widest: tuple[int, int]) -> bool:
        """Return True if a layer (out, in) can have diagonals for which `widest` returns this."""

    @abstractmethod
    def is_turned(self, shape: tuple[int, int]) -> bool:
        """Return True if the delta of a layer (out, in) is the transpose of the product of `factors`."""

    @abstractmethod
    def factors(self, diagonals: MatrixPair, matrices: MatrixPair, shape: tuple[int, int]) -> MatrixPair:
        """Return left (rows, K) and right (K, columns) in float64, with the roundings of the specification.

        Args:
            diagonals: The two diagonals.
            matrices: A and B.
            shape: (rows, columns) of the product.
        """

    @abstractmethod
    def delta_energy(self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None) -> float:
        """Estimate the squared norm of the delta before `scale`, as if the rows and columns of A and B were orthogonal.

        Args:
            first: The first diagonal.
            second: The second diagonal.
            matrices: A and B; None stands for matrices such as PEFT draws.
        """

    def gains(
        self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None, scale: float
    ) -> tuple[float, float]:
        """Return the gain of each diagonal, |delta| / |diagonal|: the factor from its error to the error of the delta.

        A diagonal of zeros, as at the start of training, counts as a diagonal of ones.
        """
        first, second = (np.where(x.any(), x, 1.0) for x in (first, second))
        norm = float(np.sqrt(self.delta_energy(first, second, matrices) * scale**2))
        return norm / float(np.linalg.norm(first)), norm / float(np.linalg.norm(second))


@dataclass(frozen=True)
class DiagonalDelta(CombinedDelta):
    """The delta of one layer.

    Attributes:
        name: The module's name.
        parts: The names of the diagonals that are coded: none, one or both.
        scale: The number that the delta is multiplied by.
        method: The method that makes the delta.
        carried: The other diagonals, by name.
        lengths: The last dimension of each diagonal, by the end of its key.
        lora_A: The matrix A, float64, exact: (r, in), or RandLoRA's (r, 1, min).
        lora_B: The matrix B: (out, r), or RandLoRA's (max, N, r).
    """

    method: DiagonalMethod
    carried: Mapping[str, Float64Array] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    lora_A: Float64Array = field(default_factory=lambda: np.zeros((0, 0)))
    lora_B: Float64Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def is_measurable(self) -> bool:
        """True if the delta is small enough to be made again whenever its error is measured."""
        rows, columns = self._widest()
        products = rows * columns * (self.lora_B.size // max(1, self.lora_B.shape[0]))
        return rows * columns <= MAX_ELEMENTS and products <= _MOST_PRODUCTS

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the largest delta that these diagonals can make."""
        return self._widest()

    def combine(self, values: Values) -> Float64Array:
        """Return the delta in `shape`, for measuring and not for merging, since the order of its sums is not fixed."""
        left, right = self._factors(values, self._widest())
        return left @ right * self.scale

    def squared_distance(self, values: Values, others: Values | None) -> float:
        """Return the squared norm as in `CombinedDelta`, for deltas in `shape`."""
        left, right = self._factors(values, self._widest())
        if others is not None:
            second = self._factors(others, self._widest())
            left, right = np.hstack([left, second[0]]), np.vstack([right, -second[1]])
        if 2 * left.shape[1] <= min(self._widest()):  # |L R|^2 = tr(L^T L R R^T)
            return max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))) * self.scale**2
        return float(np.square(left @ right).sum()) * self.scale**2

    def factors(self, values: Values, shape: tuple[int, ...]) -> MatrixPair:
        """Return left (out, K) and right (K, in) for a layer; arguments and errors as in `CombinedDelta`."""
        if not self.fits(shape):
            message = mismatch("shape", f"one that fits {self._describe()}", list(shape))
            raise AdapterError(message, code="bad-shape", where=self.name)
        out, inputs = shape
        if not self.method.is_turned((out, inputs)):
            return self._factors(values, (out, inputs))
        left, right = self._factors(values, (inputs, out))
        return right.T, left.T

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a layer (out, in) can have these diagonals."""
        return len(shape) == 2 and self.method.fits_layer((shape[0], shape[1]), self._widest())

    def _widest(self) -> tuple[int, int]:
        first, second = (self.lengths[end] for end in self.method.diagonals)
        return self.method.widest((first, second), self.lora_A.shape, self.lora_B.shape)

    def _describe(self) -> str:
        ends = ", ".join(f"{end} of {length}" for end, length in self.lengths.items())
        return f"{ends}, A {list(self.lora_A.shape)} and B {list(self.lora_B.shape)}"

    def _factors(self, values: Values, shape: tuple[int, int]) -> MatrixPair:
        first, second = (
            np.asarray(self.carried.get(name) if name in self.carried else values[name], np.float64)
            for name in (f"{self.name}.{end}" for end in self.method.diagonals)
        )
        return self.method.factors((first, second), (self.lora_A, self.lora_B), shape)
