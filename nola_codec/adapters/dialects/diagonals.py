"""Deltas of two frozen matrices and trained diagonals: VeRA (arXiv 2310.11454) and RandLoRA (arXiv 2502.00987).

    VeRA      delta[p, q] = sum_k (b[p] B[p, k]) (d[k] A[k, q])                      k below r
    RandLoRA  M[p, q] = sum_k B[p, k // r, k mod r] ((lambda[i, n] A[i, 0, q]) gamma[n, q]),   i = k // N, n = k mod N
              delta = M * alpha / r, transposed where the layer has more inputs than outputs; N bases, k below r N

as PEFT computes them (`tuners/vera/layer.py`, `tuners/randlora/layer.py`: both factors are flattened over rank and
bases, in opposite orders). All layers share A and B, as large as the largest of them needs, and use their beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.dialects.lycoris import MAX_ELEMENTS, Composite
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, expected

_MOST_PRODUCTS = 1 << 34
"""Multiplications of a delta up to which what it lost is measured and not estimated."""


@dataclass(frozen=True)
class Method:
    """How one of the two names its tensors.

    Attributes:
        title: For people.
        diagonals: Ends of the keys of a layer's diagonals: of the larger factor, of the smaller.
        projections: Ends of the keys of A and of B.
    """

    title: str
    diagonals: tuple[str, str]
    projections: tuple[str, str]


METHODS: Mapping[str, Method] = {
    "VERA": Method("VeRA", ("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B")),
    "RANDLORA": Method("RandLoRA", ("randlora_lambda", "randlora_gamma"), ("randlora_A", "randlora_B")),
}
"""By PEFT's ``peft_type``."""


