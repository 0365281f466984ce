"""Add decoded records to those of the file's reference (specification, "References").

    v = min(32767, max(-32768, d + ((r * gain + 2^(s - 1)) >> s))),   s = min(62, 10 + e - e_ref)

Here d is what the file itself decodes to, r the reference's element, and e and e_ref are the exponents of both. A side
of zeros, such as a factor that was not trained yet, can have a very low exponent; with s = 62 nothing is added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nola_codec.arrays import Array, Arrays
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import FormatError
from nola_codec.model.header import GAIN_BITS, ReferenceEntry
from nola_codec.model.records import CodedKind, CodedRecord
from nola_codec.quant.scales import MAX_SHIFT, MIN_SHIFT

_PIECE = 1 << 22
"""Elements that are added at once in int64."""


class Reference(Protocol):
    """An earlier version of an adapter, from which a file's records are predicted."""

    def decode_named(self, names: Collection[str]) -> Mapping[str, DecodedRecord]:
        """Return the decoded records of these names; names that the reference lacks are left out."""
        ...

    def check(self) -> None:
        """Check, once, that all records are those that its SHA-256 names. Raises ChecksumMismatch, FormatError."""
        ...


@dataclass(frozen=True)
class KnownRecords:
    """A reference whose records are in memory, and whose SHA-256 was compared when it was found.

    Attributes:
        records: The decoded records by name, as NumPy arrays.
        xp: The arrays that they are handed out as.
    """

    records: Mapping[str, DecodedRecord]
    xp: Arrays

    def decode_named(self, names: Collection[str]) -> Mapping[str, DecodedRecord]:
        """Return the records of these names; see `Reference`."""
        found = {name: self.records[name] for name in names if name in self.records}
        return {
            name: DecodedRecord(tuple(self.xp.asarray(side) for side in each.sides), each.exponents)
            for name, each in found.items()
        }

    def check(self) -> None:
        """Do nothing; see `Reference`."""


def missing_reference(entry: ReferenceEntry, advice: str) -> FormatError:
    """Return the error of a file whose reference is not there."""
    what = f"{entry.name!r}, " if entry.name else ""
    kind = "decoded SHA-256" if entry.files else "an adapter that was not coded, SHA-256"
    needed = f"the file holds the difference to an earlier version, and needs it: {what}{kind} {entry.sha256.hex()}"
    return FormatError(f"{needed}; {advice}", code="reference")


def predicted_record(record: CodedRecord, known: Mapping[str, DecodedRecord], xp: Arrays) -> DecodedRecord | None:
    """Return the sides of the reference that are added to a record, in its shapes, or None if nothing is added.

    Components that the reference lacks are zero, and those that the record lacks are left out.

    Raises:
        FormatError: ``reference``: The record needs a record of the reference that is not there, or has other shapes.
    """
    kind, found = record.kind, known.get(record.name)
    if kind.is_pair and kind.split != "difference":
        return None
    fits = found is not None and _fits(kind, found)
    if not kind.is_pair and not fits:
        return None
    if found is None or not fits:
        shapes = "no record of this name" if found is None else f"shapes {[tuple(s.shape) for s in found.sides]}"
        raise FormatError(
            f"reference: expected {record.name} with shapes {[side.shape for side in kind.sides]}, found {shapes}",
            code="reference",
        )
    sides = tuple(
        side if side.shape == own.shape or own.axis is None else _with_components(side, own.shape, own.axis, xp)
        for side, own in zip(found.sides, kind.sides, strict=True)
    )
    return DecodedRecord(sides, found.exponents)


def add_prediction(
    decoded: DecodedRecord, predicted: DecodedRecord, gains: Sequence[int], xp: Arrays, name: str
) -> DecodedRecord:
    """Return a record with its prediction added, exact integers.

    Args:
        decoded: What the file itself decodes to.
        predicted: The sides of the reference, in the same shapes (`predicted_record`).
        gains: The gain of each side.
        xp: The arrays of both.
        name: The name of the record, for errors.

    Raises:
        FormatError: ``scale``: The exponent of the reference is too far above that of the record.
    """
    sides = []
    for own, other, e, e_ref, gain in zip(
        decoded.sides, predicted.sides, decoded.exponents, predicted.exponents, gains, strict=False
    ):
        shift = min(MAX_SHIFT, GAIN_BITS + e - e_ref)
        if shift < MIN_SHIFT:
            raise FormatError(
                f"reference of {name}: expected a shift of {MIN_SHIFT} or more, found {shift}", code="scale"
            )
        sides.append(_add(own, other, gain, shift, xp))
    return DecodedRecord(tuple(sides), decoded.exponents)


def _add(own: Array, other: Array, gain: int, shift: int, xp: Arrays) -> Array:
    shape = tuple(own.shape)
    own, other = own.reshape(-1), other.reshape(-1)
    pieces = []
    for start in range(0, own.shape[0], _PIECE):
        total = xp.cast(other[start : start + _PIECE], "int64") * gain
        total = (total + (1 << (shift - 1))) >> shift
        total = total + xp.cast(own[start : start + _PIECE], "int64")
        pieces.append(xp.cast(xp.clip(total, -32768, 32767), "int16"))
    return xp.concat(pieces, 0).reshape(shape)


def _fits(kind: CodedKind, found: DecodedRecord) -> bool:
    """Return True if a record of the reference has the shapes of a kind; the rank of a pair may differ."""
    if len(found.sides) != len(kind.sides):
        return False
    shapes = [tuple(side.shape) for side in found.sides]
    if not kind.is_pair:
        return shapes[0] == kind.sides[0].shape
    (out, rank), (other, columns) = shapes
    return rank == other and (out, columns) == kind.product_shape


def _with_components(side: Array, shape: tuple[int, ...], axis: int, xp: Arrays) -> Array:
    """Return a side with as many components as a shape has, the missing ones zero."""
    made = xp.zeros(shape, "int16")
    count = min(shape[axis], side.shape[axis])
    if axis == 0:
        made[:count] = side[:count]
    else:
        made[:, :count] = side[:, :count]
    return made
