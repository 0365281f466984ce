"""Write and parse the quantizers of the header, with their frequencies.

Of the points of a codebook the first one is written, and of each further one the difference from the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nola_codec.container import fields
from nola_codec.entropy.rans import TOTAL
from nola_codec.model.quantizers import Codebook, Dependent, Quantizer, Trellis
from nola_codec.quant.codebooks import MAX_POINT, MOST_POINTS, integer_codebook, symmetric_codebook
from nola_codec.quant.trellis import TRELLISES

_POINTS, _INTEGERS, _TRELLIS, _DEPENDENT = range(4)
_MOST_POSITIVE = 127


def quantizer_to_wire(quantizer: Quantizer) -> list[Any]:
    """Return [type, parameters, frequencies]. Symmetric frequencies are written for the levels 0, 1, 2 ... only.

    A symmetric codebook is written as dependent codebooks that are equal and do not depend on anything.
    """
    book, frequencies = quantizer.codebook, quantizer.frequencies
    if isinstance(book, Trellis):
        return [_TRELLIS, book.number, None]
    half = book.size // 2
    if isinstance(book, Codebook) and _mirrors(book.points, -1) and (frequencies is None or _mirrors(frequencies, 1)):
        positive = book.points[half + 1 :]
        book = Dependent(0, positive, positive)
    table = None if frequencies is None else list(frequencies)
    if isinstance(book, Dependent):
        return [_DEPENDENT, [book.mask, _gaps(book.even), _gaps(book.odd)], table and table[half:]]
    if book.size > MOST_POINTS:
        return [_INTEGERS, (book.size - 1).bit_length(), None]
    return [_POINTS, _gaps(book.points), table]


def quantizer_from_wire(value: Any) -> Quantizer:
    """Parse and check one quantizer. Raises FormatError with code ``header``."""
    kind, parameters, table = fields.items(value, "quantizers", count=3)
    kind = fields.integer(kind, "quantizers type", 0, 255)
    if kind == _TRELLIS:
        _require_no_table(table)
        return Quantizer(TRELLISES[fields.integer(parameters, "quantizers trellis", 0, len(TRELLISES) - 1)])
    if kind == _DEPENDENT:
        mask, even, odd = fields.items(parameters, "quantizers parameters", count=3)
        books = _parse_points(even, 1, _MOST_POSITIVE), _parse_points(odd, 1, _MOST_POSITIVE)
        if len(books[0]) != len(books[1]):
            raise fields.header_error("quantizers points", "as many even as odd ones", (len(books[0]), len(books[1])))
        mask = fields.integer(mask, "quantizers mask", 0, 255)
        is_one = mask == 0 and books[0] == books[1]
        book = symmetric_codebook(books[0]) if is_one else Dependent(mask, *books)
        return Quantizer(book, _unfold_frequencies(table, len(books[0])))
    if kind == _INTEGERS:
        _require_no_table(table)
        return Quantizer(integer_codebook(fields.integer(parameters, "quantizers bits", 9, 16)))
    if kind != _POINTS:
        raise fields.header_error("quantizers type", "0 to 3", kind)
    points = _parse_points(parameters, -MAX_POINT, MOST_POINTS)
    return Quantizer(Codebook(points), _frequencies(table, len(points)))


def _mirrors(values: Sequence[int], sign: int) -> bool:
    """Return True if there is a middle value, and the values before it are those after it, mirrored, times a sign."""
    if len(values) % 2 == 0 or not 1 < len(values) < MOST_POINTS:
        return False
    return all(a == sign * b for a, b in zip(values, reversed(values), strict=True))


def _require_no_table(table: Any) -> None:
    if table is not None:
        raise fields.header_error("quantizers frequencies", "none for this type of quantizer", table)


def _gaps(points: Sequence[int]) -> list[int]:
    """Return the first point, and the difference of each further one from the one before."""
    return [b - a for a, b in zip((0, *points), points, strict=False)]


def _parse_points(value: Any, low: int, most: int) -> tuple[int, ...]:
    """Return the points of which `_gaps` are written: 1 to `most` strictly ascending integers from `low` on."""
    gaps = fields.integers(value, "quantizers points", low, 2 * MAX_POINT)
    points = tuple(accumulate(gaps))
    if not 1 <= len(points) <= most or points[-1] > MAX_POINT or min(gaps[1:], default=1) < 1:
        wanted = f"1 to {most} ascending integers up to {MAX_POINT}"
        raise fields.header_error("quantizers points", wanted, list(points))
    return points


def _unfold_frequencies(table: Any, levels: int) -> tuple[int, ...] | None:
    """Return the frequencies of all symbols from those of the levels 0, 1, 2 ..."""
    if table is None:
        return None
    folded = fields.integers(table, "quantizers frequencies", 1, TOTAL, count=levels + 1)
    return _check_total((*reversed(folded[1:]), *folded))


def _frequencies(table: Any, size: int) -> tuple[int, ...] | None:
    if table is None:
        return None
    return _check_total(fields.integers(table, "quantizers frequencies", 1, TOTAL, count=size))


def _check_total(table: tuple[int, ...]) -> tuple[int, ...]:
    if sum(table) != TOTAL:
        raise fields.header_error("frequencies", f"a sum of {TOTAL}", sum(table))
    return table
