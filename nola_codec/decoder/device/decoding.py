"""Decode records on a device from packed bytes, without a copy back to the processor.

    header = container.read_units()
    packed = pack_blocks(container, header, range(len(header.blocks)))     # the coded sections of the file
    data = tensor_of(packed.data, "cuda")                                  # as small as the file
    plan = make_plan(header, packed.blocks, packed)                        # small; from the header alone
    decoded = decode_on_device(data, plan, header)                         # int16 sides and exponents
    decoded.check("task.nola")                                             # reads one number back, when you like

`DeviceBlocks` decodes some blocks once, in the way that is fastest on the device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from nola_codec.arrays import TorchArrays
from nola_codec.decoder.coefficients import CheckSteps, Coefficients
from nola_codec.decoder.coefficients import decode_symbols as decode_record_symbols
from nola_codec.decoder.device.fused import can_fuse, fused_records
from nola_codec.decoder.device.packed import Sections, block_starts, pack_blocks
from nola_codec.decoder.device.plan import DevicePlan, LayerGroup, RecordPlan, make_plan
from nola_codec.decoder.device.points import book_points
from nola_codec.decoder.device.symbols import decode_symbols, put_on
from nola_codec.decoder.factors import CHUNK_ELEMENTS, DecodedRecord, synthesize_records
from nola_codec.entropy.rans import MAX_ALPHABET, lookup_table
from nola_codec.errors import FormatError
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.model.header import Header

if TYPE_CHECKING:
    from nola_codec.decoder.device.resident import ResidentBlocks

_PIECE = 1 << 22
"""Coefficients that are made at once, at about 40 bytes each."""


@dataclass(frozen=True)
class DeviceSymbols:
    """The symbols of some blocks on a device.

    Attributes:
        rungs: The symbols of each rung, in the order of the plan.
        faults: The number of faults in the sections, an int64 scalar on the device.
    """

    rungs: tuple[torch.Tensor, ...]
    faults: torch.Tensor


@dataclass(frozen=True)
class DeviceRecords:
    """Records that were decoded on a device.

    Attributes:
        records: The records by their numbers in `Header.coded`, ascending: int16 sides on the device, and exponents.
        faults: The number of faults in the sections, an int64 scalar on the device; the records of a file with faults
            mean nothing.
    """

    records: Mapping[int, DecodedRecord]
    faults: torch.Tensor

    def check(self, where: str = "") -> None:
        """Read the number of faults back from the device.

        Raises:
            FormatError: ``symbols``: There are faults; the message starts with `where`.
        """
        require_no_faults(self.faults, where)


def decode_on_device(
    data: torch.Tensor, plan: DevicePlan, header: Header, *, chunk_elements: int = CHUNK_ELEMENTS
) -> DeviceRecords:
    """Decode the records of a plan from packed bytes, on the device of the bytes.

    No value is read back to the processor, so on a GPU the call returns before the work is done. A file that was
    verified once needs no check afterwards. For any other, call `DeviceRecords.check`.

    Args:
        data: uint8 (bytes,): `PackedBlocks.data`, on any device.
        plan: The plan of these blocks.
        header: The header, with the units of every record.
        chunk_elements: The number of elements that are synthesized at once; it changes no bit.

    Returns:
        The records as the file itself holds them; those of a reference are not added.

    Raises:
        FormatError: ``bound``, ``scale``: A sum or a scale is out of range.
    """
    return synthesize_on_device(plan, symbols_on_device(data, plan, header), header, chunk_elements=chunk_elements)


def symbols_on_device(data: torch.Tensor, plan: DevicePlan, header: Header) -> DeviceSymbols:
    """Return the symbols of all blocks of a plan; arguments are those of `decode_on_device`."""
    models = [quantizer.model for quantizer in header.quantizers]
    lookup = put_on(data.device, lookup_table(models).astype(np.int64))
    wide = any(model.size > MAX_ALPHABET for model in models)
    rungs, faults = [], torch.zeros((), dtype=torch.int64, device=data.device)
    for rung in plan.rungs:
        symbols, wrong = decode_symbols(data, rung, lookup, wide=wide)
        rungs.append(symbols)
        faults = faults + wrong
    return DeviceSymbols(tuple(rungs), faults)


def synthesize_on_device(
    plan: DevicePlan, symbols: DeviceSymbols, header: Header, *, chunk_elements: int = CHUNK_ELEMENTS
) -> DeviceRecords:
    """Turn the symbols of a plan's blocks into the plan's records; arguments are those of `decode_on_device`."""
    device = symbols.faults.device
    fused = [own for own in plan.records if can_fuse(header.coded[own.number], own.peak, device.type)]
    made = fused_records(plan, fused, symbols.rungs, header) if fused else {}
    rest = [own for own in plan.records if own.number not in made]
    made.update(_synthesize(plan, rest, symbols, header, chunk_elements))
    return DeviceRecords({own.number: made[own.number] for own in plan.records}, symbols.faults)


def _synthesize(
    plan: DevicePlan, wanted: Sequence[RecordPlan], symbols: DeviceSymbols, header: Header, chunk_elements: int
) -> dict[int, DecodedRecord]:
    """Make records by way of their coefficients."""
    device = symbols.faults.device
    lengths = {count for own in wanted for count in header.coded[own.number].kind.num_basis}
    pools = {
        count: torch.zeros((vectors, count), dtype=torch.int32, device=device)
        for count, vectors in plan.vectors.items()
        if count in lengths
    }
    for group in plan.layers:
        if group.count in pools:
            _add_layers(group, symbols.rungs[group.rung], header, pools[group.count])
    records = [header.coded[each.number] for each in wanted]
    coefficients = []
    for own, record in zip(wanted, records, strict=True):
        vectors = record.kind.vectors(record.units)
        sides = [pools[count][row : row + vectors] for count, row in zip(record.kind.num_basis, own.rows, strict=True)]
        coefficients.append(Coefficients(tuple(sides), own.peak))
    made = synthesize_records(
        records,
        coefficients,
        generator=header.generator,
        seed=header.seed,
        xp=TorchArrays(device),
        chunk_elements=chunk_elements,
    )
    return {own.number: item for own, item in zip(wanted, made, strict=True)}


def require_no_faults(faults: torch.Tensor, where: str = "") -> None:
    """Raise FormatError ``symbols`` if sections have faults; this reads the number back from the device."""
    if int(faults):
        raise FormatError("the symbols of its sections are damaged", code="symbols", where=where)


def _add_layers(group: LayerGroup, symbols: torch.Tensor, header: Header, pool: torch.Tensor) -> None:
    """Add the points of layers, times their weights, to the coefficients of their vectors."""
    book = header.quantizers[group.quantizer].codebook
    run = book.run(group.count)
    step = max(1, _PIECE // max(1, run))
    offsets = torch.arange(run, dtype=torch.int64, device=symbols.device)
    for first in range(0, len(group.starts), step):
        starts, rows, weights = (
            put_on(symbols.device, each[first : first + step]) for each in (group.starts, group.rows, group.weights)
        )
        points = book_points(book, symbols[starts[:, None] + offsets], group.count)
        pool.index_add_(0, rows, points * weights[:, None].to(torch.int32))


class DeviceBlocks:
    """Blocks of a file on their way to a device, with their symbols there once they are decoded.

    Where the Triton kernels run, the stored bytes are copied to the device and decoded there, unless they are
    `resident.py`'s and lie there already. Elsewhere a step of rANS
    would cost twenty small operations of PyTorch, so the processor decodes the symbols, and copies a byte for each.

    Attributes:
        blocks: The numbers of the blocks.
    """

    def __init__(
        self,
        source: Sections,
        header: Header,
        blocks: Sequence[int],
        device: torch.device,
        check_steps: CheckSteps = lambda rung, blocks, steps: None,
        resident: ResidentBlocks | None = None,
    ) -> None:
        """Take the blocks of a file; nothing is read yet.

        Args:
            source: The open file.
            header: Its header, with the units of every record.
            blocks: The numbers of the blocks.
            device: The device.
            check_steps: Called before symbols are decoded.
            resident: The blocks of the file on the device, in place of those of `source`; or None.
        """
        self.blocks = tuple(blocks)
        self._source, self._header, self._device = source, header, device
        self._check_steps, self._resident = check_steps, resident
        self._symbols: DeviceSymbols | None = None

    def decode(
        self, wanted: Collection[int] | None = None, *, chunk_elements: int = CHUNK_ELEMENTS
    ) -> Mapping[int, DecodedRecord]:
        """Decode records of the blocks.

        Args:
            wanted: The numbers of the records in `Header.coded`; None decodes all that the blocks hold.
            chunk_elements: The number of elements that are synthesized at once; it changes no bit.

        Returns:
            The records by number, ascending, as the file itself holds them.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged.
        """
        header = self._header
        packed, data = None, None
        if self._symbols is None and self._resident is not None:
            packed, data = self._resident.places_of(self.blocks), self._resident.data
        elif self._symbols is None and uses_triton(self._device.type):
            packed = pack_blocks(self._source, header, self.blocks, self._check_steps)
            data = tensor_of(packed.data, self._device)
        plan = make_plan(header, self.blocks, packed, wanted)
        if data is not None:
            self._symbols = symbols_on_device(data, plan, header)
            require_no_faults(self._symbols.faults)
        elif self._symbols is None:
            self._symbols = self._symbols_of_processor()
        return synthesize_on_device(plan, self._symbols, header, chunk_elements=chunk_elements).records

    def _symbols_of_processor(self) -> DeviceSymbols:
        """Decode the symbols on the processor, and copy them to the device."""
        header, starts = self._header, block_starts(self._header)
        allocations = [rung.allocation for rung in header.rungs]
        records = [header.coded[starts[block] : starts[block + 1]] for block in self.blocks]
        rungs = []
        for rung in range(len(header.rungs)):
            first = 1 + header.units_section(rung)
            coded = [(header.sections[first + b].codec, self._source.section(first + b)) for b in self.blocks]
            check = partial(self._check_steps, rung, self.blocks)
            decoded = decode_record_symbols(coded, records, header.quantizers, allocations, rung, check)
            symbols = np.concatenate(decoded)
            rungs.append(torch.from_numpy(symbols.astype(np.uint8 if symbols.dtype == np.uint8 else np.int32)))
        faults = torch.zeros((), dtype=torch.int64, device=self._device)
        return DeviceSymbols(tuple(each.to(self._device) for each in rungs), faults)


def tensor_of(data: bytes, device: torch.device | str) -> torch.Tensor:
    """Return bytes as a uint8 tensor on a device."""
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).to(device)
