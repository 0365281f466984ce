"""Plain bytes in a section, such as a carried tensor: stored as they are (codec 0), or one zstd frame (codec 1).

Example:
        >>> codec, stored = pack_blob(bytes(1000))
        >>> codec, unpack_blob(codec, stored, 1000, "section 1") == bytes(1000)
        (1, True)
"""

from __future__ import annotations

from nola_codec.entropy.frames import compress, decompress
from nola_codec.errors import FormatError, mismatch

STORED, ZSTD = 0, 1


def pack_blob(data: bytes) -> tuple[int, bytes]:
    """(codec id, stored bytes): compressed where that makes them shorter."""
    packed = compress(data)
    return (ZSTD, packed) if len(packed) < len(data) else (STORED, data)


def unpack_blob(codec: int, stored: bytes, size: int, what: str) -> bytes:
    """Undo `pack_blob`.

    Args:
        codec: Id of the section's codec.
        stored: Bytes of the section.
        size: Bytes that must come out, already checked against the limits.
        what: Name for errors.

    Raises:
        FormatError: an unknown codec, a damaged frame, or another size.
    """
    if codec not in (STORED, ZSTD):
        raise FormatError(mismatch(f"{what}: codec of a raw tensor", "0 or 1", codec), code="codec")
    data = decompress(stored, size, what) if codec == ZSTD else stored
    if len(data) != size:
        raise FormatError(mismatch(what, f"{size} bytes", len(data)), code="symbols")
    return data
