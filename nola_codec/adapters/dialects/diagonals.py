"""Deltas of two frozen matrices and trained diagonals, whichever method made them; `vera` and `randlora` are two.

All layers share the matrices A and B, which are as large as the largest layer needs; each layer uses their beginning.
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
"""The multiplications of a delta up to which its error is measured and not estimated."""

Shape = tuple[int, ...]
Matrices = tuple[Float64Array, Float64Array]


class DiagonalMethod(ABC):
    """The names of one method's tensors, and the way that it makes a delta of them.

    Attributes:
        peft_type: PEFT's name of the method, in its configuration.
        title: The name of the method, for messages.
        config_class: The name of the class of PEFT that holds its configuration.
        diagonals: The ends of the keys of a layer's diagonals: of the one on the larger side, of the other.
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

    @abstractmethod
    def draw_rule(self, config: Mapping[str, Any], a_shape: Shape, b_shape: Shape) -> DrawRule:
        """Return how PEFT draws the matrices A and B from a seed."""

    @abstractmethod
    def rank_of(self, first: Shape, second: Shape) -> tuple[int, int]:
        """Return the rank that the shapes of two diagonals say, and which of the two says it: 0 or 1."""

    @abstractmethod
    def misfit(self, first: Shape, second: Shape, rank: int) -> str | None:
        """Return what is wrong with the shapes of two diagonals of that rank, or None."""

    @abstractmethod
    def are_projections(self, a: Shape, b: Shape) -> bool:
        """Return True if two shapes are those of A and B, with no size 0."""

    @abstractmethod
    def lie_between(self, first: Shape, second: Shape, a: Shape, b: Shape) -> bool:
        """Return True if diagonals of these shapes fit matrices of these shapes, which `are_projections`."""

    @abstractmethod
    def widest(self, lengths: tuple[int, int], a: Shape, b: Shape) -> tuple[int, int]:
        """Return rows and columns of the delta of the largest layer that has these diagonals.

        Args:
            lengths: The last dimension of each diagonal.
            a: The shape of A.
            b: The shape of B.
        """

    @abstractmethod
    def fits_layer(self, shape: tuple[int, int], widest: tuple[int, int]) -> bool:
        """Return True if a layer (out, in) can have the diagonals whose `widest` this is."""

    @abstractmethod
    def is_turned(self, shape: tuple[int, int]) -> bool:
        """Return True if the delta of a layer (out, in) is the transpose of what `factors` make."""

    @abstractmethod
    def factors(self, diagonals: Matrices, matrices: Matrices, shape: tuple[int, int]) -> Matrices:
        """Return left (rows, K) and right (K, columns), each element rounded as the specification says."""

    @abstractmethod
    def delta_energy(self, first: Float64Array, second: Float64Array, matrices: Matrices | None) -> float:
        """Return the squared norm of the delta before `scale`, the rows and columns of A and B taken as orthogonal.

        Args:
            first: The first diagonal.
            second: The second one.
            matrices: A and B; None stands for what PEFT draws.
        """

    def gains(
        self, first: Float64Array, second: Float64Array, matrices: Matrices | None, scale: float
    ) -> tuple[float, float]:
        """Return by how much an error of each diagonal grows on its way into the delta: |delta| / |diagonal|.

        A diagonal of zeros, as training begins with, counts as one of ones.
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
        lengths: The last dimension of each diagonal, by its key's end.
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
        """True if the delta can be made often enough to measure what it lost."""
        rows, columns = self._widest()
        products = rows * columns * (self.lora_B.size // max(1, self.lora_B.shape[0]))
        return rows * columns <= MAX_ELEMENTS and products <= _MOST_PRODUCTS

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the delta of the largest layer that has these diagonals."""
        return self._widest()

    def combine(self, values: Values) -> Float64Array:
        """Return the delta in `shape`, summed in any order: to measure, not to merge."""
        left, right = self._factors(values, self._widest())
        return left @ right * self.scale

    def squared_distance(self, values: Values, others: Values | None) -> float:
        """Return the squared Frobenius norm of the delta minus that of other diagonals (None: nothing), in `shape`."""
        left, right = self._factors(values, self._widest())
        if others is not None:
            second = self._factors(others, self._widest())
            left, right = np.hstack([left, second[0]]), np.vstack([right, -second[1]])
        if 2 * left.shape[1] <= min(self._widest()):  # |L R|^2 = tr(L^T L R R^T)
            return max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))) * self.scale**2
        return float(np.square(left @ right).sum()) * self.scale**2

    def factors(self, values: Values, shape: tuple[int, ...]) -> Matrices:
        """Return left (out, K) and right (K, in) of a layer; arguments and errors as in `CombinedDelta`."""
        if not self.fits(shape):
            message = mismatch("shape", f"one that {self._describe()} fit", list(shape))
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

    def _factors(self, values: Values, shape: tuple[int, int]) -> Matrices:
        first, second = (
            np.asarray(self.carried.get(name) if name in self.carried else values[name], np.float64)
            for name in (f"{self.name}.{end}" for end in self.method.diagonals)
        )
        return self.method.factors((first, second), (self.lora_A, self.lora_B), shape)
