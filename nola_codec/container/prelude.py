"""The first 38 bytes of a file: magic, version, flags, length of the header, checksums (specification, "File")."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from nola_codec.container.limits import Limits
from nola_codec.errors import ChecksumMismatch, FormatError, mismatch

MAGIC = b"\x89NLA\r\n\x1a\n"
VERSION, REVISION = 0, 3
SIZE = 38
CONTENT_BYTES = 16
"""The bytes of a SHA-256 that the prelude stores as the content SHA-256."""
BEFORE_CONTENT = 18
"""The bytes of the prelude that the content SHA-256 covers."""
REFERENCE_FLAG = 1
"""The required flag of a file that is coded against a reference."""
DRAWN_FLAG = 2
"""The required flag of a file with drawn tensors."""
KNOWN_REQUIRED_FLAGS = REFERENCE_FLAG | DRAWN_FLAG
_EARLIER_READERS = {1: "nola-codec 0.1.0 before its commit 4c4bb00", 2: "nola-codec 0.1.0"}
"""The versions that read earlier revisions of the draft."""
_LAYOUT = struct.Struct(f"<8sHHHI{CONTENT_BYTES}s")


@dataclass(frozen=True)
class Prelude:
    """The fields of the prelude, which the specification explains.

    `content_sha256` covers bytes 0 to 17 and everything from byte 38 on; it has 16 bytes.
    """

    required_flags: int
    header_stored: int
    content_sha256: bytes
    version: int = VERSION
    revision: int = REVISION

    def pack(self, stored_header: bytes) -> bytes:
        """Return the 38 bytes of the prelude; the last four are the CRC-32 of the others and of the stored header."""
        fields = _LAYOUT.pack(
            MAGIC, self.version, self.revision, self.required_flags, self.header_stored, self.content_sha256
        )
        return fields + struct.pack("<I", zlib.crc32(stored_header, zlib.crc32(fields)))


def unpack_prelude(data: bytes, limits: Limits) -> Prelude:
    """Parse and check the first bytes of a file. `check_header` checks their checksum once the header is read.

    Raises:
        FormatError: ``magic``: This is not a `.nola` file. ``version``: It is of another version of the format, or of
            another revision of its draft. ``feature``: It needs a newer reader. ``truncated``, ``limit``: A length is
            wrong or too large.
    """
    _check_magic(data)
    if len(data) < SIZE:
        raise FormatError(mismatch("prelude", f"{SIZE} bytes", len(data)), code="truncated")
    _, version, revision, required, stored, sha = _LAYOUT.unpack_from(data)
    if version != VERSION:
        text = mismatch("format version", VERSION, version)
        raise FormatError(f"{text}; a newer version of nola-codec reads it", code="version")
    if revision != REVISION:
        text = mismatch("revision of the draft of the format", REVISION, revision)
        reader = _EARLIER_READERS.get(revision, "a newer version of nola-codec")
        advice = "decode it with that, and encode the adapter again" if revision < REVISION else "install that"
        raise FormatError(f"{text}; {reader} reads it: {advice}", code="version")
    unknown = required & ~KNOWN_REQUIRED_FLAGS
    if unknown:
        raise FormatError(f"the file needs features this reader lacks: flags {unknown:#x}", code="feature")
    limits.require("header_stored", stored, "stored header (bytes)")
    return Prelude(required, stored, sha, version, revision)


def check_header(data: bytes, stored_header: bytes) -> None:
    """Compare the CRC-32 in a prelude; ChecksumMismatch ``header-checksum`` if prelude or header were altered."""
    (crc,) = struct.unpack_from("<I", data, _LAYOUT.size)
    if crc != zlib.crc32(stored_header, zlib.crc32(data[: _LAYOUT.size])):
        raise ChecksumMismatch("prelude and header: CRC-32 does not match", code="header-checksum")


def _check_magic(data: bytes) -> None:
    if data[: len(MAGIC)] == MAGIC:
        return
    if len(data) < len(MAGIC) and MAGIC.startswith(data):
        raise FormatError(mismatch("prelude", f"{SIZE} bytes", len(data)), code="truncated")
    hint = ""
    if data[:4] == b"\x89NLA":
        hint = " (line endings were changed in transfer: copy the file in binary mode)"
    elif data.startswith(b"version https://git-lfs"):
        hint = " (a git-LFS pointer: fetch the file itself)"
    elif data[:1] == b"<":
        hint = " (looks like a web page)"
    raise FormatError(f"not a .nola file: it starts with {data[:8]!r}{hint}", code="magic")
