"""Make one fault in a golden file: the functions that the cases of `reject_cases.py` are written with.

make = put("generator", 3)
make()                  # a file whose only fault is its generator
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

from nola_forge import (
    DICTIONARY,
    Parts,
    canonical,
    frame,
    golden,
    join,
    pack_integers,
    split,
    stored_header,
    unframe,
    units_integers,
)

Make = Callable[[], bytes]
FIRST_AMPLITUDES = range(15, 272)
"""The roles of amplitudes of units that start, one for each quantizer and one for none."""


def flip(name: str, offset: int, bit: int = 0) -> Make:
    """A golden file with one bit changed; a negative offset counts from the end."""

    def make() -> bytes:
        data = bytearray(golden(name))
        data[offset] ^= 1 << bit
        return bytes(data)

    return make


def top(alter: Callable[[dict[str, Any]], Any], name: str = "nmse", **options: Any) -> Make:
    """A golden file whose header's map was altered in place (or replaced by what `alter` returns)."""

    def make() -> bytes:
        parts = split(golden(name))
        result = alter(parts.top)
        return join(Parts(result if isinstance(result, dict) else parts.top, parts.sections), **options)

    return make


def put(key: str, value: Any, name: str = "nmse") -> Make:
    """A golden file with one value of its header replaced."""
    return top(lambda t: t.update({key: value}), name)


def deep(*path: Any, value: Any, name: str = "nmse") -> Make:
    """A golden file with a value deep in its header replaced: the path's last item is an index or key."""

    def alter(item: Any) -> None:
        for step in path[:-1]:
            item = item[step]
        item[path[-1]] = value

    return top(alter, name)


def joined(name: str = "nmse", **options: Any) -> Make:
    """A golden file put together with something wrong."""
    return lambda: join(split(golden(name)), **options)


def plain(alter: Callable[[bytes], bytes], name: str = "nmse") -> Make:
    """A golden file with the bytes of its uncompressed header altered."""
    return joined(name, plain=lambda t: alter(canonical(t)))


def section(index: int, alter: Callable[[bytes], bytes], name: str, codec: int | None = None) -> Make:
    """A golden file with the stored bytes of a section altered, its checksums right."""

    def make() -> bytes:
        parts = split(golden(name))
        old = parts.sections[index]
        parts.sections[index] = (old[0] if codec is None else codec, alter(old[1]))
        return join(parts)

    return make


def rows(alter: Callable[[list[list[int]]], Any], name: str = "nmse") -> Make:
    """A golden file with its section table altered."""

    def sections(table: list[list[int]]) -> list[list[int]]:
        alter(table)
        return table

    return joined(name, sections=sections)


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """`data` with the only occurrence of `old` replaced."""
    assert data.count(old) == 1, data.count(old)
    return data.replace(old, new)


def set_item(items: list[Any], index: int, value: Any) -> list[Any]:
    """The list with an item replaced, in place."""
    items[index] = value
    return items


def integer(role: int | range, number: int, change: int, name: str = "nmse", rung: int = 0) -> Make:
    """A golden file with an integer of a units section changed: the one of this number among those of its roles."""
    roles = range(role, role + 1) if isinstance(role, int) else role

    def make() -> bytes:
        parts, integers = split(golden(name)), units_integers(golden(name))[rung]
        place = [at for at, (own, _) in enumerate(integers) if own in roles][number]
        integers[place] = integers[place][0], integers[place][1] + change
        parts.sections[late_units(name) if rung else 0] = 3, pack_integers(integers)
        return join(parts)

    return make


def late_units(name: str) -> int:
    """Number of the units section of the second rung."""
    parts = split(golden(name))
    return 1 + len(parts.top["blocks"]) + len([k for k in parts.top["kinds"] if k[0] == 1])


def twice_the_kind(t: dict[str, Any]) -> None:
    """The first kind again, used by the last record, whose name becomes a new one."""
    t["numbers"][-1] = 5
    t["kinds"].append(t["kinds"][0])
    t["records"][-1] = len(t["kinds"]) - 1


def raw_first(t: dict[str, Any]) -> None:
    """Put a carried tensor before a low-rank record; the only hole of both templates takes the same number."""
    t["kinds"] = [t["kinds"][1], t["kinds"][0], *t["kinds"][2:]]


def drawn_before_raw(t: dict[str, Any]) -> None:
    """Exchange a carried kind and the drawn kind after it; neither has a number in its name."""
    t["kinds"][2:4] = t["kinds"][3:1:-1]


