"""Write large safetensors files in pieces, on several threads: each reads a piece, changes it, and writes it.

A file is a header and a run of tensors. Threads take pieces of a few rows in the order of the file. A thread reads its
piece, changes it in place, and writes it. So reading and writing of one piece overlap with the arithmetic of another,
and each thread needs memory for one piece only, whatever the sizes of the tensors. A piece stays in the processor's
cache on its way, so that a tensor that does not change costs no more than the copy that the system itself would make.

One more thread starts the writing to disk of what is finished, some megabytes at a time, and finishes files. So little
is left for the sync at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from nola_codec.errors import AdapterError
from nola_codec.merger.checksums import Sums, add_sums, bytes_sums, piece_sums
from nola_codec.parallel import parallel_each
from nola_codec.stores.replacing import start_writeback

RowEdit = Callable[[memoryview, int, int], None]
"""``edit(data, start, stop)`` changes rows start..stop of a tensor in place; ``data`` holds their bytes.

It is called from several threads at once.
"""


@dataclass(frozen=True)
class TensorWrite:
    """One tensor of a file to be written.

    Attributes:
        name: The tensor's name, for messages.
        nbytes: The tensor's size in bytes.
        origin: The tensor's bytes, or the offset of its first byte in `FileWrite.source`; None if the edit makes them.
        rows: The number of rows that the bytes divide into; it matters only with an edit.
        open_edit: A function that makes the edit when the first piece of the tensor is taken, or None for a plain copy.
            The edit is released after the last row.
        on_done: A function that is called when a thread has taken the last piece, or None.
    """

    name: str
    nbytes: int
    origin: bytes | memoryview | int | None
    rows: int = 1
    open_edit: Callable[[], RowEdit] | None = None
    on_done: Callable[[], None] | None = None


@dataclass(frozen=True)
class FileWrite:
    """A file to be written: a header, then the tensors one after the other.

    Attributes:
        source: The file that offsets in `TensorWrite.origin` belong to.
        target: The file to write; it must not exist.
        header: The bytes before the first tensor.
        tensors: The tensors, in the order of the file.
        finish: A function that is called with the file's sums, on another thread, when all is written. The file is not
            synced before.
    """

    source: Path
    target: Path
    header: bytes
    tensors: tuple[TensorWrite, ...]
    finish: Callable[[Sums], None]


_WRITEBACK_BYTES = 1 << 24
"""How many bytes are written before the system is told to bring them to the disk."""


@dataclass
class _Tally:
    """The pieces of a file that are still to be written, the sums of those that are, and where they lie."""

    sums: Sums = (0, 0)
    left: int = 1  # kept above zero until the last piece is handed out
    lock: threading.Lock = field(default_factory=threading.Lock)
    fresh: int = 0  # bytes that were written since the last writeback
    start: int = 0
    stop: int = 0

    def expect_piece(self) -> None:
        """Count a piece that will be written."""
        with self.lock:
            self.left += 1

    def add(self, sums: Sums) -> bool:
        """Count a written piece, or the header. Returns True if it was the last."""
        with self.lock:
            self.sums = add_sums(self.sums, sums)
            self.left -= 1
            return self.left == 0

    def take_fresh(self, start: int, stop: int) -> tuple[int, int] | None:
        """Count bytes start..stop as written. Returns the range of all fresh bytes if they are many, else None."""
        with self.lock:
            self.start, self.stop = min(self.start, start) if self.fresh else start, max(self.stop, stop)
            self.fresh += stop - start
            if self.fresh < _WRITEBACK_BYTES:
                return None
            self.fresh = 0
            return self.start, self.stop


@dataclass(frozen=True)
class _Piece:
    """Bytes start..stop of a tensor, which lie at `position` of the file."""

    file: FileWrite
    tally: _Tally
    tensor: TensorWrite
    edit: RowEdit | None
    start: int
    stop: int
    position: int


def write_files(files: Iterable[FileWrite], piece_bytes: int) -> None:
    """Write all files, about `piece_bytes` at a time. The first error stops the writing.

    Raises:
        AdapterError: ``truncated``: a source ended early; and whatever an edit raises.
        OSError: A file cannot be read or written.
    """
    opened: list[IO[bytes]] = []
    worker = _Worker(opened)
    finishing: list[Future[None]] = []
    with ThreadPoolExecutor(1) as finisher:

        def settle(file: FileWrite, tally: _Tally, sums: Sums) -> None:
            if tally.add(sums):
                finishing.append(finisher.submit(file.finish, tally.sums))

        def pieces() -> Iterator[_Piece]:
            for file in files:
                with file.target.open("xb") as stream:
                    stream.write(file.header)
                    stream.truncate(len(file.header) + sum(tensor.nbytes for tensor in file.tensors))
                tally = _Tally()
                for piece in _pieces_of(file, tally, piece_bytes):
                    tally.expect_piece()
                    yield piece
                settle(file, tally, bytes_sums(file.header))

        def work(piece: _Piece) -> None:
            sums = worker.copy(piece)
            fresh = piece.tally.take_fresh(piece.position, piece.position + piece.stop - piece.start)
            if fresh is not None:
                finisher.submit(start_writeback, piece.file.target, *fresh)
            settle(piece.file, piece.tally, sums)

        try:
            parallel_each(work, pieces())
        finally:
            for stream in opened:
                stream.close()
        for future in finishing:
            future.result()


def _pieces_of(file: FileWrite, tally: _Tally, piece_bytes: int) -> Iterator[_Piece]:
    position = len(file.header)
    for tensor in file.tensors:
        step, edit = piece_bytes, None
        if tensor.open_edit is not None and tensor.nbytes:
            row = tensor.nbytes // tensor.rows
            step, edit = max(1, piece_bytes // row) * row, tensor.open_edit()
        for start in range(0, tensor.nbytes, step):
            stop = min(start + step, tensor.nbytes)
            yield _Piece(file, tally, tensor, edit, start, stop, position + start)
        position += tensor.nbytes
        if tensor.on_done is not None:
            tensor.on_done()


class _Worker(threading.local):
    """The open files and the buffer of each thread."""

    def __init__(self, opened: list[IO[bytes]]) -> None:
        """Make a worker. It appends every file that any thread opens to `opened`, so that the caller can close them."""
        self.opened = opened
        self.file: FileWrite | None = None
        self.streams: list[IO[bytes]] = []
        self.buffer = np.zeros(0, np.uint64)

    def copy(self, piece: _Piece) -> Sums:
        """Read, edit and write one piece. Returns its sums."""
        if self.file is not piece.file:
            for stream in self.streams:
                stream.close()
            self.file = piece.file
            self.streams = [piece.file.source.open("rb", buffering=0), piece.file.target.open("rb+", buffering=0)]
            self.opened += self.streams
        source, target = self.streams
        tensor, size = piece.tensor, piece.stop - piece.start
        # The piece lies in the buffer as it will lie in the 64-bit words of the file, with zeros around it.
        lead = piece.position % 8
        words = -(-(lead + size) // 8)
        if words > len(self.buffer):
            self.buffer = np.zeros(words, np.uint64)
        self.buffer[0] = self.buffer[words - 1] = 0
        data = self.buffer.view(np.uint8).data[lead : lead + size]
        if isinstance(tensor.origin, bytes | memoryview):
            data[:] = tensor.origin[piece.start : piece.stop]
        elif tensor.origin is not None:
            source.seek(tensor.origin + piece.start)
            _read_into(source, data, piece)
        if piece.edit is not None:
            row = tensor.nbytes // tensor.rows
            piece.edit(data, piece.start // row, piece.stop // row)
        target.seek(piece.position)
        written = 0
        while written < size:
            written += target.write(data[written:]) or 0
        return piece_sums(self.buffer[:words], piece.position // 8)


def _read_into(source: IO[bytes], data: memoryview, piece: _Piece) -> None:
    got = 0
    while got < len(data):
        count = source.readinto(data[got:])  # type: ignore[attr-defined]
        if not count:
            message = "the file has become shorter while it was read"
            raise AdapterError(message, code="truncated", where=f"{piece.file.source}: {piece.tensor.name}")
        got += count
