"""An open container -> decoded records, one record, some or all, on any device."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Arrays
from nola_codec.container.reader import Container
from nola_codec.decoder.coefficients import decode_symbols, record_coefficients
from nola_codec.decoder.factors import CHUNK_ELEMENTS, DecodedRecord, synthesize_records
from nola_codec.errors import ChecksumMismatch
from nola_codec.model.records import CodedRecord
from nola_codec.model.tensors import RawTensor
from nola_codec.parallel import parallel_map
from nola_codec.prng.draws import draw_tensor

_BATCH_SYMBOLS = 48 << 20
"""Coefficients entropy-decoded side by side, 6 bytes each at the peak: wide enough for vectorized rANS."""
_PORTION_SYMBOLS = 1 << 20
"""Coefficients synthesized by one thread at a time."""


class Decoder:
    """Decodes records of a container.

    for index, record in Decoder(container, NUMPY).decode():
        header.coded[index].name, record.sides, record.exponents
    """

    def __init__(self, container: Container, xp: Arrays, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        self.container = container
        self.xp = xp
        self.chunk_elements = chunk_elements
        self.header = container.read_units()
        self._kept: tuple[int, list[list[npt.NDArray[Any]]]] | None = None
        self._allocations = [rung.allocation for rung in self.header.rungs]
        self._starts = np.cumsum([0, *self.header.blocks]).tolist()

    def decode_pairs(self, indexes: Sequence[int] | None = None) -> Iterator[tuple[int, DecodedRecord]]:
        """`decode` the pairs asked for, by their numbers in `Header.pairs`, or all."""
        return self.decode(range(len(self.header.pairs)) if indexes is None else indexes)

    def decode_vectors(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, DecodedRecord]]:
        """`decode` the vectors of these names, or all: (name, decoded)."""
        first, asked = len(self.header.pairs), None if names is None else frozenset(names)
        wanted = [first + i for i, r in enumerate(self.header.vectors) if asked is None or r.name in asked]
        return ((self.header.coded[index].name, item) for index, item in self.decode(wanted))

    def decode(self, indexes: Sequence[int] | None = None) -> Iterator[tuple[int, DecodedRecord]]:
        """Decode the coded records asked for, or all: (number in `Header.coded`, decoded), in ascending order.

        Only the blocks that hold them are read.

        Raises:
            FormatError, ChecksumMismatch: the file is damaged.
        """
        header = self.header
        wanted = set(range(len(header.coded)) if indexes is None else indexes)
        batch: list[int] = []
        weight = 0
        for block in range(len(header.blocks)):
            if not wanted.intersection(range(self._starts[block], self._starts[block + 1])):
                continue
            batch.append(block)
            weight += sum(_coefficient_count(r) for r in self._block(block))
            if weight >= _BATCH_SYMBOLS:
                yield from self._decode_blocks(batch, wanted)
                batch, weight = [], 0
        if batch:
            yield from self._decode_blocks(batch, wanted)

    def symbols(self) -> list[list[npt.NDArray[Any]]]:
        """Decode the symbols of all records, for each those of each rung, as the encoder put them in."""
        return self._symbols(range(len(self.header.blocks)))

    def carried_tensors(self) -> Iterator[tuple[str, RawTensor]]:
        """Yield (name, tensor) of the carried tensors, then of the drawn ones, each made when it is asked for."""
        for index, record in enumerate(self.header.raw):
            yield record.name, self.container.raw_tensor(index)
        for drawn in self.header.drawn:
            yield drawn.name, draw_tensor(drawn.kind.draw)

    def decode_all(self, progress: Callable[[int], None] | None = None) -> list[DecodedRecord]:
        """Decode all coded records, in the order of `Header.coded`, and check the decoded SHA-256.

        Args:
            progress: Called with the number of records done.

        Raises:
            ChecksumMismatch: ``factors-checksum``: what was decoded is not what the encoder saw.
            FormatError: the file is damaged.
        """
        return list(self.decode_checked(progress))

    def decode_checked(self, progress: Callable[[int], None] | None = None) -> Iterator[DecodedRecord]:
        """Yield what `decode_all` returns, record by record; the decoded SHA-256 is checked after the last one.

        The caller must go to the end before it uses any record.
        """
        sha256 = DecodedHash()
        for index, record in self.decode():
            sha256.update(record, self.xp)
            yield record
            if progress is not None:
                progress(index + 1)
        for _, tensor in self.carried_tensors():
            sha256.update_raw(tensor)
        if sha256.digest() != self.header.decoded_sha256:
            raise ChecksumMismatch(
                "decoded factors: SHA-256 differs from the encoder's; this decoder is not exact",
                code="factors-checksum",
            )

    def _block(self, block: int) -> Sequence[CodedRecord]:
        return self.header.coded[self._starts[block] : self._starts[block + 1]]

    def _decode_blocks(self, blocks: Sequence[int], wanted: set[int]) -> Iterator[tuple[int, DecodedRecord]]:
        symbols = self._symbols(blocks)
        numbers = [i for b in blocks for i in range(self._starts[b], self._starts[b + 1])]
        picked = [(number, symbols[position]) for position, number in enumerate(numbers) if number in wanted]

        def make(part: Sequence[_Picked]) -> list[tuple[int, DecodedRecord]]:
            records = [self.header.coded[number] for number, _ in part]
            coefficients = [
                record_coefficients(record, item, self.header.quantizers, self._allocations)
                for record, (_, item) in zip(records, part, strict=True)
            ]
            made = synthesize_records(
                records,
                coefficients,
                generator=self.header.generator,
                seed=self.header.seed,
                xp=self.xp,
                chunk_elements=self.chunk_elements,
            )
            return [(number, item) for (number, _), item in zip(part, made, strict=True)]

        apply = parallel_map if self.xp.has_threads else map
        for group in apply(make, _portions(picked)):
            yield from group

    def _symbols(self, blocks: Sequence[int]) -> list[list[npt.NDArray[Any]]]:
        """Entropy-decode blocks: for each record, the symbols of each rung.

        The last block asked for alone is kept, for readers that go tensor by tensor.
        """
        if len(blocks) == 1 and self._kept is not None and self._kept[0] == blocks[0]:
            return self._kept[1]
        records = [self._block(b) for b in blocks]
        by_rung = []
        for rung in range(len(self.header.rungs)):
            first = 1 + self.header.units_section(rung)
            coded = [(self.header.sections[first + b].codec, self.container.section(first + b)) for b in blocks]
            by_rung.append(decode_symbols(coded, records, self.header.quantizers, self._allocations, rung))
        symbols = [list(each) for each in zip(*by_rung, strict=True)]
        if len(blocks) == 1:
            self._kept = (blocks[0], symbols)
        return symbols


_Picked = tuple[int, list[npt.NDArray[Any]]]


def _portions(items: Sequence[_Picked]) -> list[list[_Picked]]:
    """Consecutive items of about _PORTION_SYMBOLS together."""
    portions: list[list[_Picked]] = []
    weight = _PORTION_SYMBOLS
    for item in items:
        if weight >= _PORTION_SYMBOLS:
            portions.append([])
            weight = 0
        portions[-1].append(item)
        weight += sum(len(symbols) for symbols in item[1])
    return portions


class DecodedHash:
    """The decoded SHA-256: over the records in file order.

    A coded record adds each side's exponent as int8, then each side as little-endian int16; any other adds its bytes.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def update(self, decoded: DecodedRecord, xp: Arrays) -> None:
        """Add a coded record."""
        self._sha.update(struct.pack(f"<{len(decoded.exponents)}b", *decoded.exponents))
        for side in decoded.sides:
            self._sha.update(np.ascontiguousarray(xp.numpy(side), dtype="<i2").reshape(-1).view(np.uint8).data)

    def update_raw(self, tensor: RawTensor) -> None:
        """Add a carried or a drawn tensor."""
        self._sha.update(tensor.data)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._sha.digest()


def _coefficient_count(record: CodedRecord) -> int:
    return record.kind.vectors(record.units) * sum(record.kind.num_basis)