def vectors_first(t: dict[str, Any]) -> None:
    """The first low-rank kind made a vector's; records of the second one follow."""
    t["kinds"][0] = [2, t["kinds"][0][1], 0, 1, None, [24]]


def raw_before_vectors(t: dict[str, Any]) -> None:
    """Put a carried tensor in the place of a vector that has no number either."""
    t["kinds"] = [*t["kinds"][:2], t["kinds"][7], *t["kinds"][3:7], t["kinds"][2]]


def decoded_sha256(name: str) -> bytes:
    """Return the decoded SHA-256 of a golden file."""
    made: bytes = split(golden(name)).top["rungs"][-1][0]
    return made


def one_name_twice(t: dict[str, Any]) -> None:
    """The second record with the number of the first."""
    t["kinds"] = t["kinds"][:1]
    t["records"] = [0] * len(t["records"])
    t["numbers"] = [0] * len(t["numbers"])


def seed_twice(header: bytes) -> bytes:
    """A map of 16 pairs, two of them with one key."""
    assert header.startswith(b"\x8f")
    return b"\xde\0\x10" + replaced(header[1:], b"\xa4seed", b"\xa4seed\1\xa4seed")


BIG = (1 << 31) + 1
OVERFLOWING = [1 << 31, 1 << 31, 4]
"""2^64 elements: none, for a reader that multiplies in 64 bits."""
WIDE = [0, "w", 0, 1.0, 0, 0, 1, 0, None, [1 << 15, 1 << 15], [1 << 15, 1 << 15]]


def resized(data: bytes) -> bytes:
    """A header whose frame declares one byte more than it holds."""
    stored = bytearray(stored_header(data))
    size = len(unframe(bytes(stored), DICTIONARY))
    assert stored[0] >> 5 == 0b011  # one segment, with a size of two bytes, from 256 on
    struct.pack_into("<H", stored, 1, size - 256 + 1)
    return join(split(data), stored_header=bytes(stored))


def lengthened(data: bytes) -> bytes:
    """The header's frame with a byte after it."""
    return join(split(data), stored_header=stored_header(data) + b"\0")


def sizeless(data: bytes) -> bytes:
    """The header in a frame that does not say its size."""
    plain = unframe(stored_header(data), DICTIONARY)
    return join(split(data), stored_header=frame(plain, DICTIONARY, write_content_size=0))


def unsealed(data: bytes) -> bytes:
    """Alter the content SHA-256, and make the checksum of prelude and header fit."""
    head = bytearray(data[:34])
    head[20] ^= 1
    return bytes(head) + struct.pack("<I", zlib.crc32(head + stored_header(data))) + data[38:]


def shortened(data: bytes) -> bytes:
    """The last section ends before the file does."""
    parts = split(data)
    stored = parts.sections[-1][1]
    return join(parts, sections=lambda rows: [*rows[:-1], [rows[-1][0], len(stored) - 1, zlib.crc32(stored[:-1])]])


def set_last(data: bytes, bits: int) -> bytes:
    """The last byte with bits set."""
    return data[:-1] + bytes([data[-1] | bits])


def bomb() -> bytes:
    """Make a carried tensor of 8 MiB in a frame of 256 MiB."""
    parts = split(golden("only-raw"))
    size = 8 << 20
    parts.top["kinds"][-1] = [1, parts.top["kinds"][-1][1], 8, [size]]
    blocks = 2048
    rle = b"".join((131072 << 3 | 2 | (i == blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(blocks))
    parts.sections[-1] = (1, bytes([0b10000000, 0x38]) + struct.pack("<I", size) + rle)
    return join(parts)


def too_large() -> bytes:
    """16-bit levels in a two-pass basis of 65537 coefficients times entries that add up past what can be scaled."""
    parts = split(golden("paper-uniform"))
    kind = parts.top["kinds"][0]
    parts.top["kinds"] = [[*kind[:8], [1 << 20, 1 << 20], *kind[9:]], *parts.top["kinds"][1:]]
    parts.top["quantizers"] = [[0, [-32768, 65536], None]]
    vectors = 4 if len(parts.top["kinds"]) == 1 else 2
    rest = 0 if len(parts.top["kinds"]) == 1 else 80
    parts.sections[1] = (0, bytes((vectors * (1 << 20) + rest + 7) // 8))
    return join(parts)
