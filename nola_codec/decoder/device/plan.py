"""What a device does to decode blocks: made on the processor from the header alone, as small arrays of integers.

    make_plan(header, packed)
        RungPlan        where the symbols of each run lie in the packed bytes, and where they go
          PackedRuns    runs of packed bits
          LaneGroup     rANS sections of one number of lanes, which step together
        LayerGroup      layers that one quantizer turns into coefficients of one length
        RecordPlan      which rows of the coefficients are a record's

Symbols and coefficients never come back: the plan knows all lengths beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nola_codec.container.layers import Allocations, coded_layers
from nola_codec.decoder.coefficients import require_peak
from nola_codec.decoder.device.packed import PackedBlocks, PackedSection, block_starts
from nola_codec.entropy import raw
from nola_codec.entropy.streams import symbol_width
from nola_codec.model.header import Header
from nola_codec.model.quantizers import SymbolModel
from nola_codec.model.records import CodedRecord
from nola_codec.quant.packing import packed_size

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedRuns:
    """Runs whose symbols are packed bits, int64 (runs,) each.

    Attributes:
        bits: The place of the first bit.
        widths: The bits of a symbol.
        sizes: The size of the alphabet, which no symbol reaches.
        lengths: The number of symbols.
        targets: The place of the first symbol in the symbols of the rung.
        last_bytes: The place of the last byte of the bits of each model of each section, if not all of it is used;
            int64 (parts,).
        used_bits: How many bits of it are used.
    """

    bits: Integers
    widths: Integers
    sizes: Integers
    lengths: Integers
    targets: Integers
    last_bytes: Integers
    used_bits: Integers


@dataclass(frozen=True)
class LaneGroup:
    """rANS sections of one number of lanes, in falling order of steps, so that those that still step come first.

    Attributes:
        lane_bits: log2 of the number of lanes, L.
        states: int64 (sections,): the place of the first lane state in the packed bytes.
        stops: int64 (sections,): the place behind the last word.
        steps: int64 (sections,): the number of steps; a section decodes steps * L symbols, fillers included.
        run_models: int64 (runs,): the models of the runs of all sections, one after the other.
        run_lengths: int64 (runs,): their lengths; the last run of each section includes the fillers.
        sources: int64 (runs,): the place of a run's first symbol among the symbols of the group.
        targets: int64 (runs,): its place among the symbols of the rung.
        lengths: int64 (runs,): its length without fillers.
    """

    lane_bits: int
    states: Integers
    stops: Integers
    steps: Integers
    run_models: Integers
    run_lengths: Integers
    sources: Integers
    targets: Integers
    lengths: Integers


@dataclass(frozen=True)
class RungPlan:
    """The symbols of one rung.

    Attributes:
        total: The number of symbols of all blocks.
        packed: The runs of packed bits.
        groups: The sections of rANS.
    """

    total: int
    packed: PackedRuns
    groups: tuple[LaneGroup, ...]


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one rung with one quantizer and as many coefficients.

    Attributes:
        rung: The rung whose symbols they are.
        quantizer: The number of the quantizer.
        count: The number of coefficients of a vector, k.
        starts: int64 (layers,): the place of each layer's first symbol.
        rows: int64 (layers,): the row of its vector in the coefficients of this k.
        weights: int64 (layers,): its weight.
    """

    rung: int
    quantizer: int
    count: int
    starts: Integers
    rows: Integers
    weights: Integers


@dataclass(frozen=True)
class RecordPlan:
    """The coefficients of one record.

    Attributes:
        number: The number of the record in `Header.coded`.
        peak: A bound of the coefficients' magnitude.
        rows: For each side, the row of its first vector in the coefficients of the side's k.
    """

    number: int
    peak: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class DevicePlan:
    """All that a device needs to know to decode records of some blocks.

    Attributes:
        rungs: The symbols of each rung.
        layers: The groups of layers.
        vectors: For each k, the number of vectors with k coefficients.
        records: The records, ascending.
    """

    rungs: tuple[RungPlan, ...]
    layers: tuple[LayerGroup, ...]
    vectors: dict[int, int]
    records: tuple[RecordPlan, ...]


