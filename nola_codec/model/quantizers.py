"""Quantizers, which turn symbols into coefficients: codebooks, trellises, and the frequencies for entropy codecs."""

from __future__ import annotations

from dataclasses import dataclass

from nola_codec.array_types import Int64Array


@dataclass(frozen=True)
class Codebook:
    """Integer reconstruction points. A symbol is an index into them.

    Example: ``Codebook((-31, 0, 31))``.

    Attributes:
        points: All points, ascending.
    """

    points: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of symbols."""
        return len(self.points)

    @property
    def peak(self) -> int:
        """The largest magnitude of a point."""
        return max(abs(self.points[0]), abs(self.points[-1]))

    def run(self, count: int) -> int:
        """Return the number of symbols that `count` coefficients take."""
        return count


@dataclass(frozen=True)
class Trellis:
    """A rule that makes coefficients from a sliding window over the bits of a vector (specification, "Quantizers").

    Each step takes `bits` new bits into the window of eight and gives `stride` coefficients. Coefficient j of a step is
    levels[i]. The bits of i are the parities of the window under masks[j], the first mask giving the highest bit.

    Attributes:
        number: The id of the trellis in a file.
        bits: The bits of a step, 1 or 2.
        masks: For each coefficient of a step, one 8-bit mask for each bit of i.
        levels: The points that a coefficient can take.
    """

    number: int
    bits: int
    masks: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]

    @property
    def stride(self) -> int:
        """The number of coefficients of a step."""
        return len(self.masks)

    @property
    def size(self) -> int:
        """The number of symbols: one for each value of a step's bits."""
        return 1 << self.bits

    @property
    def peak(self) -> int:
        """The largest magnitude of a point."""
        return max(self.levels)

    def run(self, count: int) -> int:
        """Return the number of symbols that `count` coefficients take."""
        return -(-count // self.stride)


@dataclass(frozen=True)
class Dependent:
    """Two symmetric codebooks of one size. The parities of the last eight levels decide which one comes next.

    Attributes:
        mask: An 8-bit mask of the window of parities. An even number of ones under it chooses `even`, an odd number
            chooses `odd`.
        even, odd: The positive points of each codebook, ascending.
    """

    mask: int
    even: tuple[int, ...]
    odd: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of symbols."""
        return 2 * len(self.even) + 1

    @property
    def peak(self) -> int:
        """The largest magnitude of a point."""
        return max(self.even[-1], self.odd[-1])

    def run(self, count: int) -> int:
        """Return the number of symbols that `count` coefficients take."""
        return count


Book = Codebook | Trellis | Dependent


@dataclass(frozen=True)
class SymbolModel:
    """Everything that an entropy codec knows about the symbols of a run.

    Attributes:
        size: The size of the alphabet.
        frequencies: A positive integer for each symbol, 2^12 in sum; None if the codec has to do without.
    """

    size: int
    frequencies: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Runs:
    """The runs of a symbol stream, in order: run i has `lengths[i]` symbols of model `models[i]`.

    Attributes:
        models: int64 (runs,): the number of each run's model.
        lengths: int64 (runs,): the number of each run's symbols.
    """

    models: Int64Array
    lengths: Int64Array

    @property
    def total(self) -> int:
        """The number of symbols in all runs."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Quantizer:
    """A codebook, trellis or pair of dependent codebooks, with the frequencies of its symbols.

    Attributes:
        codebook: Turns the symbols of a vector into coefficients.
        frequencies: As in `SymbolModel`.
    """

    codebook: Book
    frequencies: tuple[int, ...] | None = None

    @property
    def model(self) -> SymbolModel:
        """The model of its symbols for an entropy codec."""
        return SymbolModel(self.codebook.size, self.frequencies)
