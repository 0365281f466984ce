"""Compress and decompress zstd frames of a known size. Their declared size is checked before memory is allocated."""

from __future__ import annotations

import zstandard

from nola_codec.errors import FormatError, mismatch

_MAGIC = b"\x28\xb5\x2f\xfd"
_EMPTY = b"\x20\x00\x01\x00\x00"  # a frame of one segment, with no bytes in one last raw block
_MOST_EXPANSION = 15  # in log2: a block of 128 KiB takes at least four bytes


def compress(data: bytes | memoryview, dictionary: bytes | None = None) -> bytes:
    """Compress data into one frame with its content size, but without magic number and checksum."""
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


def declared_size(data: bytes | memoryview, what: str) -> int:
    """Return the content size that a frame declares. Raises FormatError ``zstd`` if it declares none it can have."""
    try:
        size = zstandard.get_frame_parameters(_MAGIC + bytes(data)).content_size
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: damaged zstd frame ({error})", code="zstd") from error
    if size > len(data) << _MOST_EXPANSION:  # a frame without a size has the greatest of all
        raise FormatError(f"{what}: a zstd frame of {len(data)} bytes cannot hold {size}", code="zstd")
    return size


def decompress(data: bytes | memoryview, size: int, what: str, dictionary: bytes | None = None) -> bytes:
    """Undo `compress`.

    Args:
        data: One frame and nothing after it.
        size: The size that the caller expects, already checked against the limits.
        what: The name of the data in errors.
        dictionary: The dictionary that was given to `compress`.

    Raises:
        FormatError: ``zstd``: The frame is damaged, it declares another size, or data follow it.
    """
    frame = _MAGIC + bytes(data)
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size or size > len(data) << _MOST_EXPANSION:
            raise FormatError(mismatch(f"{what}: declared size", size, declared), code="zstd")
        if size == 0 and data != _EMPTY:  # zstandard does not validate the blocks of empty content
            raise FormatError(f"{what}: not the frame of no bytes", code="zstd")
        # One call decodes all: a streaming decoder would go past the declared size of a frame as far as memory reaches.
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
