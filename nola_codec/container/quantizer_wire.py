"""Write and parse the quantizers of the header, with their frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nola_codec.container import fields
from nola_codec.entropy.rans import MAX_ALPHABET, TOTAL
from nola_codec.model.quantizers import Codebook, Dependent, Quantizer, Trellis
from nola_codec.quant.codebooks import MAX_POINT, midrise_codebook, midtread_codebook, symmetric_codebook
from nola_codec.quant.trellis import TRELLISES

_SYMMETRIC, _POINTS, _MIDTREAD, _MIDRISE, _TRELLIS, _DEPENDENT = range(6)


def quantizer_to_wire(quantizer: Quantizer) -> list[Any]:
    """Return [form, parameters, frequencies]. Symmetric frequencies are written for the levels 0, 1, 2 ... only."""
    book, frequencies = quantizer.codebook, quantizer.frequencies
    if isinstance(book, Trellis):
        return [_TRELLIS, book.number, None]
    half = book.size // 2
    folded = None if frequencies is None else list(frequencies[half:])
    if isinstance(book, Dependent):
        return [_DEPENDENT, [book.mask, list(book.even), list(book.odd)], folded]
    if book.form == "symmetric":
        return [_SYMMETRIC, list(book.points[half + 1 :]), folded]
    table = None if frequencies is None else list(frequencies)
    if book.form == "points":
        return [_POINTS, list(book.points), table]
    bits = (book.size - 1).bit_length()
    return [_MIDTREAD if book.form == "midtread" else _MIDRISE, bits, table]


def quantizer_from_wire(value: Any) -> Quantizer:
    """Parse and check one quantizer. Raises FormatError with code ``header``."""
    form, parameters, table = fields.items(value, "quantizers", count=3)
    form = fields.integer(form, "quantizers form", 0, 5)
    if form == _TRELLIS:
        if table is not None:
            raise fields.header_error("quantizers frequencies", "none for a trellis", table)
        return Quantizer(TRELLISES[fields.integer(parameters, "quantizers trellis", 0, len(TRELLISES) - 1)])
    if form == _SYMMETRIC:
        positive = _parse_positive(parameters)
        return Quantizer(symmetric_codebook(positive), _unfold_frequencies(table, len(positive)))
    if form == _DEPENDENT:
        mask, even, odd = fields.items(parameters, "quantizers parameters", count=3)
        books = _parse_positive(even), _parse_positive(odd)
        if len(books[0]) != len(books[1]):
            raise fields.header_error("quantizers points", "as many even as odd ones", (len(books[0]), len(books[1])))
        mask = fields.integer(mask, "quantizers mask", 0, 255)
        return Quantizer(Dependent(mask, *books), _unfold_frequencies(table, len(books[0])))
    if form == _POINTS:
        points = fields.integers(parameters, "quantizers points", -MAX_POINT, MAX_POINT)
        _check_ascending(points, "quantizers points", 256)
        book = Codebook("points", points)
    elif form == _MIDTREAD:
        book = midtread_codebook(fields.integer(parameters, "quantizers bits", 2, 16))
    else:
        book = midrise_codebook(fields.integer(parameters, "quantizers bits", 1, 8))
    return Quantizer(book, _frequencies(table, book.size, "quantizers frequencies"))


def _parse_positive(value: Any) -> tuple[int, ...]:
    points = fields.integers(value, "quantizers points", 1, MAX_POINT)
    _check_ascending(points, "quantizers points", 127)
    return points


def _unfold_frequencies(table: Any, levels: int) -> tuple[int, ...] | None:
    """Return the frequencies of all symbols from those of the levels 0, 1, 2 ..."""
    if table is None:
        return None
    folded = fields.integers(table, "quantizers frequencies", 1, TOTAL, count=levels + 1)
    return _check_total((*reversed(folded[1:]), *folded))


def _frequencies(table: Any, size: int, what: str) -> tuple[int, ...] | None:
    if table is None:
        return None
    if size > MAX_ALPHABET:
        raise fields.header_error(what, f"no table for more than {MAX_ALPHABET} symbols", size)
    return _check_total(fields.integers(table, what, 1, TOTAL, count=size))


def _check_total(table: tuple[int, ...]) -> tuple[int, ...]:
    if sum(table) != TOTAL:
        raise fields.header_error("frequencies", f"a sum of {TOTAL}", sum(table))
    return table


def _check_ascending(points: Sequence[int], what: str, limit: int) -> None:
    if not points or len(points) > limit or any(b <= a for a, b in pairwise(points)):
        raise fields.header_error(what, f"1 to {limit} ascending integers", list(points))
