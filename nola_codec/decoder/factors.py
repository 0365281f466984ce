"""Coefficients -> int16 factors and vectors: synthesis in the basis, then one integer scaling (design, section 1).

Nothing here is floating point but exact integers held in floats, so every device and batch gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Array, Arrays
from nola_codec.basis import BasisKey, basis_by_id, hadamard
from nola_codec.decoder.coefficients import Coefficients
from nola_codec.errors import FormatError
from nola_codec.model.records import CodedKind, CodedRecord, LowRankKind, VectorKind
from nola_codec.quant.scales import MAX_SHIFT, MIN_SHIFT, mantissa_and_shift

CHUNK_ELEMENTS = 1 << 20
"""Elements synthesized at once, unless the caller says otherwise: 8 MiB of int64."""

LARGEST_PRODUCT = 1 << 62
_SCALED = 1 << 22
"""Elements scaled at once in int64."""
_LONG = 1 << 22
"""Elements of a vector beyond which it is synthesized a piece at a time, in 8 bytes an element and not 40."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class DecodedFactors:
    """Decoded factors of one record.

    Attributes:
        lora_B: int16 (out, r); its value is lora_B * 2^exponents[0].
        lora_A: int16 (r, in), in * kh * kw for a convolution; its value is lora_A * 2^exponents[1].
        exponents: Powers of two.
    """

    lora_B: Array
    lora_A: Array
    exponents: tuple[int, int]

    @property
    def sides(self) -> tuple[Array, Array]:
        """The int16 arrays in the order of a file."""
        return self.lora_B, self.lora_A

    def float32(self, xp: Arrays) -> tuple[Array, Array]:
        """(lora_B, lora_A) in float32, exact."""
        return (
            xp.cast(self.lora_B, "float32") * 2.0 ** self.exponents[0],
            xp.cast(self.lora_A, "float32") * 2.0 ** self.exponents[1],
        )


@dataclass(frozen=True)
class DecodedVector:
    """Decoded values of one vector record.

    Attributes:
        values: int16, in the tensor's shape; its value is values * 2^exponents[0].
        exponents: The power of two.
    """

    values: Array
    exponents: tuple[int]

    @property
    def sides(self) -> tuple[Array]:
        """The int16 array."""
        return (self.values,)

    def float32(self, xp: Arrays) -> Array:
        """The tensor in float32, exact."""
        flat = xp.cast(self.values.reshape(-1), "float32") * 2.0 ** self.exponents[0]
        return flat.reshape(tuple(self.values.shape))


Decoded = DecodedFactors | DecodedVector
"""What a coded record decodes to."""


