"""Write and read the undo file ``nola_undo.bin``, which holds the bits of each weight that a merge lost.

Its blocks hold the residuals of `arithmetic.residuals`, a few rows each, compressed. The layout
(`spec/conventions.md`, "Undo files") is:

    magic
    blocks, one after the other
    index: a zstd frame of JSON
    SHA-256 of the index (32 bytes), its offset (8), its length (8)

Each shard writes a segment, which is a file of its own; `write_undo` joins the segments.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import zstandard

from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.undo_index import check_index
from nola_codec.stores.files import MAX_JSON_BYTES

UNDO_NAME = "nola_undo.bin"
MAGIC = b"\x89NLU\r\n\x1a\n"
VERSION = 1
_FOOTER = 48
_MAX_BLOCK = 1 << 28
_WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}

UndoIndex = dict[str, Any]
"""The index as parsed JSON."""


def encode_residual(data: memoryview, dtype: str) -> bytes:
    """Compress a residual: zigzag code, then planes of bytes (all but the first are nearly all zeros), then zstd."""
    width = _WIDTHS[dtype]
    signed = np.frombuffer(data, f"<i{width}")
    zigzag = ((signed << 1) ^ (signed >> (8 * width - 1))).astype(f"<u{width}")
    planes = np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, width).T)
    return zstandard.ZstdCompressor(level=3).compress(planes.tobytes())


def decode_residual(block: bytes, dtype: str, size: int) -> memoryview:
    """Decompress a residual of `size` bytes.

    Raises:
        AdapterError: ``bad-undo``.
    """
    width = _WIDTHS[dtype]
    planes = np.frombuffer(decompress(block, size), np.uint8).reshape(width, -1)
    zigzag = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(-1)
    signed = (zigzag >> 1) ^ (0 - (zigzag & 1))
    return signed.view(np.uint8).data


def decompress(block: bytes, size: int) -> bytes:
    """Decompress a zstd frame whose content has `size` bytes.

    Raises:
        AdapterError: ``bad-undo``.
    """
    try:
        if zstandard.get_frame_parameters(block).content_size != size:
            raise AdapterError("a block of another size than announced", code="bad-undo")
        return zstandard.ZstdDecompressor().decompress(block, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise AdapterError(f"a damaged block: {error}", code="bad-undo") from error


class SegmentWriter:
    """Writes the segment of a shard: blocks in the order in which threads finish them, and then the shard's index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb")
        self._lock = Lock()
        self._blocks: dict[str, list[list[int]]] = {}

    def add(self, tensor: str, start: int, stop: int, block: bytes) -> None:
        """Write the block of rows start..stop of a tensor, or of bytes start..stop if the tensor is stored whole."""
        with self._lock:
            self._blocks.setdefault(tensor, []).append(
                [start, stop, self._stream.tell(), len(block), zlib.crc32(block)]
            )
            self._stream.write(block)

    def close(self, facts: UndoIndex) -> None:
        """Write the index: the offsets of the blocks, and the facts about the shard."""
        blocks = {name: sorted(blocks) for name, blocks in sorted(self._blocks.items())}
        index = json.dumps(facts | {"blocks": blocks}).encode()
        self._stream.write(index + len(index).to_bytes(8, "little"))
        self._stream.close()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(1 << 20):
            sha.update(data)
    return sha.hexdigest()


def write_undo(path: Path, segments: Mapping[str, Path], facts: UndoIndex) -> None:
    """Join the segments of all shards into one file.

    The blocks follow the order of the tensors, so that the same merge writes the same bytes every time.

    Args:
        path: The file to write.
        segments: The segment of each shard, by the shard's name.
        facts: The entries of the index besides the shards.
    """
    shards = {}
    with path.open("wb") as out:
        out.write(MAGIC)
        for shard, segment in segments.items():
            with segment.open("rb") as stream:
                stream.seek(-8, os.SEEK_END)
                length = int.from_bytes(stream.read(8), "little")
                stream.seek(-8 - length, os.SEEK_END)
                index = json.loads(stream.read(length))
                for name in index["tensors"]:
                    for block in index["blocks"].get(name, ()):
                        stream.seek(block[2])
                        block[2] = out.tell()
                        out.write(stream.read(block[3]))
            shards[shard] = index
        index = zstandard.ZstdCompressor(level=9).compress(json.dumps(facts | {"shards": shards}).encode())
        offset = out.tell()
        out.write(index + hashlib.sha256(index).digest())
        out.write(offset.to_bytes(8, "little") + len(index).to_bytes(8, "little"))
        out.flush()
        os.fsync(out.fileno())


def read_undo(directory: Path) -> UndoIndex:
    """Read the index of a merged model's undo file.

    Raises:
        AdapterError: ``no-undo``: the model was merged without one; ``bad-undo``; ``limit``.
    """
    path = directory / UNDO_NAME
    if not path.exists():
        message = f"has no {UNDO_NAME}, so the bits that rounding lost are not known (merge with --keep-undo)"
        raise AdapterError(message, code="no-undo", where=str(directory))
    packed = _read_packed_index(path)
    try:
        plain = zstandard.get_frame_parameters(packed).content_size
    except zstandard.ZstdError as error:
        raise AdapterError(f"its index is damaged: {error}", code="bad-undo", where=str(path)) from error
    if plain > 4 * MAX_JSON_BYTES:
        raise AdapterError(f"an index of {plain} bytes", code="limit", where=str(path))
    try:
        index = json.loads(decompress(packed, plain))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"its index is no JSON ({error})", code="bad-undo", where=str(path)) from error
    version = index.get("version") if isinstance(index, dict) else None
    if version != VERSION:
        raise AdapterError(mismatch("version", VERSION, version), code="bad-undo", where=str(path))
    return check_index(index, str(path))


def _read_packed_index(path: Path) -> bytes:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        magic = stream.read(len(MAGIC))
        if magic != MAGIC or size < len(MAGIC) + _FOOTER:
            raise AdapterError("not an undo file", code="bad-undo", where=str(path))
        stream.seek(size - _FOOTER)
        footer = stream.read(_FOOTER)
        offset, length = int.from_bytes(footer[32:40], "little"), int.from_bytes(footer[40:], "little")
        if offset + length + _FOOTER != size or length > MAX_JSON_BYTES:
            raise AdapterError(mismatch("index", f"{size} bytes of file", offset + length), code="bad-undo",
                               where=str(path))  # fmt: skip
        stream.seek(offset)
        packed = stream.read(length)
    if hashlib.sha256(packed).digest() != footer[:32]:
        raise AdapterError("SHA-256 of the index differs", code="bad-undo", where=str(path))
    return packed


class UndoBlocks:
    """Reads the blocks of an undo file, from any thread."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        self._lock = Lock()
        self._where = str(path)

    def read(self, entry: list[int]) -> bytes:
        """Read the block of an entry of the index.

        Raises:
            AdapterError: ``bad-undo``; ``limit``.
        """
        _, _, offset, length, crc = entry
        if not 0 <= length <= _MAX_BLOCK:
            raise AdapterError(f"a block of {length} bytes", code="limit", where=self._where)
        with self._lock:
            self._stream.seek(offset)
            block = self._stream.read(length)
        if zlib.crc32(block) != crc:
            raise AdapterError("checksum of a block differs", code="bad-undo", where=self._where)
        return block

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def text_of(data: bytes) -> str:
    """Return bytes as text for the index."""
    return base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """Return the bytes of a text from the index.

    Raises:
        AdapterError: ``bad-undo``.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise AdapterError("damaged text in the index", code="bad-undo") from error
