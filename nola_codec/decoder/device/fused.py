"""Symbols -> int16 sides with the fused Triton kernel, for the records that it can make.

These are nearly all records of real files: those in the Hadamard basis with as many coefficients as elements, whose
length takes one pass, whose signs come from Philox, and whose sums fit into 32 bits. `decoding` makes the others from
`decoder.factors`, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nola_codec.basis import Hadamard
from nola_codec.basis.hadamard import block_and_passes
from nola_codec.decoder.device.plan import DevicePlan, Integers, RecordPlan
from nola_codec.decoder.device.symbols import put_on
from nola_codec.decoder.factors import DecodedRecord, vector_scales
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.model.header import Header
from nola_codec.model.quantizers import Book, Codebook, Trellis
from nola_codec.model.records import CodedRecord
from nola_codec.prng import SIGNS
from nola_codec.quant.trellis import dependent_table, window_table

_LARGEST_SUM = (1 << 31) - 1
_CODEBOOK, _TRELLIS, _DEPENDENT = range(3)  # as in kernels/triton/hadamard.py, which only Triton can import
_WORDS = 4
"""Sign words come from whole counters, of four words each."""


def can_fuse(record: CodedRecord, peak: int, device_type: str) -> bool:
    """Return True if the fused kernel can make a record.

    Args:
        record: The record.
        peak: A bound of its coefficients' magnitude.
        device_type: The `type` of the torch.device.
    """
    kind = record.kind
    if kind.basis != Hadamard.id or not uses_triton(device_type):
        return False
    for side in kind.sides:
        block, passes = block_and_passes(side.length)
        if passes != 1 or side.num_basis != side.length or peak * block > _LARGEST_SUM:
            return False
    return True


@dataclass
class _Vectors:
    """The vectors of one length: all that one launch makes.

    Attributes:
        rows: The rows of the vectors in the coefficients of this length.
        scales: Mantissas and shifts, int64 (vectors, 1) each, of each record's side.
        places: The place of the first element of each vector, and the distance of its elements.
        streams: The streams, each once.
        stream_of: The number in `streams` for each vector.
        elements: The number of elements of all sides so far.
        sides: (record, side, place, shape) of each side.
    """

    rows: list[int] = field(default_factory=list)
    scales: list[tuple[Integers, Integers]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    streams: dict[int, int] = field(default_factory=dict)
    stream_of: list[int] = field(default_factory=list)
    elements: int = 0
    sides: list[tuple[int, int, int, tuple[int, ...]]] = field(default_factory=list)


def fused_records(
    plan: DevicePlan, records: Sequence[RecordPlan], symbols: Sequence[torch.Tensor], header: Header
) -> dict[int, DecodedRecord]:
    """Make records with the fused kernel; `can_fuse` holds for each.

    Args:
        plan: The plan of the blocks.
        records: The records of the plan to make.
        symbols: The symbols of each rung.
        header: The header, with the units of every record.

    Returns:
        The records by number.

    Raises:
        FormatError: ``scale``: A scale is out of range.
    """
    from nola_codec.kernels.triton import hadamard, philox

    device = symbols[0].device
    groups: dict[int, _Vectors] = {}
    for own in records:
        for side in range(len(own.rows)):
            length = header.coded[own.number].kind.sides[side].length
            _add_side(groups.setdefault(length, _Vectors()), own, header.coded[own.number], side)
    layers, starts = _layer_table(plan, symbols, header)
    tables = torch.from_numpy(_point_tables(header)[0]).to(device)
    all_symbols = symbols[0] if len(symbols) == 1 else torch.cat(list(symbols))
    all_layers = put_on(device, layers)
    made: dict[tuple[int, int], torch.Tensor] = {}
    for length, group in groups.items():
        out = torch.zeros(group.elements, dtype=torch.int16, device=device)
        if group.rows:
            count = _WORDS * -(-length // (32 * _WORDS))
            words = torch.empty((len(group.streams), count), dtype=torch.int32, device=device)
            philox.sign_words(words, put_on(device, np.array(list(group.streams), np.int64)), SIGNS, header.seed)
            vectors = put_on(device, _vector_table(group, starts[length], count))
            block, _ = block_and_passes(length)
            hadamard.synthesize(
                all_symbols, vectors, all_layers, tables, words, out, block, length // block
            )  # fmt: skip
        for number, side, place, shape in group.sides:
            size = int(np.prod(shape, dtype=np.int64))
            made[number, side] = out[place : place + size].reshape(shape)
    return {
        own.number: DecodedRecord(
            tuple(made[own.number, side] for side in range(len(own.rows))), header.coded[own.number].exponents
        )
        for own in records
    }


def _add_side(group: _Vectors, own: RecordPlan, record: CodedRecord, side: int) -> None:
    """Add the vectors of one side."""
    shape, axis = record.kind.sides[side].shape, record.kind.sides[side].axis
    vectors = record.kind.vectors(record.units)
    stream = group.streams.setdefault(2 * record.stream + side, len(group.streams))
    for vector in range(vectors):
        # lora_B (out, r) has its vectors as columns, lora_A (r, in) as rows, and a lone vector is the whole side.
        group.places.append((
            group.elements + (vector if axis == 1 else vector * shape[-1] if axis == 0 else 0),
            shape[1] if axis == 1 else 1,
        ))  # fmt: skip
    group.rows += range(own.rows[side], own.rows[side] + vectors)
    group.stream_of += [stream] * vectors
    if vectors:
        group.scales.append(vector_scales([record], side))
    group.sides.append((own.number, side, group.elements, shape))
    group.elements += int(np.prod(shape, dtype=np.int64))


def _vector_table(group: _Vectors, starts: Integers, word_count: int) -> Integers:
    """Return the vectors as the kernel takes them, int64 (vectors, 7); `starts` is (vectors + 1,), by row."""
    rows = np.array(group.rows, np.int64)
    mantissas, shifts = (np.concatenate(each)[:, 0] for each in zip(*group.scales, strict=True))
    places = np.array(group.places, np.int64)
    words = np.array(group.stream_of, np.int64) * word_count
    return np.stack([starts[rows], starts[rows + 1], mantissas, shifts, places[:, 0], places[:, 1], words], 1)


def _layer_table(
    plan: DevicePlan, symbols: Sequence[torch.Tensor], header: Header
) -> tuple[Integers, dict[int, Integers]]:
    """Return all layers, int64 (layers, 8), and for each k the place of the first layer of each vector.

    These places are int64 (vectors + 1,), so that the layers of vector i are those from places[i] to places[i + 1].
    """
    offsets = np.cumsum([0, *(len(each) for each in symbols)])
    _, tables = _point_tables(header)
    parts: dict[int, list[Integers]] = {count: [] for count in plan.vectors}
    rows: dict[int, list[Integers]] = {count: [] for count in plan.vectors}
    for group in plan.layers:
        book = header.quantizers[group.quantizer].codebook
        made = np.zeros((len(group.starts), 8), np.int64)
        made[:, 0] = group.starts + offsets[group.rung]
        made[:, 1:3] = tables[group.quantizer]
        made[:, 3] = group.weights
        made[:, 4:7] = _book_fields(book, group.count)
        parts[group.count].append(made)
        rows[group.count].append(group.rows)
    table, starts, first = [], {}, 0
    for count, vectors in plan.vectors.items():
        joined = np.concatenate([np.zeros((0, 8), np.int64), *parts[count]])
        own = np.concatenate([np.zeros(0, np.int64), *rows[count]])
        order = np.argsort(own, kind="stable")
        table.append(joined[order])
        starts[count] = first + np.searchsorted(own[order], np.arange(vectors + 1))
        first += len(own)
    return np.concatenate(table), starts


def _book_fields(book: Book, count: int) -> tuple[int, int, int]:
    """Return the fields 4 to 6 of a layer."""
    if isinstance(book, Codebook):
        return book.size, 0, 0
    if isinstance(book, Trellis):
        return book.stride, book.bits, book.run(count)
    return book.size, book.mask, len(book.even) & 1


def _point_tables(header: Header) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], list[tuple[int, int]]]:
    """Return the points of all quantizers, int32, and (kind, place of its first point) of each."""
    parts, fields, place = [], [], 0
    for quantizer in header.quantizers:
        book = quantizer.codebook
        if isinstance(book, Codebook):
            kind, points = _CODEBOOK, np.array(book.points, np.int32)
        elif isinstance(book, Trellis):
            kind, points = _TRELLIS, window_table(book).astype(np.int32).reshape(-1)
        else:
            kind, points = _DEPENDENT, np.array(dependent_table(book), np.int32)
        parts.append(points)
        fields.append((kind, place))
        place += len(points)
    return np.concatenate(parts) if parts else np.zeros(1, np.int32), fields
