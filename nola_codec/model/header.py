"""A file's header: everything but coefficients and carried bytes (specification, "Header")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nola_codec.model.quantizers import Quantizer, SymbolModel
from nola_codec.model.records import CodedRecord, DrawnRecord, RawRecord

Allocation = tuple[tuple[int, int, int, int], ...]
"""((precision, quantizer id or -1, offset, weight), ...), precisions ascending.

A vector of precision p uses the last entry not above p: a layer of this quantizer, its coefficients times
2^(weight / 8), or none. The offset is added to the prediction of its amplitude.
"""


@dataclass(frozen=True)
class Section:
    """A section's codec id, offset from the start of the data area, stored length, CRC-32 of the stored bytes."""

    codec: int
    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it adds to the rungs before it. Most files have one.

    Attributes:
        allocation: Tables that kinds refer to.
        units: Units of each coded record that are kept at this rung, those of the rungs before included.
        exponents: Of each record's sides, as decoded at this rung.
        side_models: Models of the units section's precisions and amplitudes.
        decoded_sha256: SHA-256 of everything that this rung decodes to.
        measured: What the encoder measured at this rung.
    """

    allocation: tuple[Allocation, ...]
    units: tuple[int, ...]
    exponents: tuple[tuple[int, ...], ...]
    side_models: tuple[SymbolModel, SymbolModel]
    decoded_sha256: bytes
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Header:
    """All of a file but its coefficients and raw tensors (specification, "Header").

    `coded` is the records at the last rung, pairs first. `blocks[i]` is the number of records in block i.
    Sections are: units and blocks of rung 0, the raw tensors, then units and blocks of each further rung.
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

    @cached_property
    def pairs(self) -> tuple[CodedRecord, ...]:
        """The records of two sides; their numbers are those in `coded`."""
        return tuple(record for record in self.coded if record.kind.is_pair)

    @cached_property
    def vectors(self) -> tuple[CodedRecord, ...]:
        """The records of one side, which follow the pairs in `coded`."""
        return tuple(record for record in self.coded if not record.kind.is_pair)

    @property
    def last(self) -> Rung:
        """The finest rung."""
        return self.rungs[-1]

    @property
    def measured(self) -> Mapping[str, float]:
        """What the encoder measured at the last rung."""
        return self.last.measured

    @property
    def decoded_sha256(self) -> bytes:
        """SHA-256 of everything that the last rung decodes to."""
        return self.last.decoded_sha256

    def units_section(self, rung: int) -> int:
        """Number of the section of a rung's units; its blocks follow."""
        return rung * (1 + len(self.blocks)) + (len(self.raw) if rung else 0)

    def sections_at(self, rung: int) -> int:
        """Sections that a reader of this rung needs; they are the first ones."""
        return (rung + 1) * (1 + len(self.blocks)) + len(self.raw)

    def raw_section(self, index: int) -> int:
        """Number of the section of a raw tensor."""
        return 1 + len(self.blocks) + index
