"""`Decoder`: decodes the records of an open container on any device, all of them or some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import Arrays, TorchArrays
from nola_codec.container.layers import join_units
from nola_codec.container.reader import Container
from nola_codec.decoder.coefficients import Coefficients, Dequantizer, LaneSteps, decode_symbols
from nola_codec.decoder.factors import (
    CHUNK_ELEMENTS,
    DecodedGroup,
    DecodedRecord,
    NumberedGroup,
    synthesize_group,
    with_floats,
)
from nola_codec.decoder.hashing import HashThread, compare_digests
from nola_codec.decoder.prediction import Reference, add_prediction, missing_reference, predicted_record
from nola_codec.errors import FormatError
from nola_codec.kernels import library
from nola_codec.model.records import CodedRecord
from nola_codec.model.tensors import RawTensor
from nola_codec.parallel import parallel_map
from nola_codec.prng.draws import draw_tensor

if TYPE_CHECKING:
    import torch

    from nola_codec.decoder.device.decoding import DeviceBlocks
    from nola_codec.decoder.device.resident import ResidentBlocks

_BATCH_SYMBOLS = 48 << 20
"""Coefficients that NumPy entropy-decodes together: enough for vectorized rANS, at 6 bytes each at the peak. With the
kernels each block is a batch."""
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
        resident: ResidentBlocks | None = None,
    ) -> None:
        """Read the units of all records.

        A file that is coded against a reference needs it; `references.open_decoder` finds it. Blocks that are
        `resident` on the device of the arrays are not read from the container.

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
        self._lane_steps = LaneSteps(container.limits)
        self._resident = resident
        self._kept: tuple[int, list[list[npt.NDArray[Any]]]] | None = None
        self._on_device: DeviceBlocks | None = None
        self._allocations = [rung.allocation for rung in self.header.rungs]
        self._dequantizer = Dequantizer(self.header.quantizers, self._allocations)
        self._starts = np.cumsum([0, *self.header.blocks]).tolist()

    def decode_pairs(self, indexes: Sequence[int] | None = None) -> Iterator[tuple[int, DecodedRecord]]:
        """Decode pairs as `decode` does, by their numbers in `Header.pairs`; None decodes all."""
        return self.decode(range(len(self.header.pairs)) if indexes is None else indexes)

    def decode_vectors(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, DecodedRecord]]:
        """Decode vectors as `decode` does, and yield (name, decoded) for each; None decodes all."""
        first, asked = len(self.header.pairs), None if names is None else frozenset(names)
        wanted = [first + i for i, r in enumerate(self.header.vectors) if asked is None or r.name in asked]
        return ((self.header.coded[index].name, item) for index, item in self.decode(wanted))

    def decode(
        self, indexes: Sequence[int] | None = None, *, floats: bool = False
    ) -> Iterator[tuple[int, DecodedRecord]]:
        """Decode coded records, and yield (number in `Header.coded`, decoded) for each, in ascending order.

        Only the blocks that hold them are read, here in the caller's thread; other threads decode them.

        Args:
            indexes: The numbers of the records in `Header.coded`; None decodes all.
            floats: True also makes the float32 form of NumPy's records, on the same threads.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged, or its reference is not what it says.
        """
        if indexes is not None and self.reference is not None and self.checks_reference:
            self.reference.check()
        return (item for group in self._decode(indexes, floats=floats) for item in group.items())

    def check(self) -> None:
        """Decode all records once, to compare the decoded SHA-256; see `decode_all`. Errors name the file."""
        if not self._is_checked:
            try:
                for _ in self.decode_checked():
                    pass
            except FormatError as error:
                raise error.within(self.container.name) from error

    def _decode(self, indexes: Sequence[int] | None, *, floats: bool = False) -> Iterator[NumberedGroup]:
        wanted = set(range(len(self.header.coded)) if indexes is None else indexes)
        batches = self._batches(wanted)
        if isinstance(self.xp, TorchArrays):
            for blocks in batches:
                yield from self._decode_on_device(blocks, wanted, self.xp.device)
            return
        # Either batches are decoded on several threads, or the portions of each batch are.
        side_by_side = len(batches) > 1 and library() is not None
        read = (self._read_batch(blocks, wanted) for blocks in batches)
        if side_by_side:
            for groups in parallel_map(
                lambda batch: list(self._decode_batch(batch, map, floats=floats)), read, uses_blas=False
            ):
                yield from groups
            return
        for batch in read:
            yield from self._decode_batch(batch, parallel_map, floats=floats)

    def symbols(self, blocks: Sequence[int] | None = None) -> list[list[npt.NDArray[Any]]]:
        """Return the symbols of each record of some blocks or of all, a list by rung, as the encoder wrote them."""
        return self._decode_symbols(
            self._read_batch(range(len(self.header.blocks)) if blocks is None else blocks, set())
        )

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

    def decode_checked(
        self, progress: Callable[[int], None] | None = None, *, floats: bool = False
    ) -> Iterator[DecodedRecord]:
        """Yield what `decode_all` returns, record by record; the decoded SHA-256 is checked after the last one.

        The caller must go to the end before it uses any record.

        Args:
            progress: Called with the number of records done so far.
            floats: As in `decode`.
        """
        with HashThread(self.xp) as sha256:
            for group in self._decode(None, floats=floats):
                sha256.update_group(group.made)
                for index, record in group.items():
                    yield record
                    if progress is not None:
                        progress(index + 1)
            for _, tensor in self.carried_tensors():
                sha256.update_raw(tensor)
            digests = sha256.digests()
        compare_digests(digests, self.header, has_reference=self.reference is not None)
        self._is_checked = True

    def _batches(self, wanted: set[int]) -> list[list[int]]:
        """Return the blocks that hold wanted records, in groups that are entropy-decoded together."""
        batches: list[list[int]] = []
        asked = [b for b in range(len(self.header.blocks))
                 if not wanted.isdisjoint(range(self._starts[b], self._starts[b + 1]))]  # fmt: skip
        if self.xp.has_threads and library() is not None:
            return [[block] for block in asked]
        weight = _BATCH_SYMBOLS
        for block in asked:
            if weight >= _BATCH_SYMBOLS:
                batches.append([])
                weight = 0
            batches[-1].append(block)
            records = self.header.coded[self._starts[block] : self._starts[block + 1]]
            weight += sum(record.kind.vectors(record.units) * sum(record.kind.num_basis) for record in records)
        return batches

    def _read_batch(self, blocks: Sequence[int], wanted: set[int]) -> _Batch:
        """Read the stored bytes of blocks, and decode what their wanted records need of the reference."""
        picked = [i for b in blocks for i in range(self._starts[b], self._starts[b + 1]) if i in wanted]
        last = self._kept  # another thread may replace it
        kept = last[1] if last is not None and list(blocks) == [last[0]] else None
        stored = []
        for rung in range(len(self.header.rungs) if kept is None else 0):
            first = 1 + self.header.units_section(rung)
            stored.append([(self.header.sections[first + b].codec, self.container.section(first + b)) for b in blocks])
        return _Batch(blocks, picked, self._decode_reference(picked), stored, kept)

    def _decode_batch(self, batch: _Batch, apply: _Map, *, floats: bool) -> Iterator[NumberedGroup]:
        """Decode the wanted records of a batch. `apply` maps a function over portions of it."""
        symbols = self._decode_symbols(batch)
        if len(batch.blocks) == 1 and apply is not map:  # for readers that go tensor by tensor
            self._kept = (batch.blocks[0], symbols)
        numbers = [i for b in batch.blocks for i in range(self._starts[b], self._starts[b + 1])]
        wanted = set(batch.picked)
        picked = [(number, own) for number, own in zip(numbers, symbols, strict=True) if number in wanted]

        def make(part: Sequence[_Picked]) -> NumberedGroup:
            records = join_units([self.header.coded[number] for number, _ in part])
            made = self._synthesize(records, self._dequantizer.coefficients(records, [item for _, item in part]))
            if self.header.reference is not None:
                pairs = zip(records, made.records, strict=True)
                made = DecodedGroup([self._predict(record, item, batch.known) for record, item in pairs])
            return NumberedGroup([number for number, _ in part], with_floats(made, self.xp) if floats else made)

        yield from apply(make, _portions(picked))

    def decode_rungs(self, rungs: Sequence[Sequence[CodedRecord]]) -> Iterator[tuple[int, list[DecodedRecord]]]:
        """Yield (rung, records as they are there): some records at all rungs, then the next ones, in their order.

        `rungs` has all records for each rung. Coefficients of a rung are made from those of the rung before, so that
        each section is decoded once.
        """
        everything = set(range(len(self.header.coded)))
        read = (self._read_batch(blocks, everything) for blocks in self._batches(everything))
        apply: _Map = map if library() is None else parallel_map

        def make(step: _Step) -> tuple[int, list[DecodedRecord]]:
            made = self._synthesize(step.records, step.coefficients).records
            return step.rung, [self._predict(r, item, step.known) for r, item in zip(step.records, made, strict=True)]

        def steps() -> Iterator[_Step]:
            for batch, symbols in apply(lambda batch: (batch, self._decode_symbols(batch, rungs)), read):
                for part in _portions(list(zip(batch.picked, symbols, strict=True))):
                    own = [[records[number] for number, _ in part] for records in rungs]
                    by_rung = self._dequantizer.coefficients_by_rung(own, [item for _, item in part])
                    for rung, coefficients in enumerate(by_rung):
                        kept = [Coefficients(tuple(s.copy() for s in c.sides), c.peak) for c in coefficients]
                        yield _Step(rung, own[rung], kept, batch.known)

        return parallel_map(make, steps())

    def _synthesize(self, records: Sequence[CodedRecord], coefficients: Sequence[Coefficients]) -> DecodedGroup:
        return synthesize_group(
            records,
            coefficients,
            generator=self.header.generator,
            seed=self.header.seed,
            xp=self.xp,
            chunk_elements=self.chunk_elements,
        )

    def _decode_on_device(
        self, blocks: Sequence[int], wanted: set[int], device: torch.device
    ) -> Iterator[NumberedGroup]:
        """Decode the wanted records of blocks on a device, to which the sections are copied as they are.

        A block that is asked for alone stays there until the next one.
        """
        from nola_codec.decoder.device.decoding import DeviceBlocks

        if self._on_device is None or self._on_device.blocks != tuple(blocks):
            self._on_device = DeviceBlocks(
                self.container, self.header, blocks, device, self._lane_steps.check, self._resident
            )
        made = self._on_device.decode(wanted, chunk_elements=self.chunk_elements)
        known = self._decode_reference(list(made))
        for number, item in made.items():
            yield NumberedGroup([number], DecodedGroup([self._predict(self.header.coded[number], item, known)]))
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
            found = (item for group in self._decode(wanted) for item in group.items())
            return {self.header.coded[index].name: record for index, record in found}
        except FormatError as error:
            raise error.within(self.container.name) from error

    def _decode_symbols(
        self, batch: _Batch, rungs: Sequence[Sequence[CodedRecord]] | None = None
    ) -> list[list[npt.NDArray[Any]]]:
        """Return the symbols of each record of a batch, a list by rung.

        With `rungs`, all records for each rung, units that start later take no time at a rung.
        """
        if batch.symbols is not None:
            return batch.symbols
        rungs = [self.header.coded] * len(batch.stored) if rungs is None else rungs
        by_rung = [
            decode_symbols(
                coded, [rungs[rung][self._starts[b] : self._starts[b + 1]] for b in batch.blocks],
                self.header.quantizers, self._allocations, rung,
                partial(self._lane_steps.check, rung, batch.blocks),
            )
            for rung, coded in enumerate(batch.stored)
        ]  # fmt: skip
        return [list(each) for each in zip(*by_rung, strict=True)]


@dataclass(frozen=True)
class _Batch:
    """Blocks that are decoded together.

    Attributes:
        blocks: The numbers of the blocks.
        picked: The numbers of the records that are wanted, ascending.
        known: The records of the reference that these need, by name.
        stored: For each rung and block, (codec id, stored bytes); empty if there are symbols.
        symbols: The symbols of each record of the blocks, a list by rung, if they are known already.
    """

    blocks: Sequence[int]
    picked: Sequence[int]
    known: Mapping[str, DecodedRecord]
    stored: Sequence[Sequence[tuple[int, bytes]]]
    symbols: list[list[npt.NDArray[Any]]] | None


class _Step(NamedTuple):
    """Some records at one rung, to be synthesized; `known` is that of their batch."""

    rung: int
    records: Sequence[CodedRecord]
    coefficients: Sequence[Coefficients]
    known: Mapping[str, DecodedRecord]


_Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
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
