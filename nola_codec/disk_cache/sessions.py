"""Sessions: the entries that each living process holds."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import Counter
from pathlib import Path

from nola_codec.disk_cache.locks import acquire, file_lock
from nola_codec.disk_cache.trees import listed


class Session:
    """What this process holds: a directory with a file for each entry, and a lock that lives as long as the process.

    One lock serves all entries, since a server may hold thousands, and a process may open few files.
    """

    def __init__(self, root: Path) -> None:
        self._process = os.getpid()
        self._directory = root / ".sessions" / secrets.token_hex(8)
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()
        with file_lock(root / ".sessions.lock", root):  # so that nobody sweeps it before it is locked
            self._directory.mkdir()
            self._lock = file_lock(self._directory / "lock", root)
            self._lock.acquire()

    def is_ours(self) -> bool:
        """Return True unless this process was forked from the one that made it, or somebody removed the cache."""
        return self._process == os.getpid() and self._directory.is_dir()

    def hold(self, mark: str) -> None:
        with self._guard:
            (self._directory / mark).touch()
            self._counts[mark] += 1

    def release(self, mark: str) -> None:
        with self._guard:
            self._counts[mark] -= 1
            if self._counts[mark] == 0:
                del self._counts[mark]
                if self._process == os.getpid():
                    (self._directory / mark).unlink(missing_ok=True)


def is_held(root: Path, mark: str) -> bool:
    """Return True if a living process holds an entry."""
    marked = [item for item in listed(root / ".sessions") if os.path.lexists(os.path.join(item.path, mark))]
    return any(not _remove_dead(root, Path(item.path)) for item in marked)


def sweep_sessions(root: Path) -> None:
    """Remove the sessions of processes that are gone."""
    for item in listed(root / ".sessions"):
        _remove_dead(root, Path(item.path))


def _remove_dead(root: Path, session: Path) -> bool:
    """Remove a session if its process is gone; return True if it is not there any more."""
    with file_lock(root / ".sessions.lock", root):
        if session.is_dir():
            lock = file_lock(session / "lock", root)
            if not acquire(lock, wait=False):
                return False
            shutil.rmtree(session, ignore_errors=True)
            lock.release()
    return True
