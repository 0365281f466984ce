"""Code plain bytes, such as a carried tensor: as they are (codec 0), as one zstd frame (1), or as planes (4).

Planes are for elements of several bytes: all first bytes, then all second bytes, and so on. The first planes hold the
low bits of floats, which nothing compresses, and are stored; the other ones are in one zstd frame. Weights in float32
take a tenth less than in one frame alone, and those in bfloat16 a seventh.

Example:
        >>> codec, stored = pack_blob(bytes(1000))
        >>> codec, unpack_blob(codec, stored, 1000, "section 1") == bytes(1000)
        (1, True)
"""

from __future__ import annotations

from nola_codec.entropy.frames import compress, decompress
from nola_codec.errors import FormatError, mismatch
from nola_codec.lazy import numpy as np

STORED, ZSTD, PLANES = 0, 1, 4
_PIECE = 1 << 16
"""The number of elements of a large tensor that tell how many planes to store."""


def pack_blob(data: bytes | memoryview, width: int = 1) -> tuple[int, bytes]:
    """Return (codec id, stored bytes), by the codec that makes them shortest; the lowest id wins a tie.

    Args:
        data: The bytes.
        width: The number of bytes of an element.
    """
    packed = compress(data)
    best = (ZSTD, packed) if len(packed) < len(data) else (STORED, bytes(data))
    if width > 1 and data:
        planes = _pack_planes(data, width)
        best = (PLANES, planes) if len(planes) < len(best[1]) else best
    return best


def unpack_blob(codec: int, stored: bytes, size: int, what: str, width: int = 1) -> bytes:
    """Undo `pack_blob`.

    Args:
        codec: The id of the section's codec.
        stored: The stored bytes of the section.
        size: The size that the result must have, already checked against the limits.
        what: The name of the section in errors.
        width: The number of bytes of an element.

    Raises:
        FormatError: The codec is unknown, the frame is damaged, or the size is another one.
    """
    if codec not in (STORED, ZSTD, PLANES) or (codec == PLANES and width == 1):
        raise FormatError(mismatch(f"{what}: codec of a carried tensor", "0, 1 or 4", codec), code="codec")
    if codec == PLANES:
        return _unpack_planes(stored, size, what, width)
    data = decompress(stored, size, what) if codec == ZSTD else stored
    if len(data) != size:
        raise FormatError(mismatch(what, f"{size} bytes", len(data)), code="symbols")
    return data


def _pack_planes(data: bytes | memoryview, width: int) -> bytes:
    """Return one byte, the number of planes that are stored; these planes; and the frame of the other ones."""
    elements = np.frombuffer(data, np.uint8).reshape(-1, width)
    planes = np.ascontiguousarray(elements.T)
    sample = np.ascontiguousarray(planes[:, :_PIECE])
    lengths = [sample[:count].size + len(compress(sample[count:].tobytes())) for count in range(width)]
    count = lengths.index(min(lengths))
    return bytes([count]) + planes[:count].tobytes() + compress(planes[count:].tobytes())


def _unpack_planes(stored: bytes, size: int, what: str, width: int) -> bytes:
    count = stored[0] if stored else width
    first = 1 + count * (size // width)
    if count >= width or len(stored) < first:  # a frame follows, whose own check finds the end
        message = mismatch(
            f"{what}: stored planes", f"fewer than {width}, all there", f"{count} in {len(stored)} bytes"
        )
        raise FormatError(message, code="symbols")
    rest = decompress(stored[first:], size - (first - 1), what)
    planes = np.frombuffer(stored[1:first] + rest, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).tobytes()
