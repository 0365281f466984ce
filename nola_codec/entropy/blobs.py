"""Code plain bytes, such as a carried tensor: stored as they are (codec 0), or as one zstd frame (codec 1).

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
    """Return (codec id, stored bytes); the bytes are compressed if that makes them shorter."""
    packed = compress(data)
    return (ZSTD, packed) if len(packed) < len(data) else (STORED, data)


def unpack_blob(codec: int, stored: bytes, size: int, what: str) -> bytes:
    """Undo `pack_blob`.

    Args:
        codec: The id of the section's codec.
        stored: The stored bytes of the section.
        size: The size that the result must have, already checked against the limits.
        what: The name of the section in errors.

    Raises:
        FormatError: The codec is unknown, the frame is damaged, or the size is another one.
    """
    if codec not in (STORED, ZSTD):
        raise FormatError(mismatch(f"{what}: codec of a carried tensor", "0 or 1", codec), code="codec")
    data = decompress(stored, size, what) if codec == ZSTD else stored
    if len(data) != size:
        raise FormatError(mismatch(what, f"{size} bytes", len(data)), code="symbols")
    return data
