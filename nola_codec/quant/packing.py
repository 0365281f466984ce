"""Pack symbols of a fixed width, least significant bit first and without gaps (specification, "Entropy codecs")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_codec.kernels import library
from nola_codec.kernels.entropy import pack_bits
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_CHUNK = 1 << 20  # number of symbols expanded to bits at once; a multiple of 8, so that chunks end on whole bytes


def packed_size(count: int, width: int) -> int:
    """Return the number of bytes that `count` symbols of `width` bits take."""
    return (count * width + 7) // 8


def pack(symbols: npt.NDArray[Any], width: int) -> bytes:
    """Pack symbols (count,) below 2^width into bytes; `width` is 1 to 16."""
    lib = library()
    if lib is not None:
        return pack_bits(lib, np.asarray(symbols, np.uint16), width).tobytes()
    shifts = np.arange(width, dtype=np.uint16)
    parts = []
    for start in range(0, len(symbols), _CHUNK):
        chunk = symbols[start : start + _CHUNK].astype(np.uint16)
        bits = ((chunk[:, None] >> shifts) & 1).astype(np.uint8)
        parts.append(np.packbits(bits.reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes | memoryview, width: int, count: int) -> npt.NDArray[np.uint16]:
    """Undo `pack`.

    Args:
        data: Exactly ``packed_size(count, width)`` bytes.
        width: The bits of a symbol, 1 to 16.
        count: The number of symbols.

    Returns:
        uint16 (count,).
    """
    source = np.frombuffer(data, np.uint8)
    if width == 8:
        return source[:count].astype(np.uint16)
    if width == 16:
        return source.view("<u2")[:count].astype(np.uint16)
    out = np.empty(count, np.uint16)
    weights = (1 << np.arange(width)).astype(np.uint16)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = source[start * width // 8 : packed_size(stop, width)]
        bits = np.unpackbits(chunk, count=(stop - start) * width, bitorder="little").reshape(-1, width)
        out[start:stop] = bits.astype(np.uint16) @ weights
    return out


def padding_bits(data: bytes | memoryview, width: int, count: int) -> int:
    """Return the unused high bits of the last byte as a number, which is 0 in a canonical stream."""
    used = count * width % 8
    return (data[-1] >> used) if used else 0
