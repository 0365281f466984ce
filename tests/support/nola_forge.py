"""Takes `.nola` files apart and puts them together again, checksums and all, without the package's own writer.

parts = split(golden("nmse"))
parts.top["generator"] = 3
data = join(parts)          # a file whose only fault is its generator
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import zstandard

from nola_codec.arrays import NUMPY, Arrays
from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.container.reader import open_container
from nola_codec.entropy.adaptive import IntegerWriter
from nola_codec.references.finding import References, open_decoder

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "spec" / "conformance"
GOLDEN = KIT / "valid"
"""The files that the encoder made are golden files; others in this folder were made by chance, or signed."""
DICTIONARY = (ROOT / "spec" / "header-dictionary.bin").read_bytes()
MAGIC = b"\x89NLA\r\n\x1a\n"
PRELUDE = 38


def golden(name: str) -> bytes:
    """A golden file by its name without the suffix."""
    return (GOLDEN / f"{name}.nola").read_bytes()


def golden_names() -> list[str]:
    """The names of all golden files without the suffix, in ascending order."""
    names = sorted(path.stem for path in GOLDEN.glob("*.nola"))
    return [name for name in names if not name.startswith(("random-", "signed"))]


def manifest() -> dict[str, dict[str, Any]]:
    """What the conformance kit says of each golden file, by file name.

    `bytes` and `sha256` of the file; `factors_sha256`, the decoded SHA-256 of its last rung; `tensors` of that rung.
    """
    listed = json.loads((KIT / "files.json").read_text(encoding="utf-8"))["valid"]
    entries = {entry["file"]: entry for entry in listed}
    made = {}
    for name in golden_names():
        entry = entries[f"valid/{name}.nola"]
        last = entry["rungs"][-1]
        made[f"{name}.nola"] = {
            "bytes": entry["bytes"],
            "sha256": entry["sha256"],
            "factors_sha256": last["decoded_sha256"],
            "tensors": last["tensors"],
        }
    return made


@cache
def reference_answers() -> dict[bytes, Any]:
    """What the reference decoder makes of all golden files, as its `decode` takes it for files with a reference."""
    known: dict[bytes, Any] = {}
    left = golden_names()
    while left:
        data = golden(left[0])
        entry = split(data).top.get("reference")
        if entry is None or entry[0] in known:
            reference().decode(data, known)
        else:
            left.append(left[0])
        left.pop(0)
    return known


@cache
def reference() -> ModuleType:
    """`spec/reference_decoder.py` as a module."""
    spec = importlib.util.spec_from_file_location("reference_decoder", ROOT / "spec" / "reference_decoder.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def verify(data: bytes, limits: Limits = DEFAULT_LIMITS, xp: Arrays = NUMPY, references: References = GOLDEN) -> None:
    """Every check that the package has for a file, what is nearest to a fault first."""
    with open_container(data, limits) as container:
        for rung in range(container.rungs):
            container.select(rung)
            open_decoder(container, xp, references).decode_all()
        container.check_content()


@dataclass
class Parts:
    """A file in pieces, to be altered.

    Attributes:
        top: The header's map; its ``sections`` are made anew by `join`.
        sections: (codec, stored bytes).
    """

    top: dict[str, Any]
    sections: list[tuple[int, bytes]]


def frame(plain: bytes, dictionary: bytes = b"", **options: Any) -> bytes:
    """A zstd frame without its magic number."""
    options = {"write_content_size": True, "write_checksum": False, **options}
    parameters = zstandard.ZstdCompressionParameters.from_level(19, source_size=len(plain), **options)
    extra = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    compressor = zstandard.ZstdCompressor(dict_data=extra, compression_params=parameters)
    return compressor.compress(plain)[4:]


def unframe(stored: bytes, dictionary: bytes = b"") -> bytes:
    """Undo `frame`."""
    extra = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    return zstandard.ZstdDecompressor(dict_data=extra).decompress(b"\x28\xb5\x2f\xfd" + stored)


def stored_header(data: bytes) -> bytes:
    """The compressed header of a file."""
    return data[PRELUDE : PRELUDE + struct.unpack_from("<I", data, 14)[0]]


def split(data: bytes) -> Parts:
    """Take a valid file apart."""
    stored = stored_header(data)
    top = msgpack.unpackb(unframe(stored, DICTIONARY))
    position, sections = PRELUDE + len(stored), []
    for codec, size, _ in top["sections"]:
        sections.append((codec, data[position : position + size]))
        position += size
    return Parts(top, sections)


def table(sections: list[tuple[int, bytes]]) -> list[list[int]]:
    """The header's `sections` for these."""
    return [[codec, len(data), zlib.crc32(data)] for codec, data in sections]


