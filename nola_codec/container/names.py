"""Write names in few bytes: one template for a family of names, and the numbers in the names as differences.

``model.layers.11.self_attn.q_proj`` is template ``model.layers.#.self_attn.q_proj`` and number 11. Two hundred names
of a transformer take a few hundred bytes in a compressed header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nola_codec.errors import FormatError

# A number is a run of ASCII digits without leading zeros. "007" stays in the template, and so does an escaped "#".
_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])")


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """Return template and numbers of a name; its ``%`` and ``#`` become ``%25`` and ``%23``.

    >>> split_name("layers.11.q_proj")
    ('layers.#.q_proj', (11,))
    """
    # Escapes hold digits, so the numbers are found in the original name before anything is escaped.
    pieces: list[str] = []
    numbers: list[int] = []
    position = 0
    for match in _NUMBER.finditer(name):
        pieces.append(_escape(name[position : match.start()]))
        numbers.append(int(match.group()))
        position = match.end()
    pieces.append(_escape(name[position:]))
    return "#".join(pieces), tuple(numbers)


def join_name(template: str, numbers: Sequence[int]) -> str:
    """Undo `split_name`. Raises FormatError if the count of numbers is wrong."""
    pieces = template.split("#")
    if len(pieces) != len(numbers) + 1:
        raise FormatError(f"name template {template!r}: {len(numbers)} numbers given", code="header")
    text = _unescape(pieces[0])
    for number, piece in zip(numbers, pieces[1:], strict=True):
        text += str(number) + _unescape(piece)
    return text


def natural_key(name: str) -> tuple[tuple[int, ...], str]:
    """Return a sort key that brings the layers of a model in order: numbers first, then the template."""
    template, numbers = split_name(name)
    return numbers, template


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("#", "%23")


def _unescape(text: str) -> str:
    return text.replace("%23", "#").replace("%25", "%")


def pack_varints(values: Sequence[int]) -> bytes:
    """Return signed integers as zigzag LEB128 in the shortest form."""
    out = bytearray()
    for value in values:
        rest = (value << 1) ^ (value >> 63)
        while rest >= 0x80:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def unpack_varints(data: bytes, count: int, what: str) -> list[int]:
    """Undo `pack_varints`. Raises FormatError unless there are exactly `count` values of at most 32 bits."""
    values: list[int] = []
    rest = shift = 0
    for byte in data:
        rest |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            if shift >= 35:
                raise FormatError(f"{what}: integer too long", code="header")
            continue
        if byte == 0 and shift > 7:
            raise FormatError(f"{what}: integer not in its shortest form", code="header")
        values.append((rest >> 1) ^ -(rest & 1))
        rest = shift = 0
    if shift or len(values) != count:
        raise FormatError(f"{what}: expected {count} integers, found {len(values)}", code="header")
    return values
