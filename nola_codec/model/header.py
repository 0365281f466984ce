"""The header of a file: everything but coefficients and carried tensors (specification, "Header")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nola_codec.model.adapter import BaseEntry
from nola_codec.model.quantizers import Quantizer
from nola_codec.model.records import CodedRecord, DrawnRecord, RawRecord

Allocation = tuple[tuple[int, int, int], ...]
"""An allocation table: ((precision, quantizer id or -1, weight), ...), precisions ascending.

A vector of precision p uses the last entry whose precision is not above p. The entry gives it a layer of this
quantizer, with coefficients times 2^(weight / 8), or no layer if the id is -1.
"""


@dataclass(frozen=True)
class Section:
    """The entry of a section in the header.

    Attributes:
        codec: The id of its codec.
        offset: The position of its first byte, from the end of the header. It is the sum of the lengths before.
        length: The number of its stored bytes.
        crc32: The CRC-32 of the stored bytes.
    """

    codec: int
    offset: int
    length: int
    crc32: int


GAIN_BITS = 10
GAIN_ONE = 1 << GAIN_BITS
"""The gain of a reference that stands for 1."""
MAX_GAIN = (1 << 15) - 1
"""The largest gain of a reference."""


@dataclass(frozen=True)
class ReferenceEntry:
    """The name of the earlier version that a file is coded against (specification, "References").

    Attributes:
        sha256: The decoded SHA-256 of the reference.
        files: The number of `.nola` files that must be decoded before this one; 0 if the reference is an adapter that
            was never coded.
        gains: The factors on lora_B (and on vectors) and on lora_A of the reference, in units of 1 / GAIN_ONE.
        name: The file name that the reference had, without directories; it helps people, and may be empty.
    """

    sha256: bytes
    files: int
    gains: tuple[int, int]
    name: str = ""


@dataclass(frozen=True)
class Rung:
    """One rung of a file. Most files have one rung.

    The first three come from the rung's units section, and are empty until it is read.

    Attributes:
        allocation: The allocation tables; a side gives the number of its table.
        units: For each coded record, the number of units that it has at this rung, earlier rungs included.
        exponents: For each coded record, the exponents of its sides as decoded at this rung.
        decoded_sha256: The SHA-256 of everything that this rung decodes to.
        measured: The losses that the encoder measured at this rung, by name.
    """

    allocation: tuple[Allocation, ...]
    units: tuple[int, ...]
    exponents: tuple[tuple[int, ...], ...]
    decoded_sha256: bytes
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Header:
    """All of a file but its coefficients and carried tensors (specification, "Header").

    Attributes:
        writer: The name and version of the program that wrote the file.
        dialect: The dialect of the adapter.
        generator: The id of the generator.
        seed: The user's seed, 0 to 2^64 - 1.
        quantizers: All quantizers of the file; allocation tables refer to them by number.
        rungs: The rungs, coarsest first.
        amplitude_slope: The amplitude codes that a prediction rises with each precision.
        coded: The coded records as they are at the last rung, pairs first.
        raw: The records of the carried tensors.
        blocks: The number of coded records in each block.
        sections: The sections in file order: units and blocks of rung 0, the carried tensors, then units and blocks
            of each further rung.
        config: The parsed configuration file of the adapter, or None.
        metadata: The metadata of the adapter's file.
        drawn: The records of the drawn tensors.
        reference: The earlier version that the file is coded against, or None.
        base: The base model that the adapter was trained on; None if the file does not say.
    """

    writer: str
    dialect: str
    generator: int
    seed: int
    quantizers: tuple[Quantizer, ...]
    rungs: tuple[Rung, ...]
    amplitude_slope: int
    coded: tuple[CodedRecord, ...]
    raw: tuple[RawRecord, ...]
    blocks: tuple[int, ...]
    sections: tuple[Section, ...]
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    drawn: tuple[DrawnRecord, ...] = ()
    reference: ReferenceEntry | None = None
    base: BaseEntry | None = None

    @cached_property
    def pairs(self) -> tuple[CodedRecord, ...]:
        """The coded records of two sides, which come first in `coded`."""
        return tuple(record for record in self.coded if record.kind.is_pair)

    @cached_property
    def vectors(self) -> tuple[CodedRecord, ...]:
        """The coded records of one side, which follow the pairs in `coded`."""
        return tuple(record for record in self.coded if not record.kind.is_pair)

    @property
    def last(self) -> Rung:
        """The finest rung."""
        return self.rungs[-1]

    @property
    def measured(self) -> Mapping[str, float]:
        """The losses that the encoder measured at the last rung, by name."""
        return self.last.measured

    @property
    def decoded_sha256(self) -> bytes:
        """The SHA-256 of everything that the last rung decodes to."""
        return self.last.decoded_sha256

    def units_section(self, rung: int) -> int:
        """Return the number of the units section of a rung; the sections of its blocks follow."""
        return rung * (1 + len(self.blocks)) + (len(self.raw) if rung else 0)

    def sections_at(self, rung: int) -> int:
        """Return how many sections, counted from the first, a reader of this rung needs."""
        return (rung + 1) * (1 + len(self.blocks)) + len(self.raw)

    def raw_section(self, index: int) -> int:
        """Return the number of the section of carried tensor `index`."""
        return 1 + len(self.blocks) + index
