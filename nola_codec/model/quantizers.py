"""Quantizers turn symbols into coefficients: codebooks, trellises, and the statistics that entropy codecs use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Codebook:
    """Integer reconstruction points in ascending order; a symbol is an index into them.

    `form` says how the file spells it:
        ``"symmetric"``: the positive points only; 0 and the mirror images are implied.
        ``"points"``: every point.
        ``"midtread"``: -2^(b-1) .. 2^(b-1) - 1.
        ``"midrise"``: the odd numbers -(2^b - 1) .. 2^b - 1.

    Example: ``Codebook("symmetric", (-31, 0, 31))``.
    """

    form: Literal["symmetric", "points", "midtread", "midrise"]
    points: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.points)

    @property
    def peak(self) -> int:
        return max(abs(self.points[0]), abs(self.points[-1]))

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return count


@dataclass(frozen=True)
class Trellis:
    """Coefficients chosen by a sliding window over the vector's own bits (specification, "Trellis").

    A step of `bits` bits gives `stride` coefficients: coefficient j of a step is levels[i], i being the number spelt by
    the parities of the window under masks[j], the first mask's parity the highest bit.

    Attributes:
        number: Its id in a file.
        bits: Bits of a step, 1 or 2.
        masks: For each coefficient of a step, 8-bit masks.
        levels: The points that a coefficient can take.
    """

    number: int
    bits: int
    masks: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]

    @property
    def stride(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> int:
        """Symbols: one for each value of a step's bits."""
        return 1 << self.bits

    @property
    def peak(self) -> int:
        return max(self.levels)

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return -(-count // self.stride)


@dataclass(frozen=True)
class Dependent:
    """Two symmetric codebooks of one size; the parities of the eight levels before decide which one is used.

    Attributes:
        mask: 8 bits over the window of parities: an even number of ones under it chooses `even`, an odd one `odd`.
        even, odd: Positive points, ascending.
    """

    mask: int
    even: tuple[int, ...]
    odd: tuple[int, ...]

    @property
    def size(self) -> int:
        return 2 * len(self.even) + 1

    @property
    def peak(self) -> int:
        return max(self.even[-1], self.odd[-1])

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return count


Book = Codebook | Trellis | Dependent


@dataclass(frozen=True)
class SymbolModel:
    """An entropy codec's knowledge of a run: the size of the alphabet, and frequencies of 2^12 in total or None."""

    size: int
    frequencies: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Runs:
    """The make-up of a symbol stream: run i has `lengths[i]` symbols of model `models[i]`.

    Both are int64 arrays of one length. The symbols themselves follow one another in the order of the runs.
    """

    models: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Quantizer:
    """A codebook, which turns a vector's symbols into coefficients, and for rANS the frequencies of the symbols."""

    codebook: Book
    frequencies: tuple[int, ...] | None = None

    @property
    def model(self) -> SymbolModel:
        return SymbolModel(self.codebook.size, self.frequencies)
