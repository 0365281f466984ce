"""Change whole files at random, and make their checksums fit; `changes.py` of the tests changes bytes and trees.

Each function takes a `random.Random`, so that a number repeats an input.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import zstandard
from changes import alter, scramble
from nola_forge import DICTIONARY, Parts, canonical, pack_integers, table, units_integers
from nola_forge import join as seal_parts
from nola_forge import split as split_new

Integers = list[tuple[int, int]]
"""The (role, value) of each integer of a units section."""

_STORED = zstandard.ZstdCompressor(
    dict_data=zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT),
    compression_params=zstandard.ZstdCompressionParameters.from_level(
        1, write_content_size=True, write_checksum=False, format=zstandard.FORMAT_ZSTD1_MAGICLESS
    ),
)


@lru_cache(maxsize=4096)
def _take_apart(data: bytes) -> Parts:
    return split_new(data)


def split(data: bytes) -> Parts:
    """Take a valid file apart, as `nola_forge.split`, which is not done twice for one file: values are shared."""
    parts = _take_apart(data)
    return Parts(dict(parts.top), list(parts.sections))


def join(top: dict[str, Any], sections: list[tuple[int, bytes]], plain: bytes | None = None) -> bytes:
    """Return a file of a header's map and sections, or of other bytes for the plain header; checksums fit."""
    if plain is None:
        plain = canonical({**top, "sections": table(sections)})
    made: bytes = seal_parts(Parts(top, sections), plain=lambda _: b"", stored_header=_STORED.compress(plain))
    return made


_units: dict[bytes, tuple[list[Integers], int]] = {}
"""For files that `remember_units` was given: the integers of their units sections, and the number of blocks."""


def remember_units(files: Sequence[bytes]) -> None:
    """Decode the units sections of good files, so that `alter_file` can change an integer in them."""
    for data in files:
        _units[data] = units_integers(data), len(split(data).top["blocks"])


def alter_file(data: bytes, rng: random.Random) -> bytes:
    """Return a `.nola` file with a fault somewhere, behind right checksums; a few have wrong ones."""
    try:
        parts = split(data)
    except Exception:  # not a whole file any more
        return scramble(data, rng)
    top, sections = parts.top, parts.sections
    choice = rng.random()
    if choice < 0.04:
        return scramble(data, rng)
    if choice < 0.2:
        return join(top, sections, scramble(canonical({**top, "sections": table(sections)}), rng))
    if choice < 0.65:
        for _ in range(rng.choice((1, 1, 2, 3))):
            top = alter({key: item for key, item in top.items() if key != "sections"}, rng, wire=True)
            top = top if isinstance(top, dict) else {}
        try:
            return join(top, sections)
        except (TypeError, ValueError, OverflowError, AttributeError):  # values that MessagePack has no form for
            return scramble(data, rng)
    if choice < 0.8 and (found := _units.get(data)) is not None:
        return join(top, _alter_units(*found, sections, len(top["rungs"]), rng))
    if not sections:
        return scramble(data, rng)
    at = rng.randrange(len(sections))
    codec, section = sections[at]
    match rng.randrange(8):
        case 0:
            sections[at] = sections[rng.randrange(len(sections))]
        case 1:
            sections[at] = rng.choice((0, 1, 2, 3, 4)), section
        case _:
            sections[at] = codec, scramble(section, rng)
    return join(top, sections)


def _alter_units(
    integers: list[Integers], blocks: int, sections: list[tuple[int, bytes]], rungs: int, rng: random.Random
) -> list[tuple[int, bytes]]:
    """Return the sections with a few integers of one units section changed."""
    rung = rng.randrange(len(integers))
    own = list(integers[rung])
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not own:
            break
        at = rng.randrange(len(own))
        role, value = own[at]
        match rng.randrange(6):
            case 0:
                del own[at]
            case 1:
                own.insert(at, own[at])
            case 2:
                own[at] = role, rng.choice((0, 1, -1, 127, -128, 4096, (1 << 20) - 1, 1 - (1 << 20)))
            case _:
                changed = value + rng.choice((-1, 1, -2, 2, 16, -16))
                own[at] = role, max(1 - (1 << 20), min((1 << 20) - 1, changed))
    carried = len(sections) - rungs * (1 + blocks)
    number = 0 if rung == 0 else rung * (1 + blocks) + carried
    return [*sections[:number], (sections[number][0], pack_integers(own)), *sections[number + 1 :]]


def alter_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with another header, or with other bytes."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = data[8 + length :]
        if rng.random() < 0.8:
            text = json.dumps(alter(header, rng)).encode()
        else:
            text = scramble(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(text)) + text + body
    except (ValueError, RecursionError):
        return scramble(data, rng)


@lru_cache(maxsize=4096)
def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as plain:
        return {name: plain.read(name) for name in plain.namelist()}


def alter_zip(data: bytes, rng: random.Random) -> bytes:
    """Return a zip archive with a member changed, and checksums that fit."""
    out = io.BytesIO()
    try:
        members = dict(_members(data))
        name = rng.choice(sorted(members))
        match rng.randrange(6):
            case 0:
                del members[name]
            case 1:
                members[rng.choice(("x.npy", "../x.npy", "a/data.pkl", "a/byteorder", ""))] = members[name]
            case _:
                members[name] = scramble(members[name], rng)
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as changed:
            for name, content in members.items():
                changed.writestr(zipfile.ZipInfo(name), content)
    except Exception:  # whatever is wrong with an archive that was changed before
        return scramble(data, rng)
    return out.getvalue()


def alter_undo(data: bytes, rng: random.Random) -> bytes:
    """Return an undo file with another index or with another block, and checksums that fit."""
    footer = 48
    try:
        offset = int.from_bytes(data[-16:-8], "little")
        index = json.loads(zstandard.ZstdDecompressor().decompress(data[offset:-footer]))
        blocks = data[:offset]
        if rng.random() < 0.3:
            lists = [each for shard in index["shards"].values() for each in shard["blocks"].values()]
            entry = rng.choice(rng.choice(lists))
            start, length = entry[2:4]
            block = scramble(blocks[start : start + length], rng)[:length].ljust(length, b"\0")
            entry[4] = zlib.crc32(block)
            blocks = blocks[:start] + block + blocks[start + length :]
        else:
            index = alter(index, rng)
        packed = zstandard.ZstdCompressor(level=1).compress(json.dumps(index).encode())
    except Exception:  # a file that was changed before
        return scramble(data, rng)
    return blocks + packed + hashlib.sha256(packed).digest() + struct.pack("<QQ", offset, len(packed))


def sometimes(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """Return a function that changes a file by its structure mostly, and bytes of it else."""

    def either(data: bytes, rng: random.Random) -> bytes:
        return change(data, rng) if rng.random() < 0.8 else scramble(data, rng)

    return either
