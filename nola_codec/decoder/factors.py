"""Coefficients -> int16 sides of records: synthesis in the basis, then one integer scaling.

All numbers here are exact integers, even where a float dtype holds them. So every device and every batch size gives
the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Array, Arrays, library_for
from nola_codec.basis import BasisKey, Pieces, basis_by_id
from nola_codec.decoder.coefficients import Coefficients
from nola_codec.decoder.joined_sides import join_sides, joinable
from nola_codec.errors import FormatError
from nola_codec.kernels import library
from nola_codec.kernels.sides import rows_to_columns, to_float32
from nola_codec.model.records import CodedRecord, Side
from nola_codec.quant.scales import mantissa_and_shift, require_shifts, scale_to_int16

CHUNK_ELEMENTS = 1 << 20
"""Elements that are synthesized at once by default: 8 MiB of int64."""

LARGEST_PRODUCT = 1 << 62
"""The bound of a synthesized number times a mantissa, which must fit into int64."""
_LONG = 1 << 22
"""The greatest length of a vector that is synthesized whole, at 40 bytes an element; pieces take 8 bytes an element."""
_PIECE = 1 << 20
"""Elements of a piece of a longer vector."""


@dataclass(frozen=True)
class DecodedRecord:
    """The decoded form of a coded record.

    Attributes:
        sides: int16 arrays; the value of side i is sides[i] * 2^exponents[i]. A pair has lora_B (out, r) and
            lora_A (r, in), or (r, in * kh * kw) for a convolution. A vector has one side, in the shape of the tensor.
        exponents: The exponent of the power of two of each side.
        floats: The sides in float32, if they were made together with the record; else None.
    """

    sides: tuple[Array, ...]
    exponents: tuple[int, ...]
    floats: tuple[Array, ...] | None = None

    def float32(self, xp: Arrays) -> tuple[Array, ...]:
        """Return the sides in float32, exact, in the same shapes."""
        if self.floats is not None:
            return self.floats
        lib = library()
        if lib is not None and all(isinstance(side, np.ndarray) for side in self.sides):
            return tuple(to_float32(lib, self.sides, [2.0**exponent for exponent in self.exponents]))
        return tuple(
            (xp.cast(side.reshape(-1), "float32") * 2.0**exponent).reshape(tuple(side.shape))
            for side, exponent in zip(self.sides, self.exponents, strict=True)
        )


class DecodedGroup(NamedTuple):
    """Records that were decoded together.

    Attributes:
        records: The records.
        image: All of them as the decoded SHA-256 takes them, int16 (size,); None if they do not lie side by side.
    """

    records: list[DecodedRecord]
    image: npt.NDArray[np.int16] | None = None


class NumberedGroup(NamedTuple):
    """Records that were decoded together, and their numbers in `Header.coded`."""

    numbers: Sequence[int]
    made: DecodedGroup

    def items(self) -> Iterator[tuple[int, DecodedRecord]]:
        """Return (number, record) of each record."""
        return zip(self.numbers, self.made.records, strict=True)


def synthesize_records(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    *,
    generator: int,
    seed: int,
    xp: Arrays,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> list[DecodedRecord]:
    """Do what `synthesize_group` does, and return the records alone."""
    group = synthesize_group(
        records, coefficients, generator=generator, seed=seed, xp=xp, chunk_elements=chunk_elements
    )
    return group.records


def synthesize_group(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    *,
    generator: int,
    seed: int,
    xp: Arrays,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> DecodedGroup:
    """Turn the coefficients of several records into their sides.

    With the kernels nearly all records are synthesized in one call, and otherwise those of equal shapes together.

    Args:
        records: The records.
        coefficients: The coefficients of each record.
        generator: The id of the generator.
        seed: The seed of the generator, 0 to 2^64 - 1.
        xp: The arrays to make, and their device.
        chunk_elements: The number of elements that are synthesized at once without the kernels; it changes no bit.

    Raises:
        FormatError: ``bound``: a sum may be too large to scale exactly; ``scale``: a scale is out of range.
    """
    lib = library_for(xp)
    is_joined = np.zeros(len(records), bool) if lib is None else joinable(records, coefficients)
    if lib is not None and is_joined.all():
        sides, image = join_sides(lib, records, coefficients, seed)
        return DecodedGroup([DecodedRecord(s, r.exponents) for s, r in zip(sides, records, strict=True)], image)
    made: dict[int, tuple[Array, ...]] = {}
    if lib is not None and is_joined.any():
        joined = np.flatnonzero(is_joined).tolist()
        sides, _ = join_sides(lib, [records[i] for i in joined], [coefficients[i] for i in joined], seed)
        made.update(zip(joined, sides, strict=True))
    left = np.flatnonzero(~is_joined).tolist()
    others = _synthesize_by_shape(
        [records[i] for i in left], [coefficients[i] for i in left], generator, seed, xp, chunk_elements
    )
    made.update(zip(left, others, strict=True))
    return DecodedGroup([DecodedRecord(made[i], record.exponents) for i, record in enumerate(records)])


def with_floats(group: DecodedGroup, xp: Arrays) -> DecodedGroup:
    """Return a group whose records have their float32 form, which NumPy's records get from one call of the kernel."""
    lib = library_for(xp)
    if lib is None:
        return group._replace(records=[replace(record, floats=record.float32(xp)) for record in group.records])
    sides = [side for record in group.records for side in record.sides]
    exponents = [exponent for record in group.records for exponent in record.exponents]
    made = iter(to_float32(lib, sides, [2.0**exponent for exponent in exponents]))
    return group._replace(
        records=[replace(record, floats=tuple(next(made) for _ in record.sides)) for record in group.records]
    )


