"""Tensors that are not coded: bytes with a dtype and a shape, or a draw that makes them again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# The names are those of safetensors. The index in this tuple is the id in a file.
DTYPES: tuple[str, ...] = (
    "F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64", "F8_E4M3", "F8_E5M2",
)  # fmt: skip

DTYPE_BYTES: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class RawTensor:
    """A tensor as its bytes: little-endian, in row-major order.

    Example: ``RawTensor("F32", (576,), data)`` with ``len(data) == 2304``.

    Attributes:
        dtype: One of `DTYPES`.
        shape: The shape.
        data: The bytes. A memoryview of single bytes is a view of an array that others may hold too: it saves a copy.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview = field(repr=False)

    def __reduce__(self) -> tuple[type[RawTensor], tuple[str, tuple[int, ...], bytes]]:
        """Copy and pickle the bytes: a memoryview has neither."""
        return RawTensor, (self.dtype, self.shape, bytes(self.data))


DrawMethod = Literal["uniform", "uniform-fused", "ternary"]


@dataclass(frozen=True)
class Draw:
    """A tensor that a library drew with MT19937 and that is drawn again instead of being stored.

    The specification describes it ("Drawn tensors"), and `prng.draws` makes the tensor.

    Attributes:
        shape: The shape of the tensor.
        dtypes: The dtype in which the tensor was drawn, then those that it was cast to ("F32", "F16" or "BF16"). The
            last one is the tensor's own.
        method: The formula of an element. ``"uniform"``: low + u * (high - low), each operation rounded to float32.
            ``"uniform-fused"``: the same with product and sum rounded together. ``"ternary"``: -1 if u < low, 1 if
            u > high, else 0.
        digits: The number of low bits of a word that make u: 24, 11 or 8.
        seed: The seed of MT19937, 0 to 2^32 - 1.
        start: The number of words of the sequence before the first one of this tensor.
        axis: The order of the elements. 0: row-major. 1: slice by slice along dimension 1, each slice row-major.
        low, high: Bounds that float32 holds exactly.
        divisor: The number that the drawn values are divided by, or None.
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
        """The dtype of the tensor."""
        return self.dtypes[-1]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def words(self) -> int:
        """The number of words of the sequence up to the last one of this tensor."""
        return self.start + self.elements