def make_plan(
    header: Header,
    blocks: Sequence[int],
    packed: PackedBlocks | None = None,
    wanted: Collection[int] | None = None,
) -> DevicePlan:
    """Plan the decoding of records.

    Args:
        header: The header, with the units of every record.
        blocks: The numbers of the blocks that hold the records, ascending.
        packed: These blocks as packed bytes; None if their symbols are decoded elsewhere.
        wanted: The numbers of the records in `Header.coded`; None stands for all records of the blocks.

    Raises:
        FormatError: ``bound``: The coefficients of a record may not fit into 32 bits.
    """
    starts = block_starts(header)
    numbers = [[*range(starts[block], starts[block + 1])] for block in blocks]
    allocations = [rung.allocation for rung in header.rungs]
    rows: dict[int, int] = {}
    records: dict[int, _Record] = {}
    for number in (n for own in numbers for n in own if wanted is None or n in wanted):
        records[number] = _Record(header.coded[number], rows)
    layers: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    rungs = []
    for rung in range(len(header.rungs)):
        made = SymbolPlan([quantizer.model for quantizer in header.quantizers])
        sections: Sequence[PackedSection | None] = [None] * len(numbers) if packed is None else packed.sections[rung]
        for own, section in zip(numbers, sections, strict=True):
            models: list[int] = []
            lengths: list[int] = []
            for number in own:
                _add_layers(header, allocations, rung, number, made.total, records, layers, models, lengths)
            made.add_section(section, np.array(models, np.int64), np.array(lengths, np.int64))
        rungs.append(made.finish())
    for record in records.values():
        record.check()
    groups = [
        LayerGroup(rung, quantizer, count, *np.array(entries, np.int64).T)
        for (rung, quantizer, count), entries in layers.items()
    ]
    plans = [RecordPlan(number, record.peak, tuple(record.rows)) for number, record in records.items()]
    return DevicePlan(tuple(rungs), tuple(groups), rows, tuple(plans))


class _Record:
    """A record, the rows of its vectors, and the bounds of their coefficients."""

    def __init__(self, record: CodedRecord, rows: dict[int, int]) -> None:
        self.record = record
        self.rows = []
        vectors = record.kind.vectors(record.units)
        for count in record.kind.num_basis:
            self.rows.append(rows.get(count, 0))
            rows[count] = self.rows[-1] + vectors
        self.bounds = [np.zeros(vectors, np.int64) for _ in record.kind.num_basis]
        self.peak = 0

    def check(self) -> None:
        """Set the peak. Raises FormatError ``bound``."""
        self.peak = max((int(bounds.max(initial=0)) for bounds in self.bounds), default=0)
        require_peak(self.record.name, self.peak)


def _add_layers(
    header: Header,
    allocations: Allocations,
    rung: int,
    number: int,
    position: int,
    records: dict[int, _Record],
    layers: dict[tuple[int, int, int], list[tuple[int, int, int]]],
    models: list[int],
    lengths: list[int],
) -> None:
    """Add the layers of a record in a rung, and their runs; `position` is where the symbols of its block begin."""
    record, known = header.coded[number], records.get(number)
    start = position + sum(lengths)
    for side, count in enumerate(record.kind.num_basis):
        own = coded_layers(record, allocations, rung, side)
        for vector, quantizer, weight in zip(*(part.tolist() for part in own), strict=True):
            book = header.quantizers[quantizer].codebook
            if known is not None:
                layers.setdefault((rung, quantizer, count), []).append((start, known.rows[side] + vector, weight))
                known.bounds[side][vector] += weight * book.peak
            models.append(quantizer)
            lengths.append(book.run(count))
            start += lengths[-1]


