"""Files with one fault each: one or more for each code of the reject table.

    for name, case in CASES.items():
        case.make()        # the bytes of a golden file with the fault that the name tells
        case.code          # the code for which it is refused

`tools/make_conformance.py` writes them to `spec/conformance/invalid`, where tests and other readers take them from.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
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


@dataclass(frozen=True)
class Case:
    """A file, its code, and a flag that tells if opening it finds the fault."""

    code: str
    make: Make
    at_open: bool = True


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

CASES: dict[str, Case] = {
    # Prelude
    "another magic": Case("magic", flip("nmse", 1)),
    "changed line ends": Case("magic", lambda: golden("nmse").replace(b"\r\n", b"\n", 1)),
    "text": Case("magic", lambda: b"<!DOCTYPE html>" * 9),
    "no bytes": Case("truncated", lambda: b""),
    "half a magic": Case("truncated", lambda: golden("nmse")[:5]),
    "half a prelude": Case("truncated", lambda: golden("nmse")[:30]),
    "half a header": Case("truncated", lambda: golden("nmse")[:100]),
    "one byte missing": Case("truncated", lambda: golden("nmse")[:-1]),
    "one byte more": Case("trailing", lambda: golden("nmse") + b"\0"),
    "bytes after the last section": Case("trailing", joined(tail=b"\0")),
    "a signature cut short": Case("trailing", joined(tail=b"\x89NLS\r\n\x1a\n" + bytes(95))),
    "a signature and a byte": Case("trailing", joined(tail=b"\x89NLS\r\n\x1a\n" + bytes(97))),
    "as many bytes as a signature has": Case("trailing", joined(tail=bytes(104))),
    "version 1": Case("version", joined(version=1)),
    "revision 1": Case("version", joined(revision=1)),
    "revision 2": Case("version", joined(revision=2)),
    "revision 4": Case("version", joined(revision=4)),
    "content SHA-256 altered": Case("header-checksum", flip("nmse", 20)),
    "prelude's own checksum altered": Case("header-checksum", flip("nmse", 36)),
    "unknown required feature": Case("feature", joined(required=4)),
    "highest required feature": Case("feature", joined(required=1 << 15)),
    "header altered": Case("header-checksum", flip("nmse", 90)),
    "header declares another size": Case("zstd", lambda: resized(golden("nmse"))),
    "header longer than the file": Case("truncated", flip("nmse", 15, 7)),
    "header is not a frame": Case("zstd", joined(stored_header=b"\xff" * 40)),
    "bytes after the header's frame": Case("zstd", lambda: lengthened(golden("nmse"))),
    "header's frame without its size": Case("zstd", lambda: sizeless(golden("nmse"))),
    # Sections
    "section altered": Case("section-checksum", flip("nmse", -1), at_open=False),
    "section's checksum altered": Case("section-checksum", rows(lambda r: set_item(r[1], 2, r[1][2] ^ 1)), False),
    "content checksum altered": Case("content-checksum", lambda: unsealed(golden("nmse")), at_open=False),
    "section longer than the file": Case("truncated", rows(lambda r: set_item(r[1], 1, r[1][1] + 1))),
    "huge section": Case("truncated", rows(lambda r: set_item(r[1], 1, (1 << 63) - 1))),
    "section shorter than the file": Case("trailing", lambda: shortened(golden("nmse"))),
    # MessagePack
    "not MessagePack": Case("header", plain(lambda b: b"\xc1" + b)),
    "bytes after the map": Case("header", plain(lambda b: b + b"\0")),
    "map cut short": Case("header", plain(lambda b: b[:-1])),
    "an array": Case("header", joined(plain=lambda t: canonical(list(t.values())))),
    "long integer": Case("header", plain(lambda b: replaced(b, b"\xa4seed\x07", b"\xa4seed\xcc\x07"))),
    "long string length": Case("header", plain(lambda b: replaced(b, b"\xa7dialect\xa4", b"\xa7dialect\xd9\x04"))),
    "32-bit float": Case("header", plain(lambda b: b.replace(b"\xcb" + struct.pack(">d", 2.0), b"\xca@\0\0\0"))),
    "duplicate key": Case("header", plain(seed_twice)),
    "keys out of order": Case(
        "header", joined(plain=lambda t: msgpack.packb(dict(reversed(list(t.items()))), use_bin_type=True))
    ),
    "key of bytes": Case("header", plain(lambda b: replaced(b, b"\xa4seed", b"\xc4\4seed"))),
    "string that is not UTF-8": Case("header", plain(lambda b: replaced(b, b"\xa4peft", b"\xa4pef\xff"))),
    "timestamp": Case("header", put("config", {"a": msgpack.Timestamp(1)})),
    "extension type": Case("header", put("config", {"a": msgpack.ExtType(5, b"a")})),
    "deep nesting": Case("header", plain(lambda b: replaced(b, b"config\xc0", b"config" + b"\x91" * 3000 + b"\xc0"))),
    # Header
    "missing key": Case("header", top(lambda t: t.pop("streams"))),
    "unknown key": Case("header", put("zoom", 1)),
    "generator 0": Case("generator", put("generator", 0)),
    "generator 2": Case("generator", put("generator", 2)),
    "generator for private use": Case("generator", put("generator", 200)),
    "generator out of range": Case("header", put("generator", 256)),
    "basis 4": Case("basis", deep("kinds", 0, 6, value=4)),
    "basis for private use": Case("basis", deep("kinds", 0, 6, value=255)),
    "base of two": Case("header", put("base", ["a", bytes(32)])),
    "base with a short hash": Case("header", put("base", ["a", "b", bytes(31)])),
    "base with a revision that is no text": Case("header", put("base", ["a", None, bytes(32)])),
    "boolean for an integer": Case("header", put("amplitude_slope", True)),
    "seed negative": Case("header", put("seed", -1)),
    "slope": Case("header", put("amplitude_slope", 65)),
    "short digest": Case("header", deep("rungs", 0, 0, value=bytes(31))),
    "digest as text": Case("header", deep("rungs", 0, 0, value="0" * 32)),
    "metadata value": Case("header", put("metadata", {"a": 1})),
    "measured value": Case("header", deep("rungs", 0, 1, value={"nmse": 1})),
    "measured infinite": Case("header", deep("rungs", 0, 1, value={"nmse": float("inf")})),
    "config list": Case("header", put("config", [])),
    "writer": Case("header", put("writer", None)),
    "block of none": Case("header", put("blocks", [4, 0])),
    "blocks do not add up": Case("header", put("blocks", [3])),
    "sections too few": Case("header", joined(sections=lambda r: r[:-1])),
    "section of two": Case("header", joined(sections=lambda r: [r[0], r[1][:2]])),
    "section checksum out of range": Case("header", rows(lambda r: set_item(r[1], 2, 1 << 32))),
    "section length negative": Case("header", rows(lambda r: set_item(r[0], 1, -8))),
    # Quantizers, frequencies
    "quantizer type": Case("header", deep("quantizers", 0, 0, value=4)),
    "quantizer type for private use": Case("header", deep("quantizers", 0, 0, value=200)),
    "no points": Case("header", deep("quantizers", 0, value=[0, [], None])),
    "points descend": Case("header", deep("quantizers", 0, value=[0, [5, -1], None])),
    "points equal": Case("header", deep("quantizers", 0, value=[0, [4, 0], None])),
    "point 0 of a dependent codebook": Case("header", deep("quantizers", 0, value=[3, [0, [0, 4], [1, 1]], None])),
    "point too large": Case("header", deep("quantizers", 0, value=[0, [0, 32769], None])),
    "too many points": Case("header", deep("quantizers", 0, value=[0, [1] * 257, None])),
    "too many dependent points": Case("header", deep("quantizers", 0, value=[3, [0, [1] * 128, [1] * 128], None])),
    "integers of 8 bits": Case("header", deep("quantizers", 0, value=[1, 8, None])),
    "integers of 17 bits": Case("header", deep("quantizers", 0, value=[1, 17, None])),
    "frequencies do not add up": Case("header", deep("quantizers", 0, value=[0, [0, 1], [4000, 97]])),
    "frequency 0": Case("header", deep("quantizers", 0, value=[0, [0, 1], [4096, 0]])),
    "frequencies too few": Case("header", deep("quantizers", 0, value=[0, [0, 1, 2], [4000, 96]])),
    "frequencies of integers": Case("header", deep("quantizers", 0, value=[1, 9, [8] * 512])),
    "unknown trellis": Case("header", deep("quantizers", 0, value=[2, 13, None])),
    "trellis with frequencies": Case("header", deep("quantizers", 0, value=[2, 0, [2048, 2048]])),
    "dependent codebooks of two sizes": Case("header", deep("quantizers", 0, value=[3, [55, [2, 2], [1]], None])),
    "dependent codebook that descends": Case("header", deep("quantizers", 0, value=[3, [55, [2, 2], [3, -2]], None])),
    "dependent mask": Case("header", deep("quantizers", 0, value=[3, [256, [2], [1]], None])),
    "dependent without a mask": Case("header", deep("quantizers", 0, value=[3, [[2], [1]], None])),
    "frequencies of one side too many": Case("header", deep("quantizers", 0, value=[3, [55, [2], [1]], [4094, 1, 1]])),
    # References
    "a reference that is not there": Case("reference", deep("reference", 0, value=bytes(32), name="reference"), False),
    "a chain of no files": Case("reference", deep("reference", 1, value=0, name="reference"), False),
    "a chain that is too short": Case("reference", deep("reference", 1, value=1, name="reference-chain"), False),
    "a record that the reference lacks": Case(
        "reference", deep("kinds", 0, 1, value="model.layers.#.elsewhere", name="reference"), False
    ),
    "a record that is another size in the reference": Case(
        "reference", deep("reference", 0, value=decoded_sha256("rungs"), name="reference"), False
    ),
    "exponents far from the reference's": Case("scale", integer(7, 0, -16, "reference"), False),
    "a reference without its flag": Case("header", joined("reference", required=0)),
    "a flag without its reference": Case("header", joined(required=1)),
    "a difference to nothing": Case("header", deep("kinds", 0, 7, value=2)),
    "form 3": Case("header", deep("kinds", 0, 7, value=3, name="reference")),
    "half of a difference's units": Case("units", integer(4, 0, -3, "reference"), False),
    "reference of three": Case("header", top(lambda t: t["reference"].pop(), "reference")),
    "short hash of a reference": Case("header", deep("reference", 0, value=bytes(31), name="reference")),
    "files below as a float": Case("header", deep("reference", 1, value=1.0, name="reference")),
    "a chain too long": Case("limit", deep("reference", 1, value=33, name="reference")),
    "gain negative": Case("header", deep("reference", 2, 0, value=-1, name="reference")),
    "gain too large": Case("header", deep("reference", 2, 1, value=1 << 15, name="reference")),
    "three gains": Case("header", deep("reference", 2, value=[1, 1, 1], name="reference")),
    "name of a reference with a directory": Case("header", deep("reference", 3, value="../a", name="reference")),
    "name of a reference that is a directory": Case("header", deep("reference", 3, value="..", name="reference")),
    # Rungs
    "no rung": Case("header", put("rungs", [])),
    "too many rungs": Case("header", top(lambda t: t.update(rungs=t["rungs"] * 65))),
    "a rung of one": Case("header", top(lambda t: t["rungs"][0].pop())),
    "a rung more than sections": Case("header", top(lambda t: t.update(rungs=t["rungs"] * 2))),
    "units of a later rung": Case(
        "symbols", section(late_units("rungs"), lambda b: b + b"\1" * 9, "rungs"), at_open=False
    ),
    "another digest at an earlier rung": Case(
        "factors-checksum", top(lambda t: set_item(t["rungs"][0], 0, bytes(32)), "rungs"), at_open=False
    ),
    # Kinds
    "record type": Case("header", deep("kinds", 0, 0, value=3)),
    "record type of no number": Case("header", deep("kinds", 0, 0, value=[2])),
    "vector kind too short": Case("header", top(lambda t: t["kinds"][4].pop(), "vectors")),
    "vector of a low-rank kind": Case("header", deep("kinds", 0, 0, value=2, name="vectors")),
    "dtype of a vector": Case("header", deep("kinds", 4, 2, value=3, name="vectors")),
    "vector of size 0": Case("header", deep("kinds", 4, 5, value=[0], name="vectors")),
    "vector shape that is a number": Case("header", deep("kinds", 4, 5, value=36, name="vectors")),
    "basis of a vector": Case("basis", deep("kinds", 4, 3, value=4, name="vectors")),
    "num_basis 0 of a vector": Case("header", deep("kinds", 4, 4, value=0, name="vectors")),
    "num_basis above a vector's length": Case("header", deep("kinds", 4, 4, value=37, name="vectors")),
    "num_basis of a vector as a list": Case("header", deep("kinds", 4, 4, value=[36], name="vectors")),
    "kind too short": Case("header", top(lambda t: t["kinds"][0].pop())),
    # Drawn kinds: [3, template, dtypes, shape, method, digits, seed, start, axis, low, high, divisor]
    "drawn records without their flag": Case("header", joined("drawn", required=0)),
    "a flag without drawn records": Case("header", joined(required=2)),
    "drawn kind too short": Case("header", top(lambda t: t["kinds"][3].pop(), "drawn")),
    "drawn kind of a raw one": Case("header", deep("kinds", 2, 0, value=3, name="drawn")),
    "record type 4": Case("header", deep("kinds", 3, 0, value=4, name="drawn")),
    "template of a drawn kind": Case("header", deep("kinds", 3, 1, value=7, name="drawn")),
    "drawn in no dtype": Case("header", deep("kinds", 3, 2, value=[], name="drawn")),
    "drawn in five dtypes": Case("header", deep("kinds", 3, 2, value=[0] * 5, name="drawn")),
    "drawn in doubles": Case("header", deep("kinds", 3, 2, value=[3], name="drawn")),
    "drawn shape of size 0": Case("header", deep("kinds", 3, 3, value=[0, 24], name="drawn")),
    "drawn method": Case("header", deep("kinds", 3, 4, value=3, name="drawn")),
    "drawn digits": Case("header", deep("kinds", 3, 5, value=23, name="drawn")),
    "drawn digits that are true": Case("header", deep("kinds", 3, 5, value=True, name="drawn")),
    "drawn seed": Case("header", deep("kinds", 3, 6, value=1 << 32, name="drawn")),
    "drawn seed negative": Case("header", deep("kinds", 3, 6, value=-1, name="drawn")),
    "drawn start": Case("header", deep("kinds", 3, 7, value=(1 << 34) + 1, name="drawn")),
    "drawn axis": Case("header", deep("kinds", 3, 8, value=2, name="drawn")),
    "drawn axis 1 of one dimension": Case("header", deep("kinds", 5, 8, value=1, name="drawn")),
    "drawn low as an integer": Case("header", deep("kinds", 3, 9, value=-1, name="drawn")),
    "drawn low that float32 has not": Case("header", deep("kinds", 3, 9, value=-0.3, name="drawn")),
    "drawn low above high": Case("header", deep("kinds", 3, 9, value=0.5, name="drawn")),
    "drawn high too large": Case("header", deep("kinds", 3, 10, value=2.0**33, name="drawn")),
    "drawn high infinite": Case("header", deep("kinds", 3, 10, value=float("inf"), name="drawn")),
    "divided by 0": Case("header", deep("kinds", 3, 11, value=0.0, name="drawn")),
    "divided by a negative number": Case("header", deep("kinds", 3, 11, value=-1.0, name="drawn")),
    "divided by too little": Case("header", deep("kinds", 3, 11, value=2.0**-33, name="drawn")),
    "divided by too much": Case("header", deep("kinds", 3, 11, value=2.0**33, name="drawn")),
    "divisor as an integer": Case("header", deep("kinds", 3, 11, value=1, name="drawn")),
    "empty kind": Case("header", deep("kinds", 0, value=[])),
    "layout": Case("header", deep("kinds", 0, 2, value=3)),
    "rank differs": Case("header", deep("kinds", 0, 10, value=[5, 64])),
    "one dimension": Case("header", deep("kinds", 0, 10, value=[4])),
    "size 0": Case("header", deep("kinds", 0, 9, value=[0, 4])),
    "lora_B with a kernel": Case("header", deep("kinds", 0, 9, value=[40, 4, 2])),
    "scaling is an integer": Case("header", deep("kinds", 0, 3, value=2)),
    "scaling is not a number": Case("header", deep("kinds", 0, 3, value=float("nan"))),
    "fan_in_fan_out": Case("header", deep("kinds", 0, 4, value=2)),
    "dtype of factors": Case("header", deep("kinds", 0, 5, value=3)),
    "split": Case("header", deep("kinds", 0, 7, value=2)),
    "num_basis 0": Case("header", deep("kinds", 0, 8, value=[0, 1])),
    "num_basis above the length": Case("header", deep("kinds", 0, 8, value=[41, 64])),
    "raw dtype": Case("header", deep("kinds", 1, 2, value=15, name="raw-tensors")),
    "raw shape": Case("header", deep("kinds", 1, 3, value=[-1], name="raw-tensors")),
    "raw shape that overflows 64 bits": Case("limit", deep("kinds", 1, 3, value=OVERFLOWING, name="raw-tensors")),
    "the same kind twice": Case("header", top(twice_the_kind)),
    "a kind nobody uses": Case("header", top(lambda t: t["kinds"].append([1, "x", 0, []]))),
    "kinds out of order": Case("header", put("records", [1, 0, 0, 0])),
    # Records
    "vectors first": Case("header", top(vectors_first, "vectors")),
    "raw before vectors": Case("header", top(raw_before_vectors, "vectors")),
    "vector too large": Case("limit", deep("kinds", 4, 5, value=[1 << 16, 1 << 16], name="vectors")),
    "vector shape that overflows 64 bits": Case("limit", deep("kinds", 4, 5, value=OVERFLOWING, name="vectors")),
    "too many dimensions of a vector": Case("limit", deep("kinds", 4, 5, value=[1] * 9, name="vectors")),
    "drawn before raw": Case("header", top(drawn_before_raw, "drawn")),
    "raw records first": Case("header", top(raw_first, "raw-tensors")),
    "one name twice": Case("header", top(one_name_twice)),
    "negative kind": Case("header", put("records", [-1, 0, 0, 0])),
    "a kind that is not there": Case("header", put("records", [0, 0, 0, 2])),
    "records as bytes": Case("header", put("records", bytes(4))),
    "numbers too few": Case("header", top(lambda t: t["numbers"].pop())),
    "numbers too many": Case("header", top(lambda t: t["numbers"].append(0))),
    "number negative": Case("header", top(lambda t: set_item(t["numbers"], 0, -1))),
    "streams too few": Case("header", put("streams", [0])),
    "stream out of range": Case("header", put("streams", [0, 1, 2, 1 << 31])),
    # Limits
    "long name": Case("limit", deep("kinds", 0, 1, value="x" * 1025)),
    "too many dimensions": Case("limit", deep("kinds", 0, 10, value=[4, 64, *[1] * 7])),
    "factor too large": Case("limit", deep("kinds", 0, 9, value=[1 << 31, 4])),
    "rank too large": Case("limit", deep("kinds", 0, slice(9, 11), value=[[1, 1 << 17], [1 << 17, 1]])),
    "too many quantizers": Case("limit", put("quantizers", [[2, 1, None]] * 257)),
    "too many elements": Case(
        "limit",
        top(
            lambda t: t.update(
                kinds=[[*WIDE[:1], f"w{i}", *WIDE[2:]] for i in range(9)],
                records=[*range(9)],
                numbers=[],
            )
        ),
    ),
    "drawn tensor of 16 TB": Case("limit", deep("kinds", 3, 3, value=[1 << 21, 1 << 21], name="drawn")),
    "drawn shape that overflows 64 bits": Case("limit", deep("kinds", 3, 3, value=OVERFLOWING, name="drawn")),
    "drawn tensor of nine dimensions": Case("limit", deep("kinds", 3, 3, value=[1] * 9, name="drawn")),
    "drawn tensors of 32 GB together": Case(
        "limit", top(lambda t: [set_item(t["kinds"][k], 3, [1 << 31]) for k in (3, 4)], "drawn")
    ),
    "drawn a long way into the sequence, twice": Case(
        "limit", top(lambda t: [set_item(t["kinds"][k], 7, 1 << 33) for k in (3, 4)], "drawn")
    ),
    "dimension too large": Case("header", deep("kinds", 0, 10, value=[4, BIG])),
    # Symbols
    "codec of a block": Case("codec", section(1, lambda b: b, "nmse", codec=3), at_open=False),
    "zstd of a block": Case("codec", section(1, frame, "codec-raw", codec=1), at_open=False),
    "codec for private use": Case("codec", section(1, lambda b: b, "nmse", codec=200), at_open=False),
    "codec of the units": Case("codec", section(0, lambda b: b, "nmse", codec=0), at_open=False),
    "codec of a raw tensor": Case("codec", section(2, lambda b: b, "raw-tensors", codec=2), at_open=False),
    "rans with nothing but packed symbols": Case("symbols", section(1, lambda b: b, "bits-1", codec=2), at_open=False),
    "packed symbols too long": Case("symbols", section(1, lambda b: b + b"\0", "codec-raw"), at_open=False),
    "packed symbols too short": Case("symbols", section(1, lambda b: b[:-1], "codec-raw"), at_open=False),
    "packed symbol outside the alphabet": Case("symbols", section(1, lambda b: b"\xff" + b[1:], "codec-raw"), False),
    "padding bits of packed symbols": Case(
        "symbols", section(1, lambda b: set_last(b, 0x80), "codec-raw"), at_open=False
    ),
    "zstd frame that declares more than it can hold": Case("zstd", lambda: bomb(), at_open=False),
    "rans lanes": Case("symbols", section(1, lambda b: b"\x0d" + b[1:], "codec-rans"), at_open=False),
    "rans without a byte": Case("symbols", section(1, lambda b: b"", "codec-rans"), at_open=False),
    "rans without its states": Case("symbols", section(1, lambda b: b[:3], "codec-rans"), at_open=False),
    "rans half a word": Case("symbols", section(1, lambda b: b + b"\0", "codec-rans"), at_open=False),
    "rans out of words": Case("symbols", section(1, lambda b: b[:-2], "codec-rans"), at_open=False),
    "rans a word too many": Case("symbols", section(1, lambda b: b + b"\0\0", "codec-rans"), at_open=False),
    "rans another state": Case("symbols", section(1, lambda b: b[:3] + b"\x55" + b[4:], "codec-rans"), at_open=False),
    "rans another word": Case(
        "symbols", section(1, lambda b: b[:-1] + bytes([b[-1] ^ 1]), "codec-rans"), at_open=False
    ),
    "raw tensor too short": Case("symbols", section(2, lambda b: b[:-1], "raw-tensors"), at_open=False),
    # Units, arithmetic, decoded SHA-256
    # Roles of integers: 0 rows, 1 precision, 2 quantizer, 3 weight, 4 to 6 counts, 7 exponents, 8 to 10 precisions, 11
    # later amplitudes; of a kind 12 tables, 13 shifts, 14 amplitude; from 15 on first amplitudes.
    "an integer of too many bits": Case("symbols", section(0, lambda b: b"\xff\xff\xff\xfe" * 20, "nmse"), False),
    "integers that begin out of range": Case("symbols", section(0, lambda b: b"\xff" * len(b), "nmse"), at_open=False),
    "bytes after the integers": Case("symbols", section(0, lambda b: b + b"\1" * 9, "nmse"), at_open=False),
    "table of a kind": Case("units", integer(12, 0, 256), at_open=False),
    "table of a kind negative": Case("units", integer(12, 0, -1), at_open=False),
    "shift": Case("units", integer(13, 0, 1200), at_open=False),
    "shift of a vector": Case("units", integer(13, -1, -1200, "vectors"), at_open=False),
    "amplitude of a kind": Case("units", integer(14, 0, 17000), at_open=False),
    "amplitude of a vector's kind": Case("units", integer(14, -1, -17000, "vectors"), at_open=False),
    "negative number of rows": Case("units", integer(0, 0, -100), at_open=False),
    "too many rows": Case("limit", integer(0, 0, 1 << 14), at_open=False),
    "row of an unknown quantizer": Case("units", integer(2, 0, 99), at_open=False),
    "row of a quantizer below -1": Case("units", integer(2, 0, -9), at_open=False),
    "row with a large weight": Case("units", integer(3, 0, 128), at_open=False),
    "row with a negative weight": Case("units", integer(3, 0, -1), at_open=False),
    "precision of a row out of range": Case("units", integer(1, 0, -17000), at_open=False),
    "rows not ascending": Case("units", integer(1, 1, -99), at_open=False),
    "more units than the rank": Case("units", integer(4, 0, 9), at_open=False),
    "fewer units than none": Case("units", integer(4, 0, -9), at_open=False),
    "units that go away": Case("units", integer(5, 0, -2, "rungs", rung=1), at_open=False),
    "one unit of a factor": Case("units", integer(4, 0, -1, "bits-1"), at_open=False),
    "two units of a vector": Case("units", integer(5, -1, 1, "vectors"), at_open=False),
    "exponent too large": Case("units", integer(7, 0, 150), at_open=False),
    "exponent too small": Case("units", integer(7, 0, -150), at_open=False),
    "no quantizer for a precision": Case("units", integer(1, 0, 300), at_open=False),
    "amplitude out of range": Case("units", integer(FIRST_AMPLITUDES, 0, 5000), at_open=False),
    "sums too large": Case("bound", lambda: too_large(), at_open=False),
    "shift too small": Case("scale", integer(7, 0, -90), at_open=False),
    "shift too large": Case("scale", integer(7, 0, 90), at_open=False),
    "another digest": Case("factors-checksum", deep("rungs", 0, 0, value=bytes(32)), at_open=False),
    "drawn from another seed": Case("factors-checksum", deep("kinds", 3, 6, value=8, name="drawn"), at_open=False),
    "drawn from the next word": Case("factors-checksum", deep("kinds", 3, 7, value=1, name="drawn"), at_open=False),
    "drawn in another way": Case("factors-checksum", deep("kinds", 3, 4, value=0, name="drawn"), at_open=False),
    "drawn with other digits": Case("factors-checksum", deep("kinds", 3, 5, value=11, name="drawn"), at_open=False),
    "drawn along another axis": Case("factors-checksum", deep("kinds", 4, 8, value=1, name="drawn"), at_open=False),
    "divided by another number": Case("factors-checksum", deep("kinds", 8, 11, value=0.25, name="drawn"), False),
    "another seed": Case("factors-checksum", put("seed", 8), at_open=False),
}


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
