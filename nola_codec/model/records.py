"""Records of a file, and the kinds that families of records share (specification, "Records").

A coded record has sides, each an array with its own basis and coefficients: a pair of factors has two (lora_B, lora_A),
a vector has one. Nothing else tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from nola_codec.model.adapter import Layout
from nola_codec.model.tensors import DTYPE_BYTES, Draw

Split = Literal["component", "factor"]


@dataclass(frozen=True)
class Side:
    """One array of a coded record: lora_B or lora_A of a pair, or the tensor of a vector record.

    Attributes:
        stored_shape: Shape that the adapter stores: (out, r[, 1, 1]), (r, in[, kh, kw]), or the tensor's own.
        shape: Shape of the decoded array: (out, r), (r, in * kh * kw), or the tensor's own.
        axis: Dimension of `shape` along which the vectors of the side are counted; None where one vector is the side.
        num_basis: Coefficients of each vector.
        table: Allocation table, as a number in each rung's `allocation`.
        shift: Added to a unit's precision before it is looked up in that table.
    """

    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int | None
    num_basis: int
    table: int = 0
    shift: int = 0

    @property
    def length(self) -> int:
        """Numbers in one vector."""
        return math.prod(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def elements(self) -> int:
        """Numbers in the whole side."""
        return math.prod(self.shape)


def coded_sides(
    stored_shapes: Sequence[tuple[int, ...]],
    split: Split = "component",
    num_basis: Sequence[int] | None = None,
    tables: Sequence[int] | None = None,
    shifts: Sequence[int] | None = None,
) -> tuple[Side, ...]:
    """Sides of a pair of factors or of a vector.

    Args:
        stored_shapes: (b_shape, a_shape) of a pair, or (shape,) of a vector.
        split: As in `CodedKind`.
        num_basis: Coefficients of a vector, for each side; None gives each as many as it has numbers.
        tables: Allocation table of each side; None numbers them from 0.
        shifts: Shift of each side; None is 0.

    Example:
        >>> [side.length for side in coded_sides([(576, 8), (8, 192)])]
        [576, 192]
        >>> [side.length for side in coded_sides([(576, 8), (8, 192)], split="factor")]
        [4608, 1536]
    """
    shapes = tuple(stored_shapes)
    axes: tuple[int | None, ...] = (None,)
    if len(stored_shapes) == 2:
        b_shape, a_shape = stored_shapes
        shapes = (b_shape[:2], (a_shape[0], math.prod(a_shape[1:])))
        axes = (1, 0) if split == "component" else (None, None)
    sides = []
    for number, (stored_shape, shape, axis) in enumerate(zip(stored_shapes, shapes, axes, strict=True)):
        table = number if tables is None else tables[number]
        side = Side(stored_shape, shape, axis, 0, table, 0 if shifts is None else shifts[number])
        sides.append(replace(side, num_basis=side.length if num_basis is None else num_basis[number]))
    return tuple(sides)


@dataclass(frozen=True)
class CodedKind:
    """The common properties of a family of coded records; a file lists each kind once.

    A kind has two sides, lora_B and lora_A, or one, the tensor of a vector record.

    Attributes:
        template: Name with every run of digits replaced by ``#``.
        dtype: Source dtype, one of DTYPES.
        basis: Basis id.
        sides: The coded arrays; see `coded_sides`.
        split: ``"component"``: each column of lora_B and each row of lora_A is a vector of its own, one *unit* being
            such a pair; a vector record has the one unit that is its tensor. ``"factor"``: each factor is one flat
            vector, lora_B then lora_A being the two units.
        amplitude: Constant part of the prediction of a unit's amplitude code.
        layout, scaling, fan_in_fan_out: As in `LoraModule`, for a pair; a vector keeps the defaults.
    """

    template: str
    dtype: str
    basis: int
    sides: tuple[Side, ...]
    split: Split = "component"
    amplitude: int = 0
    layout: Layout = "linear"
    scaling: float = 1.0
    fan_in_fan_out: bool = False

    @property
    def is_pair(self) -> bool:
        """True for a pair of factors, False for a vector."""
        return len(self.sides) == 2

    @property
    def rank(self) -> int:
        """Components that the record can have: columns of lora_B; 1 for a vector."""
        return self.sides[0].shape[1] if self.is_pair else 1

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(b_shape, a_shape) of a pair, (shape,) of a vector."""
        return tuple(side.stored_shape for side in self.sides)

    @property
    def product_shape(self) -> tuple[int, int]:
        """(out, in) of lora_B @ lora_A, convolutions flattened to (out, in * kh * kw)."""
        lora_B, lora_A = self.sides
        return lora_B.shape[0], lora_A.shape[1]

    @property
    def num_basis(self) -> tuple[int, ...]:
        """Coefficients of each vector, for each side."""
        return tuple(side.num_basis for side in self.sides)

    @property
    def vector_lengths(self) -> tuple[int, ...]:
        """Length of one vector, for each side."""
        return tuple(side.length for side in self.sides)

    @property
    def elements(self) -> int:
        """Numbers in all sides."""
        return sum(side.elements for side in self.sides)

    @property
    def most_units(self) -> int:
        """Units of a record that keeps everything."""
        return self.rank if self.split == "component" else len(self.sides)

    def unit_sides(self, unit: int) -> tuple[int, ...]:
        """Sides on which a unit has a vector."""
        return tuple(range(len(self.sides))) if self.split == "component" else (unit,)

    def vectors(self, units: int) -> int:
        """Vectors of each side of a record with so many units."""
        return units if self.split == "component" else units // len(self.sides)


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
        stream: Stream number of its basis; side number i uses generator stream 2 * stream + i.
        exponents: Power of two of each side's int16 form.
        entry: int64 (units,): rung at which each unit starts, ascending.
        precision: int64 (units,), see `CodedKind`; kept components come first, and what is not kept is zero.
        amplitude: int64 (units,): scale code; for ``component`` that of the product or the vector in sixteenths of an
            octave, for ``factor`` that of the factor in thirty-seconds. See `scale_codes`.
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
        """Units that are kept at this rung."""
        return len(self.precision)

    def scale_codes(self, side: int) -> npt.NDArray[np.int64]:
        """Codes E of the vectors of one side, each of which is multiplied by 2^(E / 32), int64 (vectors,)."""
        if self.kind.split == "factor":
            return self.amplitude[side : side + 1]
        return self.amplitude * (2 // len(self.kind.sides))


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
