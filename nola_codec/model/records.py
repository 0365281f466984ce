"""Records of a file, and the kinds that families of records share (specification, "Kinds").

A coded record has sides, and each side is an array with its own basis and coefficients. A pair of factors has two
sides, lora_B and lora_A, and a vector has one. There is no other difference between pairs and vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from nola_codec.array_types import Int64Array
from nola_codec.model.adapter import Layout
from nola_codec.model.tensors import DTYPE_BYTES, Draw

Split = Literal["component", "factor", "difference"]
FORMS: tuple[Split, ...] = ("component", "factor", "difference")
"""The forms of low-rank records, in the order of their numbers in a file."""


@dataclass(frozen=True)
class Side:
    """One array of a coded record: lora_B or lora_A of a pair, or the tensor of a vector record.

    Attributes:
        stored_shape: The shape in the adapter: (out, r[, 1, 1]), (r, in[, kh, kw]), or the tensor's own.
        shape: The shape of the decoded array: (out, r), (r, in * kh * kw), or the tensor's own.
        axis: The dimension of `shape` along which the vectors of the side are counted; None if the side is one vector.
        num_basis: The number of coefficients of each vector.
        table: The number of the side's table in each rung's `allocation`.
        shift: A number that is added to a unit's precision before it is looked up in that table.
    """

    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int | None
    num_basis: int
    table: int = 0
    shift: int = 0

    @property
    def length(self) -> int:
        """The number of elements of one vector."""
        return math.prod(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def elements(self) -> int:
        """The number of elements of the whole side."""
        return math.prod(self.shape)


def coded_sides(
    stored_shapes: Sequence[tuple[int, ...]],
    split: Split = "component",
    num_basis: Sequence[int] | None = None,
    tables: Sequence[int] | None = None,
    shifts: Sequence[int] | None = None,
) -> tuple[Side, ...]:
    """Return the sides of a pair of factors or of a vector.

    Args:
        stored_shapes: (b_shape, a_shape) of a pair, or (shape,) of a vector.
        split: The same as in `CodedKind`.
        num_basis: For each side, the coefficients of a vector; None gives a vector as many as it has elements.
        tables: The allocation table of each side; None numbers the tables from 0.
        shifts: The shift of each side; None stands for 0.

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
        axes = (None, None) if split == "factor" else (1, 0)
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
        template: The name with every run of digits replaced by ``#``.
        dtype: The dtype in the source, one of DTYPES.
        basis: The id of the basis.
        sides: The coded arrays; see `coded_sides`.
        split: The way in which sides are divided into vectors. ``"component"``: each column of lora_B and each row of
            lora_A is a vector, and a *unit* is a column with its row; a vector record has one unit, its tensor.
            ``"factor"``: each factor is one flat vector, and the two units are lora_B and lora_A.
            ``"difference"``: the vectors are those of ``"component"``, and each is a unit of its own, the columns of
            lora_B first; what is decoded is added to the record of the same name in the file's reference.
        amplitude: The constant part of the prediction of a unit's amplitude code.
        layout, scaling, fan_in_fan_out: The same as in `LoraModule` for a pair; a vector has the defaults.
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
        """The number of components that a record can have: the columns of lora_B, or 1 for a vector."""
        return self.sides[0].shape[1] if self.is_pair else 1

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(b_shape, a_shape) of a pair, (shape,) of a vector."""
        return tuple(side.stored_shape for side in self.sides)

    @property
    def product_shape(self) -> tuple[int, int]:
        """The shape (out, in) of lora_B @ lora_A; that of a convolution is flattened to (out, in * kh * kw)."""
        lora_B, lora_A = self.sides
        return lora_B.shape[0], lora_A.shape[1]

    @property
    def num_basis(self) -> tuple[int, ...]:
        """For each side, the number of coefficients of a vector."""
        return tuple(side.num_basis for side in self.sides)

    @property
    def vector_lengths(self) -> tuple[int, ...]:
        """For each side, the length of a vector."""
        return tuple(side.length for side in self.sides)

    @property
    def elements(self) -> int:
        """The number of elements of all sides."""
        return sum(side.elements for side in self.sides)

    @property
    def most_units(self) -> int:
        """The number of units of a record that keeps everything."""
        if self.split == "difference":
            return self.rank * len(self.sides)
        return self.rank if self.split == "component" else len(self.sides)

    @property
    def code_steps(self) -> int:
        """The scale codes in a step of an amplitude code: the octave has 32 of those, and 16 or 32 of these."""
        if self.split == "component":
            return 2 // len(self.sides)  # the scale of a product, or of one vector
        return 1 if self.split == "factor" else 2

    def side_units(self, side: int, units: int) -> range:
        """Return the numbers of the units that have a vector on a side, in the order of the vectors."""
        count = self.vectors(units)
        first = 0 if self.split == "component" else side * count
        return range(first, first + count)

    def vectors(self, units: int) -> int:
        """Return the number of vectors on each side of a record with so many units."""
        return units if self.split == "component" else units // len(self.sides)


@dataclass(frozen=True)
class RawKind:
    """The common properties of a family of carried tensors; the attributes are those of `CodedKind` and `RawTensor`."""

    template: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of one tensor in bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]  # Python integers: shapes of damaged files may be huge


@dataclass(frozen=True)
class DrawnKind:
    """The common properties of a family of drawn tensors, which are all the same draw."""

    template: str
    draw: Draw


Kind = CodedKind | RawKind | DrawnKind


NO_UNITS = cast("Int64Array", ())
"""The units of a record of a header whose units sections were not read: NumPy is not loaded for it."""


@dataclass(frozen=True)
class CodedRecord:
    """One coded tensor or pair of factors, as it is at one rung of a file.

    Attributes:
        name: The module path of a pair, or the full key of a vector.
        kind: The properties that it shares with other records.
        stream: The stream number of its bases; side i uses generator stream 2 * stream + i.
        exponents: For each side, the power of two that its int16 elements are multiplied by.
        entry: int64 (units,): the rung at which each unit starts, ascending.
        precision: int64 (units,): the precision of each unit. Components that are not kept have no unit and decode
            to zero.
        amplitude: int64 (units,): the amplitude of each unit. For ``component`` it is the scale of the product of
            the unit's vectors in sixteenths of an octave, for ``factor`` that of the factor in thirty-seconds, for
            ``difference`` that of the vector in sixteenths.
    """

    name: str
    kind: CodedKind
    stream: int
    exponents: tuple[int, ...]
    entry: Int64Array = NO_UNITS
    precision: Int64Array = NO_UNITS
    amplitude: Int64Array = NO_UNITS

    @property
    def units(self) -> int:
        """The number of units at this rung."""
        return len(self.precision)

    def scale_codes(self, side: int) -> Int64Array:
        """Return the scale codes of a side's vectors, int64 (vectors,); code E multiplies a vector by 2^(E / 32)."""
        own = self.kind.side_units(side, self.units)
        return self.amplitude[own.start : own.stop] * self.kind.code_steps


@dataclass(frozen=True)
class RawRecord:
    """One carried tensor, whose bytes are in a section of their own."""

    name: str
    kind: RawKind


@dataclass(frozen=True)
class DrawnRecord:
    """One drawn tensor, which takes no section."""

    name: str
    kind: DrawnKind


Record = CodedRecord | RawRecord | DrawnRecord