@dataclass(frozen=True)
class Diagonals(Composite):
    """The delta of one layer.

    Attributes:
        name: Of the module.
        parts: Names of the diagonals that are coded, of none, one or both.
        scale: 1, or RandLoRA's alpha / r.
        method: ``"VERA"`` or ``"RANDLORA"``.
        carried: The other diagonals, by name.
        lengths: Last dimension of each diagonal, by its key's end.
        lora_A: (r, in), RandLoRA's (r, 1, min); float64, exact.
        lora_B: (out, r), RandLoRA's (max, N, r).
    """

    method: str = "VERA"
    carried: Mapping[str, Float64Array] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    lora_A: Float64Array = field(default_factory=lambda: np.zeros((0, 0)))
    lora_B: Float64Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def measured(self) -> bool:
        """Whether the delta can be made often enough to measure what it lost."""
        rows, columns = self._widest()
        products = rows * columns * (self.lora_B.size // max(1, self.lora_B.shape[0]))
        return rows * columns <= MAX_ELEMENTS and products <= _MOST_PRODUCTS

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """(out, in) for VeRA, (max, min) for RandLoRA, with the most inputs that A has, or rows that B has."""
        return self._widest()

    def combine(self, values: Mapping[str, npt.NDArray[np.floating]]) -> Float64Array:
        """The delta in `shape`, summed in any order: to measure, not to merge."""
        left, right = self._factors(values, self._widest())
        return left @ right * self.scale

    def squared_distance(
        self, values: Mapping[str, npt.NDArray[np.floating]], others: Mapping[str, npt.NDArray[np.floating]] | None
    ) -> float:
        """Squared Frobenius norm of the delta minus that of other diagonals (None: of nothing), in `shape`."""
        left, right = self._factors(values, self._widest())
        if others is not None:
            second = self._factors(others, self._widest())
            left, right = np.hstack([left, second[0]]), np.vstack([right, -second[1]])
        if 2 * left.shape[1] <= min(self._widest()):  # |L R|^2 = tr(L^T L R R^T)
            return max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))) * self.scale**2
        return float(np.square(left @ right).sum()) * self.scale**2

    def factors(
        self, values: Mapping[str, npt.NDArray[np.floating]], shape: tuple[int, ...]
    ) -> tuple[Float64Array, Float64Array]:
        """Left (out, K) and right (K, in) of a layer, each element rounded as the specification says.

        Args:
            values: The coded diagonals by name.
            shape: (out, in).

        Raises:
            AdapterError: ``bad-shape`` for a layer that the diagonals do not fit.
        """
        if not self.fits(shape):
            message = expected("shape", f"one that {self._describe()} fit", list(shape))
            raise AdapterError(message, code="bad-shape", where=self.name)
        out, inputs = shape
        if self.method == "VERA":
            return self._factors(values, (out, inputs))
        left, right = self._factors(values, (max(shape), min(shape)))
        return (left, right) if inputs <= out else (right.T, left.T)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a layer (out, in) can have these diagonals."""
        if len(shape) != 2:
            return False
        rows, columns = self._widest()
        if self.method == "VERA":
            return shape[0] == rows and shape[1] <= columns
        return min(shape) == columns and max(shape) <= rows

    def _widest(self) -> tuple[int, int]:
        """Rows and columns of the delta of the largest layer that has these diagonals."""
        if self.method == "VERA":
            return self._length(0), int(self.lora_A.shape[1])
        return int(self.lora_B.shape[0]), self._length(1)

    def _length(self, which: int) -> int:
        """Last dimension of a diagonal, coded or not."""
        return self.lengths[METHODS[self.method].diagonals[which]]

    def _describe(self) -> str:
        ends = ", ".join(f"{end} of {length}" for end, length in self.lengths.items())
        return f"{ends}, A {list(self.lora_A.shape)} and B {list(self.lora_B.shape)}"

    def _factors(
        self, values: Mapping[str, npt.NDArray[np.floating]], shape: tuple[int, int]
    ) -> tuple[Float64Array, Float64Array]:
        first, second = (
            np.asarray(self.carried.get(name) if name in self.carried else values[name], np.float64)
            for name in (f"{self.name}.{end}" for end in METHODS[self.method].diagonals)
        )
        rows, columns = shape
        if self.method == "VERA":
            return first[:, None] * self.lora_B[:rows], second[:, None] * self.lora_A[:, :columns]
        bases = first.shape[1]
        left = self.lora_B[:rows, :bases].reshape(rows, -1)
        right = (first[:, :, None] * self.lora_A[:, :, :columns]) * second[None]
        return left, right.reshape(-1, columns)


def gains(
    method: str,
    first: Float64Array,
    second: Float64Array,
    matrices: tuple[Float64Array, Float64Array] | None,
    scale: float,
) -> tuple[float, float]:
    """What an error of each diagonal is multiplied by on its way into the delta: |delta| / |diagonal|, for both.

    Norms of the drawn matrices, whose rows and columns are taken as orthogonal; without them, of what PEFT draws.
    A diagonal of zeros, as training begins with, counts as one of ones.
    """
    first, second = (np.where(x.any(), x, 1.0) for x in (first, second))
    lora_A, lora_B = matrices if matrices is not None else (None, None)
    if method == "VERA":
        rank = len(second)
        # Kaiming's uniform: the variance of A's elements is 2 / in, that of B's 2 / r.
        rows = np.full(rank, 2.0) if lora_A is None else np.square(lora_A).sum(axis=1)
        squares = np.full((len(first), rank), 2.0 / rank) if lora_B is None else np.square(lora_B[: len(first)])
        energy = float(np.square(first) @ squares @ (np.square(second) * rows))
    else:
        columns = second.shape[1]
        squares = np.ones((len(first), columns)) if lora_A is None else np.square(lora_A[:, 0, :columns])
        column = float(columns) if lora_B is None else float(np.square(lora_B).mean() * lora_B.shape[0])
        weights = np.einsum("in,iq,nq->", np.square(first), squares, np.square(second), optimize=True)
        energy = float(weights) * column * scale**2
    norm = float(np.sqrt(energy))
    return norm / float(np.linalg.norm(first)), norm / float(np.linalg.norm(second))
