"""Records of a file, and the kinds that families of records share (specification, "Records")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from nola_codec.model.adapter import Layout
from nola_codec.model.tensors import DTYPE_BYTES, Draw

Split = Literal["component", "factor"]


@dataclass(frozen=True)
class LowRankKind:
    """What low-rank records of one family share; a file lists each kind once.

    Attributes:
        template: Name with every run of digits replaced by ``#``.
        layout, b_shape, a_shape, scaling, fan_in_fan_out, dtype: As in `LoraModule`.
        basis: Basis id.
        split: ``"component"``: each column of lora_B and each row of lora_A is a vector of its own, one *unit* being
            such a pair. ``"factor"``: each factor is one flat vector, lora_B then lora_A being the two units.
        num_basis: Coefficients of each vector of lora_B and of lora_A.
        tables: Allocation tables of lora_B and of lora_A, as numbers in each rung's `allocation`.
        shift: Added to a unit's precision before these are looked up.
        amplitude: Constant part of the prediction of a unit's amplitude code.
    """

    template: str
    layout: Layout
    b_shape: tuple[int, ...]
    a_shape: tuple[int, ...]
    scaling: float
    fan_in_fan_out: bool
    dtype: str
    basis: int
    split: Split
    num_basis: tuple[int, int]
    tables: tuple[int, int] = (0, 1)
    shift: tuple[int, int] = (0, 0)
    amplitude: int = 0

    @property
    def rank(self) -> int:
        return self.a_shape[0]

    @property
    def rows(self) -> int:
        """out: length of a column of lora_B."""
        return self.b_shape[0]

    @property
    def columns(self) -> int:
        """in, or in * kh * kw: length of a row of lora_A."""
        return int(np.prod(self.a_shape[1:], dtype=np.int64))

    @property
    def vector_lengths(self) -> tuple[int, int]:
        """Length of one vector of lora_B and of lora_A."""
        if self.split == "component":
            return self.rows, self.columns
        return self.rows * self.rank, self.columns * self.rank

    @property
    def elements(self) -> int:
        """Numbers in both factors."""
        return self.rank * (self.rows + self.columns)

    @property
    def most_units(self) -> int:
        return self.rank if self.split == "component" else 2

    def unit_sides(self, unit: int) -> tuple[int, ...]:
        """Sides on which a unit has a vector."""
        return (0, 1) if self.split == "component" else (unit,)

    def vectors(self, units: int) -> int:
        """Vectors of each side of a record with so many units."""
        return units if self.split == "component" else units // 2


@dataclass(frozen=True)
class VectorKind:
    """What vector records of one family share: a low-rank record of one component that has no second side.

    Attributes:
        template: Name with every run of digits replaced by ``#``.
        dtype, shape: Of the tensor.
        basis: Basis id.
        num_basis: Coefficients of the vector.
        tables, shift, amplitude: As in `LowRankKind`.
    """

    template: str
    dtype: str
    shape: tuple[int, ...]
    basis: int
    num_basis: tuple[int]
    tables: tuple[int] = (0,)
    shift: tuple[int] = (0,)
    amplitude: int = 0

    split: ClassVar[Split] = "component"
    most_units: ClassVar[int] = 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def vector_lengths(self) -> tuple[int]:
        return (self.elements,)

    def unit_sides(self, unit: int) -> tuple[int, ...]:
        """Sides on which a unit has a vector."""
        return (0,)

    def vectors(self, units: int) -> int:
        """Vectors of a record with so many units."""
        return units


CodedKind = LowRankKind | VectorKind


@dataclass(frozen=True)
class RawKind:
    """A family of tensors carried as they came."""

    template: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]  # no fixed width: shapes of a damaged file may overflow


@dataclass(frozen=True)
class DrawnKind:
    """A family of tensors that are one draw."""

    template: str
    draw: Draw


Kind = CodedKind | RawKind | DrawnKind


@dataclass(frozen=True)
class CodedRecord:
    """One tensor, or pair of factors, that is coded, as it stands at one rung of a file.

    Attributes:
        name: Module path, or a vector's full key.
        kind: Its family.
        stream: Stream number of its basis; lora_B or a vector uses stream 2 * n, lora_A 2 * n + 1.
        entry: int64 (units,): rung at which each unit came in, ascending.
        exponents: Power of two of each side's int16 form: of lora_B and lora_A, or of the vector.
        precision: int64 (units,), see `LowRankKind`; kept components come first, and what is not kept is zero.
        amplitude: int64 (units,): scale code; of the product or the vector in sixteenths of an octave for
            ``component``, of the factor in thirty-seconds for ``factor``. See `scale_codes`.
    """

    name: str
    kind: CodedKind
    stream: int
    exponents: tuple[int, ...]
    entry: npt.NDArray[np.int64]
    precision: npt.NDArray[np.int64]
    amplitude: npt.NDArray[np.int64]

    @property
    def units(self) -> int:
        return len(self.precision)

    def scale_codes(self, side: int) -> npt.NDArray[np.int64]:
        """Codes E of the vectors of one side, each of which is multiplied by 2^(E / 32), int64 (vectors,)."""
        if self.kind.split == "factor":
            return self.amplitude[side : side + 1]
        return self.amplitude * (2 // len(self.kind.vector_lengths))


@dataclass(frozen=True)
class LowRankRecord(CodedRecord):
    """One adapted weight: a pair of factors."""

    kind: LowRankKind
    exponents: tuple[int, int]


@dataclass(frozen=True)
class VectorRecord(CodedRecord):
    """One tensor coded as a flat vector."""

    kind: VectorKind
    exponents: tuple[int]


@dataclass(frozen=True)
class RawRecord:
    """One tensor carried as it came; its bytes are in a section of its own."""

    name: str
    kind: RawKind


@dataclass(frozen=True)
class DrawnRecord:
    """One tensor that is drawn again; no section has it."""

    name: str
    kind: DrawnKind


Record = CodedRecord | RawRecord | DrawnRecord
