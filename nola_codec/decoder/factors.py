"""Coefficients -> int16 factors: synthesis in the basis, then one integer scaling (design, section 1).

Nothing here is floating point but exact integers held in floats, so every device and batch gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Array, Arrays
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.decoder.coefficients import Coefficients
from nola_codec.errors import FormatError
from nola_codec.model import LowRankRecord
from nola_codec.quant.scales import MAX_SHIFT, MIN_SHIFT, mantissa_and_shift

CHUNK_ELEMENTS = 1 << 20
"""Elements synthesized at once, unless the caller says otherwise: 8 MiB of int64."""

LARGEST_PRODUCT = 1 << 62


@dataclass(frozen=True)
class Factors:
    """Decoded factors of one record.

    Attributes:
        lora_B: int16 (out, r); its value is lora_B * 2^exponents[0].
        lora_A: int16 (r, in), in * kh * kw for a convolution; its value is lora_A * 2^exponents[1].
        exponents: Powers of two.
    """

    lora_B: Array
    lora_A: Array
    exponents: tuple[int, int]

    def float32(self, xp: Arrays) -> tuple[Array, Array]:
        """(lora_B, lora_A) in float32, exact."""
        return (
            xp.cast(self.lora_B, "float32") * 2.0 ** self.exponents[0],
            xp.cast(self.lora_A, "float32") * 2.0 ** self.exponents[1],
        )


def synthesize_factors(
    records: Sequence[LowRankRecord],
    coefficients: Sequence[Coefficients],
    *,
    generator: int,
    seed: int,
    xp: Arrays,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> list[Factors]:
    """Factors of several records; those of equal shapes are synthesized together, `chunk_elements` at a time."""
    sides: list[list[Array | None]] = [[None] * len(records), [None] * len(records)]
    for side in (0, 1):
        for members in _equal_shapes(records, side):
            length = records[members[0]].kind.vector_lengths[side]
            vectors = max(1, _vectors(records[members[0]]))
            step = max(1, chunk_elements // (length * vectors))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                made = _synthesize_side(
                    [records[i] for i in part], [coefficients[i] for i in part], side, generator, seed, xp
                )
                for index, factor in zip(part, made, strict=True):
                    sides[side][index] = factor
    return [Factors(b, a, record.exponents) for record, b, a in zip(records, sides[0], sides[1], strict=True)]


def _vectors(record: LowRankRecord) -> int:
    """Vectors of one side that a record codes."""
    return record.units if record.kind.split == "component" else record.units // 2


def _equal_shapes(records: Sequence[LowRankRecord], side: int) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, record in enumerate(records):
        kind = record.kind
        split = 0 if kind.split == "component" else 1
        key = (split, kind.basis, kind.vector_lengths[side], kind.num_basis[side], kind.rank, _vectors(record))
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _synthesize_side(
    records: Sequence[LowRankRecord],
    coefficients: Sequence[Coefficients],
    side: int,
    generator: int,
    seed: int,
    xp: Arrays,
) -> list[Array]:
    kind = records[0].kind
    length, vectors = kind.vector_lengths[side], _vectors(records[0])
    if vectors == 0:
        shape = (kind.rows, kind.rank) if side == 0 else (kind.rank, kind.columns)
        return [xp.zeros(shape, "int16") for _ in records]
    basis = basis_by_id(kind.basis)
    keys = tuple(BasisKey(generator, seed, 2 * record.stream + side) for record in records)
    peak = max(c.peak for c in coefficients)
    bound = basis.bound(length, kind.num_basis[side], peak)
    if bound << 16 >= LARGEST_PRODUCT:
        raise FormatError(f"coefficients of {records[0].name}: sums may reach {bound}, too large to scale exactly",
                          code="bound")  # fmt: skip
    points = np.stack([c.b if side == 0 else c.a for c in coefficients])
    values = basis.synthesize(xp.asarray(points), length, keys, peak, xp)
    mantissas, shifts = _scales(records, side)
    scaled = xp.cast(values, "int64").reshape(len(records) * vectors, length)
    scaled *= xp.asarray(mantissas)
    scaled += xp.asarray(np.int64(1) << (shifts - 1))
    scaled >>= xp.asarray(shifts)
    rows = xp.cast(xp.clip(scaled, -32768, 32767), "int16").reshape(len(records), vectors, length)
    return [_shape_factor(rows[i], kind.split == "factor", side, kind.rank, kind.rows, kind.columns, xp)
            for i in range(len(records))]  # fmt: skip


def _scales(records: Sequence[LowRankRecord], side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mantissas and shifts, (records * vectors, 1) each."""
    codes = np.concatenate(
        [r.amplitude if r.kind.split == "component" else r.amplitude[side : side + 1] for r in records]
    )
    exponents = np.repeat([r.exponents[side] for r in records], [_vectors(r) for r in records])
    mantissas, shifts = mantissa_and_shift(codes, exponents)
    if not MIN_SHIFT <= int(shifts.min()) <= int(shifts.max()) <= MAX_SHIFT:
        raise FormatError(
            f"scales of {records[0].name}: expected shifts from {MIN_SHIFT} to {MAX_SHIFT}, "
            f"found {int(shifts.min())} to {int(shifts.max())}", code="scale"
        )  # fmt: skip
    return mantissas[:, None], shifts[:, None]


def _shape_factor(rows: Array, whole: bool, side: int, rank: int, out: int, columns: int, xp: Arrays) -> Array:
    """(vectors, length) -> (out, r) or (r, in), zero for components that were not kept."""
    if whole:
        return rows.reshape((out, rank) if side == 0 else (rank, columns))
    if side == 0:
        factor = xp.zeros((out, rank), "int16")
        factor[:, : rows.shape[0]] = rows.swapaxes(0, 1)
        return factor
    factor = xp.zeros((rank, columns), "int16")
    factor[: rows.shape[0]] = rows
    return factor
