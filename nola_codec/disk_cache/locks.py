"""Locks between processes, and the errors of a cache that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nola_codec.errors import DISK_FULL, NolaError, require_package

if TYPE_CHECKING:
    from filelock import BaseFileLock


def file_lock(path: Path, root: Path) -> BaseFileLock:
    require_package(f"the cache in {root}", "filelock", "serve")
    from filelock import FileLock

    # Threads of one process exclude each other too, since each lock is a file of its own to the system.
    return FileLock(path, thread_local=False)


def acquire(lock: BaseFileLock, *, wait: bool) -> bool:
    """Lock a file; return False if it is locked already and `wait` is False."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=0.02)
    except Timeout:
        return False
    return True


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn the system's errors of the cache's own files into the package's."""
    try:
        yield
    except OSError as e:
        if e.errno in DISK_FULL:
            raise disk_full(e, root) from e
        message = f"the cache cannot be written: {e.strerror or e}; set NOLA_CODEC_CACHE to a directory that can"
        raise NolaError(message, code="cache-unwritable", where=str(root)) from e


def disk_full(error: OSError, root: Path) -> NolaError:
    place = f" in {error.filename}" if error.filename else ""
    message = f"{os.strerror(error.errno or errno.ENOSPC)}{place}; free some, or set NOLA_CODEC_CACHE to another disk"
    return NolaError(message, code="disk-full", where=str(root))
