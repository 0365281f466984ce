"""Round the vectors of an SVD as peers do: to fp16, or to integers with group scales.

A quantizer maps row vectors (m, n) to values and to what a file must hold for each row. Rows are independent, so one
pass over all components serves every choice of which components to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.uint8]

_SHRINKS = (1.0, 0.91, 0.82, 0.73, 0.64)


@dataclass(frozen=True)
class Quantized:
    """Rows after quantization.

    Attributes:
        values: (m, n) reconstruction.
        codes: (m, n') uint8 symbols below ``2**bits``, or None if everything is in `side`.
        bits: The width of a packed symbol.
        side: The other numbers that a row stores, each (m, ...) in its stored dtype.
    """

    values: Floats
    codes: Codes | None
    bits: int
    side: tuple[npt.NDArray[Any], ...] = ()


class Quantizer(Protocol):
    """One way to store a row vector."""

    @property
    def name(self) -> str: ...

    def __call__(self, rows: Floats) -> Quantized: ...


def groups_of(rows: Floats, group: int) -> Floats:
    """(m, n) -> (m, ceil(n / group), group), padded with zeros; ``group = 0`` takes the row as one group."""
    m, n = rows.shape
    group = min(group, n) or n
    return np.pad(rows, ((0, 0), (0, -n % group))).reshape(m, -1, group)


def ungrouped(groups: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Undo `groups_of` for rows of n numbers."""
    return groups.reshape(len(groups), -1)[:, :n]


@dataclass(frozen=True)
class Half:
    """The numbers in fp16."""

    name: str = "fp16"

    def __call__(self, rows: Floats) -> Quantized:
        half = rows.astype(np.float16)
        return Quantized(half.astype(np.float32), None, 0, (half,))


@dataclass(frozen=True)
class Integers:
    """Round to nearest with one fp16 scale a group: symmetric, clip chosen for the least squared error of the group.

    Four bits and more: levels -L..L with L = 2^(bits-1) - 1. Two and three: 2^bits levels at odd halves of a step.
    """

    bits: int
    group: int = 64

    @property
    def name(self) -> str:
        return f"int{self.bits}/g{self.group}"

    def __call__(self, rows: Floats) -> Quantized:
        x = groups_of(rows.astype(np.float32), self.group)
        odd_halves = self.bits < 4
        top = 2 ** (self.bits - 1) - (0.5 if odd_halves else 1)
        best: list[Any] = []
        for shrink in _SHRINKS if self.bits < 8 else _SHRINKS[:1]:
            scale = (np.abs(x).max(2, keepdims=True) * shrink / top).astype(np.float16)
            step = np.where(scale == 0, 1, scale).astype(np.float32)
            levels = np.clip(np.floor(x / step) + np.float32(0.5) if odd_halves else np.rint(x / step), -top, top)
            values = levels * scale.astype(np.float32)
            tried = [((x - values) ** 2).sum(2, keepdims=True), levels, scale, values]
            if not best:
                best = tried
                continue
            better = (tried[0] < best[0])[..., 0]
            for old, new in zip(best, tried, strict=True):
                old[better] = new[better]
        _, levels, scale, values = best
        n = rows.shape[1]
        codes = (ungrouped(levels, n) + top).astype(np.uint8)
        return Quantized(ungrouped(values, n), codes, self.bits, (scale[..., 0],))
