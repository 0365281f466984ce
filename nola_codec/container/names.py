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
