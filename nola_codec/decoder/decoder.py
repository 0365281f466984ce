"""`Decoder`: decodes the records of an open container on any device, all of them or some."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Arrays, TorchArrays
from nola_codec.container.reader import Container
from nola_codec.decoder.coefficients import decode_symbols, record_coefficients
from nola_codec.decoder.factors import CHUNK_ELEMENTS, DecodedRecord, synthesize_records
from nola_codec.decoder.prediction import Reference, add_prediction, missing_reference, predicted_record
from nola_codec.errors import ChecksumMismatch, FormatError
from nola_codec.model.records import CodedRecord
from nola_codec.model.tensors import RawTensor
from nola_codec.parallel import parallel_map
from nola_codec.prng.draws import draw_tensor

if TYPE_CHECKING:
    import torch

    from nola_codec.decoder.device.decoding import DeviceBlocks

_BATCH_SYMBOLS = 48 << 20
"""Coefficients that are entropy-decoded together: enough for vectorized rANS, at 6 bytes each at the peak."""
_PORTION_SYMBOLS = 1 << 20
"""Coefficients that one thread synthesizes at a time."""


class Decoder:
    """Decodes the records of a container.

        for index, record in Decoder(container, NUMPY).decode():
            header.coded[index].name, record.sides, record.exponents

    Attributes:
        container: The open container.
        xp: The arrays that records are made of, and their device.
        chunk_elements: The number of elements that are synthesized at once; it changes no bit.
        header: The header of the file, with the units of every record.
        reference: The earlier version that the file is coded against, or None.
        checks_reference: True if `decode` checks, before it decodes only some records, that the reference decodes to
            what its header says; once. False by default, since `decode_all` checks the result, which tells as much.
    """

    def __init__(
        self,
        container: Container,
        xp: Arrays,
        chunk_elements: int = CHUNK_ELEMENTS,
        reference: Reference | None = None,
    ) -> None:
        """Read the units of all records.

        A file that is coded against a reference needs it; `references.open_decoder` finds it.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged, or (``reference``) its reference is not given.
        """
        if container.header.reference is not None and reference is None:
            raise missing_reference(container.header.reference, "nothing was given here to take it from")
        self.reference = reference
        self.checks_reference = False
        self._is_checked = False
        self.container = container
        self.xp = xp
        self.chunk_elements = chunk_elements
        self.header = container.read_units()
        self._kept: tuple[int, list[list[npt.NDArray[Any]]]] | None = None
        self._on_device: DeviceBlocks | None = None
        self._allocations = [rung.allocation for rung in self.header.rungs]
        self._starts = np.cumsum([0, *self.header.blocks]).tolist()

    def decode_pairs(self, indexes: Sequence[int] | None = None) -> Iterator[tuple[int, DecodedRecord]]:
        """Decode pairs as `decode` does, by their numbers in `Header.pairs`; None decodes all."""
        return self.decode(range(len(self.header.pairs)) if indexes is None else indexes)

    def decode_vectors(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, DecodedRecord]]:
        """Decode vectors as `decode` does, and yield (name, decoded) for each; None decodes all."""
        first, asked = len(self.header.pairs), None if names is None else frozenset(names)
        wanted = [first + i for i, r in enumerate(self.header.vectors) if asked is None or r.name in asked]
        return ((self.header.coded[index].name, item) for index, item in self.decode(wanted))

    def decode(self, indexes: Sequence[int] | None = None) -> Iterator[tuple[int, DecodedRecord]]:
        """Decode coded records, and yield (number in `Header.coded`, decoded) for each, in ascending order.

        Only the blocks that hold them are read.

        Args:
            indexes: The numbers of the records in `Header.coded`; None decodes all.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged, or its reference is not what it says.
        """
        if indexes is not None and self.reference is not None and self.checks_reference:
            self.reference.check()
        return self._decode(indexes)

    def check(self) -> None:
        """Decode all records once, to compare the decoded SHA-256; see `decode_all`. Errors name the file."""
        if not self._is_checked:
            try:
                for _ in self.decode_checked():
                    pass
            except FormatError as error:
                raise error.within(self.container.name) from error

    def _decode(self, indexes: Sequence[int] | None) -> Iterator[tuple[int, DecodedRecord]]:
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
        """Return the symbols of each record, a list by rung, as the encoder wrote them."""
        return self._symbols(range(len(self.header.blocks)))

    def carried_tensors(self) -> Iterator[tuple[str, RawTensor]]:
        """Yield (name, tensor) of the carried tensors, then of the drawn ones. Each is made when it is asked for."""
        for index, record in enumerate(self.header.raw):
            yield record.name, self.container.raw_tensor(index)
        for drawn in self.header.drawn:
            yield drawn.name, draw_tensor(drawn.kind.draw)

    def decode_all(self, progress: Callable[[int], None] | None = None) -> list[DecodedRecord]:
        """Decode all coded records, in the order of `Header.coded`, and check the decoded SHA-256.

        Args:
            progress: Called with the number of records done so far.

        Raises:
            ChecksumMismatch: ``factors-checksum``: the decoded numbers are not those of the encoder.
            FormatError: The file is damaged.
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
            cause = "this decoder is not exact" + (", or the reference is not what it says" if self.reference else "")
            raise ChecksumMismatch(
                f"decoded factors: SHA-256 differs from the encoder's; {cause}", code="factors-checksum"
            )
        self._is_checked = True

    def _block(self, block: int) -> Sequence[CodedRecord]:
        return self.header.coded[self._starts[block] : self._starts[block + 1]]

    def _decode_blocks(self, blocks: Sequence[int], wanted: set[int]) -> Iterator[tuple[int, DecodedRecord]]:
        if isinstance(self.xp, TorchArrays):
            yield from self._decode_on_device(blocks, wanted, self.xp.device)
            return
        symbols = self._symbols(blocks)
        numbers = [i for b in blocks for i in range(self._starts[b], self._starts[b + 1])]
        picked = [(number, symbols[position]) for position, number in enumerate(numbers) if number in wanted]
        known = self._decode_reference([number for number, _ in picked])

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
            return [
                (number, self._predict(record, item, known))
                for (number, _), record, item in zip(part, records, made, strict=True)
            ]

        apply = parallel_map if self.xp.has_threads else map
        for group in apply(make, _portions(picked)):
            yield from group

    def _decode_on_device(
        self, blocks: Sequence[int], wanted: set[int], device: torch.device
    ) -> Iterator[tuple[int, DecodedRecord]]:
        """Do the same as `_decode_blocks` on a device, to which the sections are copied as they are.

        A block that is asked for alone stays there until the next one.
        """
        from nola_codec.decoder.device.decoding import DeviceBlocks

        if self._on_device is None or self._on_device.blocks != tuple(blocks):
            self._on_device = DeviceBlocks(self.container, self.header, blocks, device)
        made = self._on_device.decode(wanted, chunk_elements=self.chunk_elements)
        known = self._decode_reference(list(made))
        for number, item in made.items():
            yield number, self._predict(self.header.coded[number], item, known)
        if len(blocks) > 1:
            self._on_device = None

    def _decode_reference(self, numbers: Sequence[int]) -> Mapping[str, DecodedRecord]:
        """Return the reference's records, by name, that records of these numbers may need."""
        if self.reference is None:
            return {}
        coded = self.header.coded
        needed = {coded[i].name for i in numbers if not coded[i].kind.is_pair or coded[i].kind.split == "difference"}
        return self.reference.decode_named(needed)

    def _predict(
        self, record: CodedRecord, decoded: DecodedRecord, known: Mapping[str, DecodedRecord]
    ) -> DecodedRecord:
        """Return a record with the reference's added, if it is one that is coded as a difference."""
        entry = self.header.reference
        predicted = None if entry is None else predicted_record(record, known, self.xp)
        if entry is None or predicted is None:
            return decoded
        return add_prediction(decoded, predicted, entry.gains, self.xp, record.name)

    def decode_named(self, names: Collection[str]) -> Mapping[str, DecodedRecord]:
        """Return the decoded records of these names; names that the file lacks are left out.

        Raises:
            FormatError, ChecksumMismatch: This file is damaged, and the message starts with its name.
        """
        wanted = [index for index, record in enumerate(self.header.coded) if record.name in names]
        try:
            return {self.header.coded[index].name: record for index, record in self._decode(wanted)}
        except FormatError as error:
            raise error.within(self.container.name) from error

    def _symbols(self, blocks: Sequence[int]) -> list[list[npt.NDArray[Any]]]:
        """Return the symbols of each record of some blocks, a list by rung.

        A block that is asked for alone is kept until the next one, for readers that go tensor by tensor.
        """
        kept = self._kept  # another thread may replace it
        if len(blocks) == 1 and kept is not None and kept[0] == blocks[0]:
            return kept[1]
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
"""The number of a record in `Header.coded`, and its symbols in each rung."""


def _portions(items: Sequence[_Picked]) -> list[list[_Picked]]:
    """Split items into runs of neighbours, each with about `_PORTION_SYMBOLS` symbols."""
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
    """Computes the decoded SHA-256 of a file from its records, in the order of the file.

    A coded record adds the exponent of each side as int8, and then each side as little-endian int16. A carried or drawn
    tensor adds its bytes.
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
        """Return the hash of all that was added so far, 32 bytes."""
        return self._sha.digest()


def _coefficient_count(record: CodedRecord) -> int:
    return record.kind.vectors(record.units) * sum(record.kind.num_basis)