def synthesize_records(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    *,
    generator: int,
    seed: int,
    xp: Arrays,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> list[Decoded]:
    """Several records decoded; those of equal shapes are synthesized together, `chunk_elements` at a time."""
    sides: list[list[Array | None]] = [[None] * len(records), [None] * len(records)]
    for side in (0, 1):
        for members in _equal_shapes(records, side):
            first = records[members[0]]
            vectors = max(1, first.kind.vectors(first.units))
            step = max(1, chunk_elements // (first.kind.vector_lengths[side] * vectors))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                made = _synthesize_side(
                    [records[i] for i in part], [coefficients[i] for i in part], side, generator, seed, xp
                )
                for index, array in zip(part, made, strict=True):
                    sides[side][index] = array
    decoded: list[Decoded] = []
    for record, b, a in zip(records, sides[0], sides[1], strict=True):
        if isinstance(record.kind, LowRankKind):
            decoded.append(DecodedFactors(b, a, (record.exponents[0], record.exponents[1])))
        else:
            decoded.append(DecodedVector(b, (record.exponents[0],)))
    return decoded


def _equal_shapes(records: Sequence[CodedRecord], side: int) -> list[list[int]]:
    """Numbers of the records that have this side, by what their synthesis depends on."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, record in enumerate(records):
        kind = record.kind
        if side >= len(kind.vector_lengths):
            continue
        key = (
            kind.split, kind.basis, kind.vector_lengths[side], kind.num_basis[side], _shape(kind, side),
            kind.vectors(record.units),
        )  # fmt: skip
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _shape(kind: CodedKind, side: int) -> tuple[int, ...]:
    """Of the array that a side decodes to."""
    if isinstance(kind, LowRankKind):
        return (kind.rows, kind.rank) if side == 0 else (kind.rank, kind.columns)
    return kind.shape


def _synthesize_side(
    records: Sequence[CodedRecord],
    coefficients: Sequence[Coefficients],
    side: int,
    generator: int,
    seed: int,
    xp: Arrays,
) -> list[Array]:
    kind = records[0].kind
    length, vectors = kind.vector_lengths[side], kind.vectors(records[0].units)
    if vectors == 0:
        return [xp.zeros(_shape(kind, side), "int16") for _ in records]
    basis = basis_by_id(kind.basis)
    keys = tuple(BasisKey(generator, seed, 2 * record.stream + side) for record in records)
    peak = max(c.peak for c in coefficients)
    bound = basis.bound(length, kind.num_basis[side], peak)
    if bound << 16 >= LARGEST_PRODUCT:
        raise FormatError(f"coefficients of {records[0].name}: sums may reach {bound}, too large to scale exactly",
                          code="bound")  # fmt: skip
    if length > _LONG and kind.basis == 1 and kind.num_basis[side] == length and hadamard.plan(length)[1] == 1:
        mantissas, shifts = _scales(records, side)
        return [
            _shaped(_long_vectors(c.sides[side], length, key, c.peak, mantissas[own], shifts[own], xp), kind, side, xp)
            for c, key, own in zip(coefficients, keys, np.split(np.arange(len(shifts)), len(records)), strict=True)
        ]
    points = np.stack([c.sides[side] for c in coefficients])
    values = basis.synthesize(xp.asarray(points), length, keys, peak, xp)
    rows = _scaled(values.reshape(len(records) * vectors, length), *_scales(records, side), xp)
    rows = rows.reshape(len(records), vectors, length)
    return [_shaped(rows[i], kind, side, xp) for i in range(len(records))]


def _long_vectors(
    points: npt.NDArray[np.int32],
    length: int,
    key: BasisKey,
    peak: int,
    mantissas: npt.NDArray[np.int64],
    shifts: npt.NDArray[np.int64],
    xp: Arrays,
) -> Array:
    """Vectors of one record in the basis `hadamard`, (vectors, length) in 16 bits, a piece at a time."""
    block = hadamard.plan(length)[0]
    rows = []
    for vector, mantissa, shift in zip(points, mantissas, shifts, strict=True):
        row = xp.zeros((block, length // block), "int16")
        for start, stop, values in hadamard.synthesize_pieces(xp.asarray(vector), length, key, peak, xp, _PIECE):
            row[:, start:stop] = _scaled(values, mantissa[None], shift[None], xp)
        rows.append(row.reshape(length))
    return xp.stack(rows, 0)


def _scaled(values: Array, mantissas: npt.NDArray[np.int64], shifts: npt.NDArray[np.int64], xp: Arrays) -> Array:
    """(y * M + 2^(s - 1)) >> s in 16 bits, piece by piece; values (vectors, length), M and s one or one a vector."""
    pieces = []
    step = max(1, _SCALED // len(values))
    for start in range(0, values.shape[1], step):
        scaled = xp.cast(values[:, start : start + step], "int64")
        scaled = scaled * xp.asarray(mantissas)
        scaled += xp.asarray(np.int64(1) << (shifts - 1))
        scaled >>= xp.asarray(shifts)
        pieces.append(xp.cast(xp.clip(scaled, -32768, 32767), "int16"))
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, 1)


def _scales(records: Sequence[CodedRecord], side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mantissas and shifts, (records * vectors, 1) each."""
    codes = np.concatenate([record.scale_codes(side) for record in records])
    exponents = np.repeat([r.exponents[side] for r in records], [r.kind.vectors(r.units) for r in records])
    mantissas, shifts = mantissa_and_shift(codes, exponents)
    if not MIN_SHIFT <= int(shifts.min()) <= int(shifts.max()) <= MAX_SHIFT:
        raise FormatError(
            f"scales of {records[0].name}: expected shifts from {MIN_SHIFT} to {MAX_SHIFT}, "
            f"found {int(shifts.min())} to {int(shifts.max())}", code="scale"
        )  # fmt: skip
    return mantissas[:, None], shifts[:, None]


def _shaped(rows: Array, kind: CodedKind, side: int, xp: Arrays) -> Array:
    """(vectors, length) -> the array of a side, zero for components that were not kept."""
    shape = _shape(kind, side)
    if isinstance(kind, VectorKind) or kind.split == "factor":
        return rows.reshape(shape)
    factor = xp.zeros(shape, "int16")
    if side == 0:
        factor[:, : rows.shape[0]] = rows.swapaxes(0, 1)
    else:
        factor[: rows.shape[0]] = rows
    return factor
