"""Damages `.nola` files, with right checksums, and compares how the package and the reference decoder take them.

data = damage(golden("nmse"), {}, random.Random(7))
outcome = compare_readers(data, [], {})        # "decoded", a code of the reject table, or an error
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from changes import alter, scramble
from nola_forge import Parts, canonical, join, pack_integers, reference, split, units_integers, verify
from random_files import seal_digests

from nola_codec.container.limits import Limits
from nola_codec.errors import FormatError
from nola_codec.references.finding import References

TIGHT = Limits(
    total_elements=1 << 18, coefficients=1 << 16, units=1 << 12, words=1 << 16, lane_steps=1 << 16,
    dense_products=1 << 22, record_rungs=1 << 12, rung_elements=1 << 19, header_plain=1 << 20,
)  # fmt: skip
"""What one comparison may take: a header that declares more is refused, as by any reader with little memory."""


class Disagreement(AssertionError):
    """Two readers take a file differently."""


def compare_readers(data: bytes, references: References, known: dict[bytes, Any], *, again: bool = True) -> str:
    """Return "decoded", or the code for which the package refuses a file.

    If only the decoded SHA-256 is wrong, the file gets the hashes that the reference decoder computes, and is compared
    again; so what is decoded is compared, too.

    Args:
        data: The file.
        references: The files that are decoded before it, or the folder that has them.
        known: What the reference decoder makes of these.
        again: True compares what is decoded.

    Raises:
        Disagreement: One reader refuses the file and the other does not, or they decode other bits.
    """
    code = package_code(data, references)
    if code == "limit":  # the reference decoder has none
        return code
    other = "decoded"
    try:
        reference().decode(data, dict(known))
    except reference().Refused as refused:
        other = refused.args[0]
    if (code == "decoded") != (other == "decoded"):
        raise Disagreement(f"the package: {code}; the reference decoder: {other}")
    if again and "factors-checksum" in (code, other):
        parts = split(data)
        try:
            sealed = seal_digests(parts, dict(known))
        except reference().Refused:
            sealed = join(parts)  # refused at a later rung
        compare_readers(sealed, references, known, again=False)
    return code


def package_code(data: bytes, references: References) -> str:
    """Return "decoded", or the code for which the package refuses a file."""
    try:
        verify(data, TIGHT, references=references)
    except FormatError as error:
        return error.code
    return "decoded"


def damage(data: bytes, known: dict[bytes, Any], rng: random.Random) -> bytes:
    """Return a file with something wrong, its checksums made to fit: in its header, its sections or its units."""
    ways: list[Callable[[], bytes]] = [
        lambda: damage_header_bytes(data, rng),
        lambda: damage_header_values(data, rng),
        lambda: damage_section(data, rng),
        lambda: damage_units(data, known, rng),
    ]
    return rng.choice(ways)()


def damage_header_bytes(data: bytes, rng: random.Random) -> bytes:
    """The header's bytes scrambled."""
    return join(split(data), plain=lambda top: scramble(canonical(top), rng))


def damage_header_values(data: bytes, rng: random.Random) -> bytes:
    """A value or two of the header altered, the section table mostly right."""
    parts = split(data)
    for _ in range(rng.choice((1, 1, 2))):
        parts.top = alter({k: v for k, v in parts.top.items() if k != "sections"}, rng, wire=True)
        if not isinstance(parts.top, dict):
            parts.top = {}
    return join(parts, sections=lambda rows: alter(rows, rng, wire=True) if rng.random() < 0.1 else rows)


def damage_section(data: bytes, rng: random.Random) -> bytes:
    """A section's stored bytes scrambled, or its codec changed."""
    parts = split(data)
    at = rng.randrange(len(parts.sections))
    codec, stored = parts.sections[at]
    parts.sections[at] = (
        rng.choice((codec, codec, 0, 1, 2, 3, 4)),
        scramble(stored, rng) if rng.random() < 0.8 else stored,
    )
    return join(parts)


def damage_units(data: bytes, known: dict[bytes, Any], rng: random.Random) -> bytes:
    """An integer or two of a units section changed."""
    parts, units = split(data), units_integers(data, known)
    rung = rng.randrange(len(units))
    integers = units[rung]
    for _ in range(rng.choice((1, 1, 2)) if integers else 0):
        at = rng.randrange(len(integers))
        role, value = integers[at]
        changed = value + rng.choice((-1, 1, -2, 2, 16, -16, 128, -300, 5000, -5000))
        integers[at] = role, max(-(2**20) + 1, min(2**20 - 1, changed))
    parts.sections[units_section(parts, rung)] = 3, pack_integers(integers)
    return join(parts)


def units_section(parts: Parts, rung: int) -> int:
    """Return the number of the units section of a rung."""
    carried = sum(parts.top["kinds"][number][0] == 1 for number in parts.top["records"])
    return rung * (1 + len(parts.top["blocks"])) + (carried if rung else 0)
