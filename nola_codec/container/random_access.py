"""Read bytes at any place of a source, from several threads and forked processes at once."""

from __future__ import annotations

import io
import os
import threading
from typing import BinaryIO

AHEAD = 16 << 10
"""The bytes of a stream that are read at first, and behind a header that is longer than that."""


class RandomAccess:
    """A binary source that is read by offset.

    Bytes in memory and files on disk have no position that readers share, so threads and forked processes may read at
    once. Another stream, such as one behind a URL, has one, and a lock keeps its threads apart. A forked process must
    not read it, but open its own. The beginning of such a stream is read once and kept, because each read of it may be
    a request.

    Attributes:
        length: The number of bytes from the position that a stream had when it was given here to its end.
    """

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._data = source if isinstance(source, bytes) else None
        self._stream = None if isinstance(source, bytes) else source
        self._has_offsets = hasattr(os, "pread") and _is_plain_file(source)
        self._lock = threading.Lock()
        self._start = 0
        self._beginning = b""
        self.length = len(source) if isinstance(source, bytes) else self._measure(source)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at an offset; fewer if the source ends before.

        A stream is then at the position that it had, so that it can be read from there again.
        """
        if self._data is not None:
            return self._data[offset : offset + length]
        stream = self._stream
        assert stream is not None
        if self._has_offsets:
            return _read_file(stream.fileno(), self._start + offset, length)
        if offset + length <= len(self._beginning):
            return self._beginning[offset : offset + length]
        return self._read_stream(offset, length)

    def keep_beginning(self, length: int) -> None:
        """Read so many bytes of a stream at once, and keep them for reads that follow; nothing for other sources."""
        if self._stream is not None and not self._has_offsets and len(self._beginning) < min(length, self.length):
            self._beginning += self._read_stream(len(self._beginning), length - len(self._beginning))

    def _read_stream(self, offset: int, length: int) -> bytes:
        assert self._stream is not None
        with self._lock:
            self._stream.seek(self._start + offset)
            data = self._stream.read(length)
            self._stream.seek(self._start)
            return data

    def _measure(self, stream: BinaryIO) -> int:
        self._start = stream.tell()
        length = stream.seek(0, io.SEEK_END) - self._start
        stream.seek(self._start)
        return length


def _is_plain_file(source: object) -> bool:
    """Return True for what `open(path, "rb")` returns: its bytes are those of the file, without any in a buffer."""
    return type(source) is io.BufferedReader and type(source.raw) is io.FileIO


def _read_file(descriptor: int, offset: int, length: int) -> bytes:
    pieces = []
    while length > 0:
        piece = os.pread(descriptor, length, offset)  # at most 2 GiB on Linux
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