def _synthesize_by_shape(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    generator: int,
    seed: int,
    xp: Arrays,
    chunk_elements: int,
) -> list[tuple[Array, ...]]:
    """Return the sides of each record. The same side of records of equal shapes is synthesized together."""
    made: list[list[Array]] = [[] for _ in records]
    for side in range(max((len(record.kind.sides) for record in records), default=0)):
        decoded: dict[int, Array] = {}
        for members in _group_by_shape(records, side, xp):
            kind = records[members[0]].kind
            vectors = max(1, *(kind.vectors(records[i].units) for i in members))
            step = max(1, chunk_elements // (kind.sides[side].length * vectors))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                arrays = _synthesize_side(
                    [records[i] for i in part], [coefficients[i] for i in part], side, generator, seed, xp
                )
                decoded.update(zip(part, arrays, strict=True))
        for index, array in decoded.items():
            made[index].append(array)
    return [tuple(own) for own in made]


def _group_by_shape(records: Sequence[CodedRecord], side: int, xp: Arrays) -> list[list[int]]:
    """Return the numbers of the records that have this side, in groups whose synthesis is alike.

    The kernels take records with any number of vectors together; without them the number is the same in a group.
    """
    has_kernels = library_for(xp) is not None
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, record in enumerate(records):
        kind = record.kind
        if side < len(kind.sides):
            own = kind.sides[side]
            vectors = kind.vectors(record.units)
            alike = vectors > 0 if has_kernels else vectors
            key = own.shape, own.axis, own.num_basis, kind.split, kind.basis, alike
            groups.setdefault(key, []).append(index)
    return list(groups.values())