@dataclass
class _Lanes:
    """The sections of one number of lanes, as they come."""

    sections: list[tuple[int, PackedSection, Integers, Integers, Integers]] = field(default_factory=list)


class SymbolPlan:
    """Collects the runs of a rung, section by section.

    Attributes:
        total: The number of symbols so far.
    """

    def __init__(self, models: Sequence[SymbolModel]) -> None:
        self._sizes = np.array([model.size for model in models], np.int64)
        self._widths = np.array([symbol_width(model) for model in models], np.int64)
        self._without = np.array([model.frequencies is None for model in models], bool)
        self._packed: list[tuple[Integers, ...]] = []
        self._paddings: list[tuple[int, int]] = []
        self._lanes: dict[int, _Lanes] = {}
        self.total = 0

    def add_section(self, section: PackedSection | None, models: Integers, lengths: Integers) -> None:
        """Add a section with its runs.

        Args:
            section: Its place; None if its symbols are decoded elsewhere.
            models: int64 (runs,): the number of each run's model.
            lengths: int64 (runs,): the length of each run.
        """
        targets = self.total + np.cumsum(lengths) - lengths
        self.total += int(lengths.sum())
        if section is None:
            return
        if section.codec == raw.id:
            self._add_packed(section.start, models, lengths, targets)
            return
        plain = self._without[models]
        self._add_packed(section.start, models[plain], lengths[plain], targets[plain])
        coded = ~plain
        steps = -(-int(lengths[coded].sum()) // (1 << section.lane_bits))
        lanes = self._lanes.setdefault(section.lane_bits, _Lanes())
        lanes.sections.append((steps, section, models[coded], lengths[coded], targets[coded]))

    def _add_packed(self, start: int, models: Integers, lengths: Integers, targets: Integers) -> None:
        """Add runs that are packed by model, each model's bits beginning at a byte."""
        place = start
        for model in np.unique(models[lengths > 0]).tolist():
            own = models == model
            width, count = int(self._widths[model]), int(lengths[own].sum())
            before = np.cumsum(lengths[own]) - lengths[own]
            bits = 8 * place + width * before
            shape = bits.shape
            self._packed.append((
                bits, np.full(shape, width), np.full(shape, self._sizes[model]), lengths[own], targets[own]
            ))  # fmt: skip
            place += packed_size(count, width)
            if count * width % 8:
                self._paddings.append((place - 1, count * width % 8))

    def finish(self) -> RungPlan:
        """Return the plan of all sections."""
        joined = [np.concatenate(each) for each in zip(*self._packed, strict=True)]
        bits, widths, sizes, lengths, targets = joined or [np.zeros(0, np.int64)] * 5
        last_bytes, used_bits = np.array(self._paddings, np.int64).reshape(-1, 2).T
        packed = PackedRuns(bits, widths, sizes, lengths, targets, last_bytes, used_bits)
        groups = [_lane_group(bits, lanes) for bits, lanes in sorted(self._lanes.items())]
        return RungPlan(self.total, packed, tuple(groups))


def _lane_group(lane_bits: int, lanes: _Lanes) -> LaneGroup:
    sections = sorted(lanes.sections, key=lambda each: -each[0])
    steps = np.array([each[0] for each in sections], np.int64)
    states = np.array([each[1].rans_start + 1 for each in sections], np.int64)
    stops = np.array([each[1].stop for each in sections], np.int64)
    columns: list[list[Integers]] = [[], [], [], [], []]
    start = 0
    for count, _, models, lengths, targets in sections:
        kept = lengths > 0
        models, lengths, targets = models[kept], lengths[kept], targets[kept]
        filled = lengths.copy()
        if len(filled):
            filled[-1] += (count << lane_bits) - int(lengths.sum())
        sources = start + np.cumsum(filled) - filled
        start += count << lane_bits
        for column, values in zip(columns, (models, filled, sources, targets, lengths), strict=True):
            column.append(values)
    return LaneGroup(lane_bits, states, stops, steps, *(np.concatenate(column) for column in columns))
