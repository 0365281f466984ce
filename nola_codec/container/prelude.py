"""The first 76 bytes of a file: magic, versions, flags, lengths, checksums (specification, "File")."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from nola_codec.container.limits import Limits
from nola_codec.errors import ChecksumMismatch, FormatError, mismatch

MAGIC = b"\x89NLA\r\n\x1a\n"
VERSION, REVISION = 0, 1
SIZE = 76
ALIGNMENT = 8
REFERENCE_FLAG = 1
"""The required flag of a file that is coded against a reference."""
KNOWN_REQUIRED_FLAGS = REFERENCE_FLAG
_LAYOUT = struct.Struct("<8sHHIIIIIQ32s")


@dataclass(frozen=True)
class Prelude:
    """The fields of the prelude, which the specification explains.

    `content_sha256` covers bytes 0 to 39 and everything from byte 76 on.
    """

    required_flags: int
    optional_flags: int
    header_stored: int
    header_plain: int
    header_crc32: int
    file_length: int
    content_sha256: bytes
    version: int = VERSION
    revision: int = REVISION

    def pack(self) -> bytes:
        """Return the 76 bytes of the prelude; the last four are the CRC-32 of the others."""
        fields = _LAYOUT.pack(
            MAGIC,
            self.version,
            self.revision,
            self.required_flags,
            self.optional_flags,
            self.header_stored,
            self.header_plain,
            self.header_crc32,
            self.file_length,
            self.content_sha256,
        )
        return fields + struct.pack("<I", zlib.crc32(fields))


def unpack_prelude(data: bytes, limits: Limits) -> Prelude:
    """Parse and check the first bytes of a file.

    Raises:
        FormatError: ``magic``: This is not a `.nola` file. ``version``, ``feature``: The file needs a newer reader.
            ``truncated``, ``limit``, ``header``: A length is wrong or too large.
        ChecksumMismatch: ``prelude-checksum``: The prelude was altered.
    """
    _check_magic(data)
    if len(data) < SIZE:
        raise FormatError(mismatch("prelude", f"{SIZE} bytes", len(data)), code="truncated")
    _, version, revision, required, optional, stored, plain, crc, length, sha = _LAYOUT.unpack_from(data)
    (stored_crc,) = struct.unpack_from("<I", data, _LAYOUT.size)
    if version != VERSION:
        raise FormatError(mismatch("format version", VERSION, version), code="version")
    if stored_crc != zlib.crc32(data[: _LAYOUT.size]):
        raise ChecksumMismatch("prelude: CRC-32 does not match", code="prelude-checksum")
    unknown = required & ~KNOWN_REQUIRED_FLAGS
    if unknown:
        raise FormatError(f"the file needs features this reader lacks: flags {unknown:#x}", code="feature")
    if stored > limits.header_stored or plain > limits.header_plain:
        raise FormatError(
            mismatch("header size", f"at most {limits.header_stored} stored, {limits.header_plain} plain",
                     f"{stored}, {plain}"), code="limit"
        )  # fmt: skip
    if length < SIZE + stored:
        raise FormatError(mismatch("file length", f"at least {SIZE + stored}", length), code="header")
    return Prelude(required, optional, stored, plain, crc, length, sha, version, revision)


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


def align(offset: int) -> int:
    """Return the next multiple of 8."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
