"""Tensors as files carry them: bytes with a dtype and a shape, or a draw that makes them again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Names of safetensors; the index in this tuple is the id in a file.
DTYPES: tuple[str, ...] = (
    "F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64", "F8_E4M3", "F8_E5M2",
)  # fmt: skip

DTYPE_BYTES: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class RawTensor:
    """A tensor carried as it came: little-endian bytes, row-major.

    Example: ``RawTensor("F32", (576,), data)`` with ``len(data) == 2304``.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


DrawMethod = Literal["uniform", "uniform-fused", "ternary"]


@dataclass(frozen=True)
class Draw:
    """A tensor that a library drew with MT19937 and that is drawn again instead of being stored.

    Specification, "Drawn tensors"; `prng.draws` makes it.

    Attributes:
        shape: Shape of the tensor.
        dtypes: The dtype that is drawn and those it was cast to since ("F32", "F16", "BF16"); the last is the tensor's.
        method: ``"uniform"``: low + u * (high - low), each operation rounded to float32; ``"uniform-fused"``: product
            and sum rounded together. ``"ternary"``: -1 where u < low, 1 where u > high, else 0.
        digits: Low bits of a word that make u: 24, 11 or 8.
        seed: 0 to 2^32 - 1.
        start: Words of the sequence before this tensor's first.
        axis: 0: elements are drawn in row-major order; 1: so are those of each slice along dimension 1, slice by slice.
        low, high: Exact in float32.
        divisor: Number that the drawn values are divided by, or None.
    """

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    method: DrawMethod
    digits: int
    seed: int
    start: int
    axis: int
    low: float
    high: float
    divisor: float | None = None

    @property
    def dtype(self) -> str:
        return self.dtypes[-1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def words(self) -> int:
        """Words of the sequence up to its end."""
        return self.start + self.elements
