"""zstd frames of a known size. A frame's own declared size is checked before any memory is given to it."""

from __future__ import annotations

import zstandard

from nola_codec.errors import FormatError, mismatch

_MAGIC = b"\x28\xb5\x2f\xfd"
_EMPTY = b"\x20\x00\x01\x00\x00"  # one segment, no bytes, one last raw block
_MOST_EXPANSION = 15  # log2: a block of 128 KiB takes four bytes at the least


def compress(data: bytes, dictionary: bytes | None = None) -> bytes:
    """One frame with its content size and no checksum, magic left out (the container has its own)."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19 if len(data) <= 1 << 20 else 6,
        source_size=len(data),
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
    )
    compressor = zstandard.ZstdCompressor(dict_data=_dictionary(dictionary), compression_params=parameters)
    return compressor.compress(data)


def decompress(data: bytes | memoryview, size: int, what: str, dictionary: bytes | None = None) -> bytes:
    """Undo `compress`.

    Args:
        data: One frame and nothing after it.
        size: The size that the caller expects, already checked against the limits.
        what: Name for errors.
        dictionary: The same raw-content dictionary.

    Raises:
        FormatError: the frame is damaged, declares another size, or data follow it.
    """
    frame = _MAGIC + bytes(data)
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size or size > len(data) << _MOST_EXPANSION:
            raise FormatError(mismatch(f"{what}: declared size", size, declared), code="zstd")
        if size == 0 and data != _EMPTY:  # zstandard does not validate the blocks of empty content
            raise FormatError(f"{what}: not the frame of no bytes", code="zstd")
        # In one call: a stream's decoder would follow a frame past its declared size as far as memory goes.
        plain = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary)).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: damaged zstd frame ({error})", code="zstd") from error
    if len(plain) != size:
        raise FormatError(mismatch(f"{what}: zstd frame", f"{size} bytes", len(plain)), code="zstd")
    return plain


def _dictionary(content: bytes | None) -> zstandard.ZstdCompressionDict | None:
    if content is None:
        return None
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
