"""Quantizers, frequency tables and allocations in the header."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nola_codec.container import fields
from nola_codec.entropy.rans import MAX_ALPHABET, TOTAL
from nola_codec.model import Allocation, Codebook, Quantizer, SymbolModel
from nola_codec.quant.codebooks import MAX_POINT, midrise, midtread, symmetric

_SYMMETRIC, _POINTS, _MIDTREAD, _MIDRISE = range(4)
MAX_OFFSET = 1 << 14


def quantizer_to_wire(quantizer: Quantizer) -> list[Any]:
    """[form, parameters, frequencies]; a symmetric codebook's frequencies are given for 0, 1, 2... only."""
    book, frequencies = quantizer.codebook, quantizer.frequencies
    half = book.size // 2
    if book.form == "symmetric":
        folded = None if frequencies is None else list(frequencies[half:])
        return [_SYMMETRIC, list(book.points[half + 1 :]), folded]
    table = None if frequencies is None else list(frequencies)
    if book.form == "points":
        return [_POINTS, list(book.points), table]
    bits = (book.size - 1).bit_length()
    return [_MIDTREAD if book.form == "midtread" else _MIDRISE, bits, table]


def quantizer_from_wire(value: Any) -> Quantizer:
    """Parse and check one quantizer."""
    form, parameters, table = fields.listed(value, "quantizers", count=3)
    form = fields.integer(form, "quantizers form", 0, 3)
    if form == _SYMMETRIC:
        positive = fields.integers(parameters, "quantizers points", 1, MAX_POINT)
        _ascending(positive, "quantizers points", 127)
        book = symmetric(positive)
        if table is None:
            return Quantizer(book)
        folded = fields.integers(table, "quantizers frequencies", 1, TOTAL, count=len(positive) + 1)
        return Quantizer(book, _total((*reversed(folded[1:]), *folded)))
    if form == _POINTS:
        points = fields.integers(parameters, "quantizers points", -MAX_POINT, MAX_POINT)
        _ascending(points, "quantizers points", 256)
        book = Codebook("points", points)
    elif form == _MIDTREAD:
        book = midtread(fields.integer(parameters, "quantizers bits", 2, 16))
    else:
        book = midrise(fields.integer(parameters, "quantizers bits", 1, 8))
    return Quantizer(book, _frequencies(table, book.size, "quantizers frequencies"))


def side_model_to_wire(model: SymbolModel) -> list[Any]:
    """[alphabet size, frequencies or nil]."""
    return [model.size, None if model.frequencies is None else list(model.frequencies)]


def side_model_from_wire(value: Any) -> SymbolModel:
    """Parse and check one model of the side section."""
    size, table = fields.listed(value, "side_models", count=2)
    size = fields.integer(size, "side_models size", 1, MAX_ALPHABET)
    return SymbolModel(size, _frequencies(table, size, "side_models frequencies"))


def allocation_from_wire(value: Any, quantizers: int) -> Allocation:
    """Parse ((precision, quantizer, offset), ...), precisions strictly ascending."""
    entries: list[tuple[int, int, int]] = []
    for item in fields.listed(value, "allocation"):
        precision, quantizer, offset = fields.integers(item, "allocation", -MAX_OFFSET, MAX_OFFSET, count=3)
        fields.integer(quantizer, "allocation quantizer", 0, quantizers - 1)
        if entries and precision <= entries[-1][0]:
            raise fields.bad("allocation", "ascending precisions", precision)
        entries.append((precision, quantizer, offset))
    return tuple(entries)


def _frequencies(table: Any, size: int, what: str) -> tuple[int, ...] | None:
    if table is None:
        return None
    if size > MAX_ALPHABET:
        raise fields.bad(what, f"no table for more than {MAX_ALPHABET} symbols", size)
    return _total(fields.integers(table, what, 1, TOTAL, count=size))


def _total(table: tuple[int, ...]) -> tuple[int, ...]:
    if sum(table) != TOTAL:
        raise fields.bad("frequencies", f"a sum of {TOTAL}", sum(table))
    return table


def _ascending(points: Sequence[int], what: str, limit: int) -> None:
    if not points or len(points) > limit or any(b <= a for a, b in pairwise(points)):
        raise fields.bad(what, f"1 to {limit} ascending integers", list(points))
