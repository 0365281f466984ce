"""Read a range or a whole file, with new tries where one may help; a download goes on where it ended."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nola_codec.errors import RemoteError
from nola_codec.remote.contract import RemoteFile, TransientError

TRIES = 5
_ENOUGH = 1 << 20  # bytes of a try that was worth it
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


def download(file: RemoteFile, path: Path, report: Callable[[int], None]) -> None:
    """Write a whole file; what is there already is the beginning of it, and of the same version.

    Args:
        file: The remote file.
        path: The local file. It is kept when the download is killed, and the next call goes on with it.
        report: Called with the number of bytes of each piece, and first with what was there.

    Raises:
        RemoteError: What `RemoteFile.stream` raises, after the last try; ``bad-answer``.
        OSError: The disk is full.
    """
    with path.open("ab") as out:
        if file.size is not None and out.tell() > file.size:
            out.truncate(0)
        done = out.seek(0, os.SEEK_END)
        report(done)
        if file.size is None or done < file.size:
            for piece in stream_range(file, done, None):
                out.write(piece)
                done += len(piece)
                report(len(piece))
    if file.size is not None and done != file.size:
        message = f"{done} bytes came, and the server says that the file has {file.size}"
        raise RemoteError(message, code="bad-answer", where=file.name)
