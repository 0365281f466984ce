"""Write large safetensors files in pieces, on several threads: read, change, check, write.

A file is its header and a run of parts, one tensor each. Threads take pieces of a few rows in the order of the file; a
thread reads its piece, changes it in place, and writes it, so reading and writing of one overlap the arithmetic of
another, and memory is one piece a thread, whatever the tensors' sizes. A further thread finishes whole files.
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
from nola_codec.merge.checksums import Sums, add_sums, bytes_sums, piece_sums
from nola_codec.parallel import parallel_each

PIECE_BYTES = 1 << 21
"""Read and written at once; more when a single row is longer."""

ChangeRows = Callable[[memoryview, int, int], None]
"""``change(data, start, stop)``: data holds rows start..stop of a tensor, and is changed in place."""


@dataclass(frozen=True)
class Part:
    """One tensor of a file to be written.

    Attributes:
        name: For messages.
        nbytes: Of the tensor.
        origin: Its bytes, or where they begin in the job's source; None when `change` makes them.
        rows: Rows that the bytes are divided into; matters only with `change`.
        change: Opens what changes the rows, when the tensor's turn comes; None leaves them. What it returns is dropped
            after the last row.
        done: Called when the last piece has been taken up.
    """

    name: str
    nbytes: int
    origin: bytes | int | None
    rows: int = 1
    change: Callable[[], ChangeRows] | None = None
    done: Callable[[], None] | None = None


@dataclass
class FileJob:
    """A file to be written: `header`, then the parts one after the other.

    `finish` is called with its sums on a thread of its own when all is written; files are not synced here.
    """

    source: Path
    target: Path
    header: bytes
    parts: tuple[Part, ...]
    finish: Callable[[Sums], None]
    _sums: Sums = (0, 0)
    _left: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Piece:
    job: FileJob
    part: Part
    change: ChangeRows | None
    start: int
    stop: int
    position: int


def write_files(jobs: Iterable[FileJob], piece_bytes: int = PIECE_BYTES) -> None:
    """Write all files; the first error ends it.

    Raises:
        AdapterError: ``truncated``: a source ended early; and whatever a change raises.
        OSError: A file cannot be read or written.
    """
    opened: list[IO[bytes]] = []
    local = _Local(opened)
    finishing: list[Future[None]] = []
    with ThreadPoolExecutor(1) as finisher:

        def settle(job: FileJob, sums: Sums) -> None:
            with job._lock:
                job._sums = add_sums(job._sums, sums)
                job._left -= 1
                done = job._left == 0
            if done:
                finishing.append(finisher.submit(job.finish, job._sums))

        def pieces() -> Iterator[_Piece]:
            for job in jobs:
                with job.target.open("xb") as stream:
                    stream.write(job.header)
                    stream.truncate(len(job.header) + sum(part.nbytes for part in job.parts))
                for piece in _pieces(job, piece_bytes):
                    with job._lock:
                        job._left += 1
                    yield piece
                settle(job, bytes_sums(job.header))  # the one that kept the count above zero

        def work(piece: _Piece) -> None:
            settle(piece.job, local.copy(piece))

        try:
            parallel_each(work, pieces())
        finally:
            for stream in opened:
                stream.close()
        for future in finishing:
            future.result()


def _pieces(job: FileJob, piece_bytes: int) -> Iterator[_Piece]:
    position = len(job.header)
    for part in job.parts:
        step, change = piece_bytes, None
        if part.change is not None and part.nbytes:
            row = part.nbytes // part.rows
            step, change = max(1, piece_bytes // row) * row, part.change()
        for start in range(0, part.nbytes, step):
            stop = min(start + step, part.nbytes)
            yield _Piece(job, part, change, start, stop, position + start)
        position += part.nbytes
        if part.done is not None:
            part.done()


class _Local(threading.local):
    """A thread's open files and its buffer."""

    def __init__(self, opened: list[IO[bytes]]) -> None:
        self.opened = opened
        self.job: FileJob | None = None
        self.streams: list[IO[bytes]] = []
        self.buffer = np.zeros(0, np.uint64)

    def copy(self, piece: _Piece) -> Sums:
        """Do one piece and return its sums."""
        if self.job is not piece.job:
            for stream in self.streams:
                stream.close()
            self.job = piece.job
            self.streams = [piece.job.source.open("rb", buffering=0), piece.job.target.open("rb+", buffering=0)]
            self.opened += self.streams
        source, target = self.streams
        size = piece.stop - piece.start
        # Laid out as it will lie in the file's own words, with zeros around it.
        lead = piece.position % 8
        words = -(-(lead + size) // 8)
        if words > len(self.buffer):
            self.buffer = np.zeros(words, np.uint64)
        self.buffer[0] = self.buffer[words - 1] = 0
        data = self.buffer.view(np.uint8).data[lead : lead + size]
        if isinstance(piece.part.origin, bytes):
            data[:] = piece.part.origin[piece.start : piece.stop]
        elif piece.part.origin is not None:
            source.seek(piece.part.origin + piece.start)
            _read_into(source, data, piece)
        if piece.change is not None:
            row = piece.part.nbytes // piece.part.rows
            piece.change(data, piece.start // row, piece.stop // row)
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
            raise AdapterError(message, code="truncated", where=f"{piece.job.source}: {piece.part.name}")
        got += count