def _synthesize_side(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    side: int,
    generator: int,
    seed: int,
    xp: Arrays,
) -> list[Array]:
    kind = records[0].kind
    own = kind.sides[side]
    length, vectors = own.length, kind.vectors(records[0].units)
    if vectors == 0:
        return [xp.zeros(own.shape, "int16") for _ in records]
    basis = basis_by_id(kind.basis)
    keys = tuple(BasisKey(generator, seed, 2 * record.stream + side) for record in records)
    peak = max(c.peak for c in coefficients)
    bound = basis.bound(length, own.num_basis, peak)
    if bound << 16 >= LARGEST_PRODUCT:
        raise FormatError(f"coefficients of {records[0].name}: sums may reach {bound}, too large to scale exactly",
                          code="bound")  # fmt: skip
    mantissas, shifts = vector_scales(records, side)
    points = [xp.asarray(c.sides[side]) for c in coefficients]  # (vectors, num_basis) each
    scaled = basis.synthesize_compiled(points, length, keys, peak, (mantissas[:, 0], shifts[:, 0]), xp)
    if scaled is not None:
        return [_arrange(rows, own, xp) for rows in scaled]
    counts = [kind.vectors(record.units) for record in records]
    if len(set(counts)) > 1:  # the kernels cannot do these sums
        made: list[Array] = [None] * len(records)
        for count in sorted(set(counts)):
            members = [i for i, other in enumerate(counts) if other == count]
            arrays = _synthesize_side(
                [records[i] for i in members], [coefficients[i] for i in members], side, generator, seed, xp
            )
            for i, array in zip(members, arrays, strict=True):
                made[i] = array
        return made
    pieces = basis.pieces(length, own.num_basis) if length > _LONG else None
    if pieces is not None:
        return [
            _arrange(
                _long_vectors(pieces, length, c.sides[side], c.peak, key, (mantissas[part], shifts[part]), xp), own, xp
            )
            for c, key, part in zip(coefficients, keys, np.split(np.arange(len(shifts)), len(records)), strict=True)
        ]
    values = basis.synthesize(xp.stack(points, 0), length, keys, peak, xp)  # (records, vectors, length)
    rows = scale_to_int16(values.reshape(len(records) * vectors, length), mantissas, shifts, xp)
    rows = rows.reshape(len(records), vectors, length)
    return [_arrange(rows[i], own, xp) for i in range(len(records))]


def _long_vectors(
    pieces: Pieces,
    length: int,
    points: npt.NDArray[np.int32],
    peak: int,
    key: BasisKey,
    scales: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    xp: Arrays,
) -> Array:
    """Synthesize and scale the vectors of one side, a piece at a time. The result is int16 (vectors, length)."""
    rows = []
    for vector, mantissa, shift in zip(points, *scales, strict=True):
        row = xp.zeros((pieces.rows, length // pieces.rows), "int16")
        for start, stop, values in pieces.synthesize(xp.asarray(vector), key, peak, xp, _PIECE):
            row[:, start:stop] = scale_to_int16(values, mantissa[None], shift[None], xp)
        rows.append(row.reshape(length))
    return xp.stack(rows, 0)


def vector_scales(records: Sequence[CodedRecord], side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the mantissas and the shifts of all vectors of one side, int64 (records * vectors, 1) each.

    Raises:
        FormatError: ``scale``.
    """
    codes = np.concatenate([record.scale_codes(side) for record in records])
    exponents = np.repeat([r.exponents[side] for r in records], [r.kind.vectors(r.units) for r in records])
    mantissas, shifts = mantissa_and_shift(codes, exponents)
    owners = np.repeat(np.arange(len(records)), [record.kind.vectors(record.units) for record in records])
    require_shifts(shifts, lambda vector: records[owners[vector]].name)
    return mantissas[:, None], shifts[:, None]


def _arrange(rows: Array, side: Side, xp: Arrays) -> Array:
    """Put vectors (vectors, length) into the array of a side, whose other components are zero."""
    if side.axis is None:
        return rows.reshape(side.shape)  # one vector is the whole side
    if side.axis == 0 and rows.shape[0] == side.shape[0]:
        return rows
    lib = library()
    if side.axis == 1 and lib is not None and isinstance(rows, np.ndarray):
        return rows_to_columns(lib, rows, side.shape[1])  # lora_B (out, r)
    array = xp.zeros(side.shape, "int16")
    if side.axis == 0:
        array[: rows.shape[0]] = rows  # lora_A (r, in)
    else:
        array[:, : rows.shape[0]] = rows.swapaxes(0, 1)  # lora_B (out, r)
    return array
