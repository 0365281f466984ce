"""Read a range or a whole file, with new tries where one may help; a download goes on where it ended."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nola_codec.errors import RemoteError
from nola_codec.remote.contract import RemoteFile, TransientError

TRIES = 5
_ENOUGH = 1 << 20  # bytes of a try that was worth it
SPARE = 64 << 20
"""Bytes of a disk that downloads leave free."""
_LOOK_AGAIN = 16 << 20  # bytes after which the disk is looked at again
FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long, and a little more or less by chance."""


def stream_range(file: RemoteFile, start: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes from `start` up to `stop`, or all up to the end if the server has no ranges.

    A try that brings a megabyte begins the count of tries anew, so that a long download outlives many short failures.

    Raises:
        RemoteError: What `RemoteFile.stream` raises, after the last try.
    """
    tries = 0
    while True:
        try:
            came = 0
            for piece in file.stream(start, stop):
                start += len(piece)
                came += len(piece)
                yield piece
            return
        except TransientError as failure:
            tries = 1 if came >= _ENOUGH else tries + 1
            if tries >= TRIES:
                raise failure.error from None
            if file.has_ranges and stop is not None and start >= stop:
                return
            wait = FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.75, 1.25)
            time.sleep(wait if failure.wait is None else max(wait, failure.wait))


class DiskRoom:
    """Looks now and then whether a disk still has room for what a server sends, which may be without end."""

    def __init__(self, folder: Path, where: str) -> None:
        """Take a directory of the disk, and the URL for messages."""
        self._folder, self._where, self._unseen = folder, where, 0

    def take(self, count: int) -> None:
        """Say that a number of bytes is about to be written. Raises RemoteError ``no-space``."""
        self._unseen += count
        if self._unseen < _LOOK_AGAIN:
            return
        self._unseen = 0
        free = shutil.disk_usage(self._folder).free
        if free < SPARE:
            message = (
                f"the disk of {self._folder} has {free / 1e6:.0f} MB left, and the server sends more; free some, or "
                "set NOLA_CODEC_CACHE (for copies) and TMPDIR (for files that are read by ranges) to another disk"
            )
            raise RemoteError(message, code="no-space", where=self._where)


def download(file: RemoteFile, path: Path, report: Callable[[int], None]) -> None:
    """Write a whole file; what is there already is the beginning of it, and of the same version.

    Args:
        file: The remote file.
        path: The local file. It is kept when the download is killed, and the next call goes on with it.
        report: Called with the number of bytes of each piece, and first with what was there.

    Raises:
        RemoteError: What `RemoteFile.stream` raises, after the last try; ``bad-answer``; ``no-space``.
        OSError: The disk is full.
    """
    with path.open("ab") as out:
        if file.size is not None and out.tell() > file.size:
            out.truncate(0)
        done = out.seek(0, os.SEEK_END)
        report(done)
        room = DiskRoom(path.parent, file.name)
        if file.size is None or done < file.size:
            for piece in stream_range(file, done, None):
                room.take(len(piece))
                out.write(piece)
                done += len(piece)
                report(len(piece))
    if file.size is not None and done != file.size:
        message = f"{done} bytes came, and the server says that the file has {file.size}"
        raise RemoteError(message, code="bad-answer", where=file.name)
