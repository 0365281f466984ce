"""Sections of coded records as packed bytes, ready to be copied to a device.

The processor checks the CRC-32 of each section, and notes what the layout of the bytes depends on. Nothing is unpacked
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nola_codec.container.layers import Allocations
from nola_codec.decoder.coefficients import CheckSteps, block_runs
from nola_codec.entropy import CODECS, lane_steps, raw
from nola_codec.entropy.rans import MAX_LANE_BITS
from nola_codec.errors import FormatError, mismatch
from nola_codec.model.header import Header
from nola_codec.model.quantizers import Runs, SymbolModel

PADDING = 3
"""Bytes of zero behind the last section, since symbols of up to 16 bits are read through three bytes."""


@dataclass(frozen=True)
class PackedSection:
    """The place of one section in `PackedBlocks.data`.

    Attributes:
        codec: The id of the entropy codec.
        start: The place of the first byte.
        length: The number of bytes.
        rans_start: The place of the rANS part, which begins with its lane states; the end of the section if all of its
            symbols are packed bits.
        lane_bits: log2 of the number of lanes of the rANS part.
    """

    codec: int
    start: int
    length: int
    rans_start: int
    lane_bits: int

    @property
    def stop(self) -> int:
        """The place behind the last byte."""
        return self.start + self.length


@dataclass(frozen=True)
class PackedBlocks:
    """Blocks of coded records as bytes, with the places of their sections.

    Attributes:
        blocks: The numbers of the blocks, ascending.
        sections: For each rung, the section of each block.
        data: The bytes of all sections, and `PADDING` zeros.
    """

    blocks: tuple[int, ...]
    sections: tuple[tuple[PackedSection, ...], ...]
    data: bytes


class Sections(Protocol):
    """A source of stored sections, such as `Container`."""

    def section(self, index: int) -> bytes:
        """Return the stored bytes of a section, with its CRC-32 checked."""
        ...


def pack_blocks(
    source: Sections,
    header: Header,
    blocks: Sequence[int],
    check_steps: CheckSteps = lambda rung, blocks, steps: None,
) -> PackedBlocks:
    """Read the sections of blocks, for all rungs of a header.

    Args:
        source: The open file.
        header: Its header, with the units of every record.
        blocks: The numbers of the blocks, ascending.
        check_steps: Called for each rung.

    Raises:
        FormatError: ``symbols``, ``codec``: A section has a wrong length or an unknown codec.
        ChecksumMismatch: A section is damaged.
    """
    allocations = [rung.allocation for rung in header.rungs]
    models = [quantizer.model for quantizer in header.quantizers]
    starts = block_starts(header)
    parts: list[bytes] = []
    position = 0
    by_rung = []
    for rung in range(len(header.rungs)):
        first = 1 + header.units_section(rung)
        own, steps = [], []
        for block in blocks:
            number = first + block
            runs = _runs_of(header, starts, block, allocations, rung)
            codec, stored = header.sections[number].codec, source.section(number)
            section, data = pack_section(codec, stored, runs, models, position)
            own.append(section)
            steps.append(lane_steps(codec, stored, runs, models))
            parts.append(data)
            position += len(data)
        check_steps(rung, blocks, steps)
        by_rung.append(tuple(own))
    return PackedBlocks(tuple(blocks), tuple(by_rung), b"".join([*parts, bytes(PADDING)]))


def block_starts(header: Header) -> list[int]:
    """Return the number of the first coded record of each block, and the number of all coded records."""
    starts = [0]
    for size in header.blocks:
        starts.append(starts[-1] + size)
    return starts


def _runs_of(header: Header, starts: Sequence[int], block: int, allocations: Allocations, rung: int) -> Runs:
    return block_runs(header.coded[starts[block] : starts[block + 1]], header.quantizers, allocations, rung)


def pack_section(
    codec: int, data: bytes, runs: Runs, models: Sequence[SymbolModel], start: int
) -> tuple[PackedSection, bytes]:
    """Return a section for a device, and its bytes.

    Args:
        codec: The id of the entropy codec.
        data: The section as a file stores it.
        runs: The runs of its symbols.
        models: The models that the runs refer to.
        start: The place that the bytes will have.

    Raises:
        FormatError: ``symbols``, ``codec``.
    """
    if codec not in CODECS:
        raise FormatError(mismatch("entropy codec id", sorted(CODECS), codec), code="codec")
    size = raw.size(runs if codec == raw.id else _without_frequencies(runs, models), models)
    if codec == raw.id:
        if len(data) != size:
            raise FormatError(mismatch("bit-packed symbols", f"{size} bytes", len(data)), code="symbols")
        return PackedSection(codec, start, size, start + size, 0), data
    if len(data) <= size:
        raise FormatError(mismatch("rans section", f"more than {size} bytes", len(data)), code="symbols")
    lane_bits = data[size]
    if lane_bits > MAX_LANE_BITS:
        raise FormatError(mismatch("rans lanes (log2)", f"0 to {MAX_LANE_BITS}", lane_bits), code="symbols")
    words = len(data) - size - 1 - (4 << lane_bits)
    if words < 0 or words % 2:
        wanted = f"{size + 1 + (4 << lane_bits)} bytes and whole words"
        raise FormatError(mismatch("rans section", wanted, len(data)), code="symbols")
    return PackedSection(codec, start, len(data), start + size, lane_bits), data


def _without_frequencies(runs: Runs, models: Sequence[SymbolModel]) -> Runs:
    """Return the runs that codec 2 packs as bits."""
    kept = np.array([model.frequencies is None for model in models], bool)[runs.models]
    return Runs(runs.models[kept], runs.lengths[kept])
