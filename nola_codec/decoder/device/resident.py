"""Files whose coded sections stay on a device, as packed bytes, and the rest of them on the processor.

    resident = keep_on_device(container, torch.device("cuda"))     # the container is not needed any more
    with resident.open() as container:
        decoder = Decoder(container, TorchArrays("cuda"), resident=resident.blocks)
        decoder.decode_all()                                       # no coefficient is copied to the device

The header, the units and the carried tensors of a file are read by the processor. They take a small part of it, and
stay there as bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import torch

from nola_codec.container.limits import Limits
from nola_codec.container.reader import Container, open_container
from nola_codec.decoder.coefficients import LaneSteps
from nola_codec.decoder.device.decoding import tensor_of
from nola_codec.decoder.device.packed import PackedBlocks, pack_blocks


@dataclass(frozen=True)
class ResidentBlocks:
    """All blocks of a file on a device, up to one rung.

    Attributes:
        places: The places of their sections; its own data are empty.
        data: The bytes, uint8 (bytes,), as in `PackedBlocks`.
    """

    places: PackedBlocks
    data: torch.Tensor

    def places_of(self, blocks: Sequence[int]) -> PackedBlocks:
        """Return the places of some blocks."""
        return replace(
            self.places,
            blocks=tuple(blocks),
            sections=tuple(tuple(rung[block] for block in blocks) for rung in self.places.sections),
        )


@dataclass(frozen=True)
class ResidentFile:
    """A file in two places.

    Attributes:
        length: The length of the whole file in bytes.
        parts: What the processor reads: (offset in the file, bytes), in the order of the file.
        blocks: What lies on the device.
        rung: The rung at which the file is opened.
        limits: The bounds that it was opened with.
    """

    length: int
    parts: tuple[tuple[int, bytes], ...]
    blocks: ResidentBlocks
    rung: int
    limits: Limits

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in both places."""
        return sum(len(data) for _, data in self.parts) + self.blocks.data.nbytes

    def open(self) -> Container:
        """Open the file, for a `Decoder` that takes the blocks from the device."""
        source = cast("BinaryIO", _PartialFile(self.length, self.parts))
        return open_container(source, self.limits, rung=self.rung)


def keep_on_device(container: Container, device: torch.device) -> ResidentFile:
    """Copy the coded sections of an open file to a device, up to the rung at which it is open.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
    """
    header = container.read_units()
    blocks = range(len(header.blocks))
    packed = pack_blocks(container, header, blocks, LaneSteps(container.limits).check)
    coded = {1 + header.units_section(rung) + block for rung in range(len(header.rungs)) for block in blocks}
    start, whole = container.header_length, container.file_bytes()
    parts = [(0, whole[:start])]
    for number, section in enumerate(header.sections):
        if number not in coded:
            begin = start + section.offset
            parts.append((begin, whole[begin : begin + section.length]))
    return ResidentFile(
        length=len(whole),
        parts=tuple(parts),
        blocks=ResidentBlocks(replace(packed, data=b""), tensor_of(packed.data, device)),
        rung=len(header.rungs) - 1,
        limits=container.limits,
    )


class _PartialFile(io.RawIOBase):
    """A file of which some parts are there. A read ends where its part does; one that begins elsewhere is an error."""

    def __init__(self, length: int, parts: Sequence[tuple[int, bytes]]) -> None:
        self._length, self._parts, self._position = length, parts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = begin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or those up to the end of the part that the position is in."""
        begin = self._position
        end = self._length if size < 0 else min(begin + size, self._length)
        for offset, data in self._parts:
            if offset <= begin < offset + len(data) or begin == end:
                found = data[begin - offset : end - offset] if begin < end else b""
                self._position += len(found)
                return found
        raise ValueError(f"bytes {begin} to {end} of the file lie on the device")