def join(
    parts: Parts,
    *,
    plain: Callable[[dict[str, Any]], bytes] = lambda top: canonical(top),
    sections: Callable[[list[list[int]]], Any] = lambda rows: rows,
    stored_header: bytes | None = None,
    frame_checksum: bool = False,
    tail: bytes = b"",
    **prelude: int,
) -> bytes:
    """Put a file together; only what is asked for is wrong with it.

    Args:
        parts: The header's map and the sections.
        plain: Header map -> bytes, by default canonical MessagePack.
        sections: Alters the section table.
        stored_header: Stands for the compressed header.
        frame_checksum: True adds a content checksum to the frame of the header.
        tail: Goes after the last section.
        prelude: Fields to set: version, revision, required. The required flags are by default those of the header.
    """
    header = plain({**parts.top, "sections": sections(table(parts.sections))})
    stored = frame(header, DICTIONARY, write_checksum=frame_checksum) if stored_header is None else stored_header
    flags = int("reference" in parts.top) | 2 * has_draws(parts.top)
    return seal(stored, b"".join(data for _, data in parts.sections) + tail, **{"required": flags, **prelude})


def has_draws(top: dict[str, Any]) -> bool:
    """True if a header, which may be damaged, has a kind of drawn records."""
    kinds = top.get("kinds")
    return isinstance(kinds, list) and any(isinstance(kind, list) and kind[:1] == [3] for kind in kinds)


def seal(header: bytes, body: bytes, **prelude: int) -> bytes:
    """Write the prelude of a file: its length and checksums right, except what is asked for."""
    head = MAGIC + struct.pack(
        "<HHHI",
        prelude.get("version", 0),
        prelude.get("revision", 3),
        prelude.get("required", 0),
        len(header),
    )
    head += hashlib.sha256(head + header + body).digest()[:16]
    return head + struct.pack("<I", zlib.crc32(head + header)) + header + body


def units_integers(data: bytes, known: dict[bytes, Any] | None = None) -> list[list[tuple[int, int]]]:
    """The (role, value) of each integer of each units section of a valid file.

    Args:
        data: The file.
        known: What its references decode to; None stands for the golden files.
    """
    module, sections = reference(), []
    known = dict(reference_answers() if known is None else known)

    class Recording(module.Integers):  # type: ignore[name-defined,misc]
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.log: list[tuple[int, int]] = []
            sections.append(self.log)

        def read(self, role: int) -> int:
            value: int = super().read(role)
            self.log.append((role, value))
            return value

    plain, module.Integers = module.Integers, Recording
    try:
        module.decode(data, known)
    finally:
        module.Integers = plain
    return sections


def pack_integers(integers: list[tuple[int, int]]) -> bytes:
    """A units section of these (role, value)."""
    writer = IntegerWriter()
    for role, value in integers:
        writer.write(role, value)
    return writer.finish()


def canonical(value: Any) -> bytes:
    """MessagePack with maps in the order of their keys."""

    def ordered(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: ordered(item[key]) for key in sorted(item, key=str.encode)}
        return [ordered(i) if type(i) in (list, dict) else i for i in item] if isinstance(item, list) else item

    packed: bytes = msgpack.packb(ordered(value), use_bin_type=True)
    return packed
