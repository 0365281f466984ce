"""The cache: finding, making, holding and removing entries."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nola_codec.disk_cache.locks import acquire, disk_full, file_lock, writing
from nola_codec.disk_cache.sessions import Session, is_held, sweep_sessions
from nola_codec.disk_cache.trees import listed, tree_size, write_through
from nola_codec.errors import DISK_FULL, NolaError

PARTIAL_SECONDS = 7 * 24 * 3600
"""The age in seconds at which an unfinished download is removed."""

# Names that every file system takes and that differ by more than their case. Anything else becomes a hash.
_PLAIN_KEY = re.compile(r"(?!sha256-)[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,39}")


def default_root() -> Path:
    """Return the root of the user's cache: $NOLA_CODEC_CACHE, else nola-codec in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        NolaError: ``cache-root``: there is no such variable and no home directory.
    """
    named = os.environ.get("NOLA_CODEC_CACHE")
    if named:
        return Path(named).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the XDG specification says that a relative path is to be ignored
        return Path(shared) / "nola-codec"
    try:
        return Path.home() / ".cache" / "nola-codec"
    except RuntimeError as e:
        raise NolaError("there is no home directory; set NOLA_CODEC_CACHE to a directory", code="cache-root") from e


@dataclass(frozen=True)
class CacheEntry:
    """One finished entry.

    Attributes:
        kind: The kind that it was made under.
        name: Its key, or the hash of a key that is no plain name.
        path: Its directory.
        bytes: The sum of the sizes of its files.
        used: The time of its last use, in seconds since 1970.
    """

    kind: str
    name: str
    path: Path
    bytes: int
    used: float


class DiskCache:
    """A cache of directories, shared by the processes and threads of this machine.

    Reading what is there needs no lock and no right to write. `hold` keeps an entry from being removed.

    Attributes:
        root: Its directory, which is made when the first entry is.
        max_bytes: The size in bytes that `evict` brings it down to; None is no limit. Entries that are held count, and
            stay even if they alone are larger.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, max_bytes: int | None = None) -> None:
        """Take the directory `root`, or that of `default_root`.

        Raises:
            ValueError: `max_bytes` is negative.
            NolaError: ``cache-root``.
        """
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes: expected 0 or more, found {max_bytes}")
        self.root = default_root() if root is None else Path(root).absolute()
        self.max_bytes = max_bytes
        self._sessions: list[Session] = []
        self._guard = threading.Lock()

    def get(self, kind: str, key: str) -> Path | None:
        """Return the directory of a finished entry and mark it as used; None if there is none."""
        entry = self._place(kind, key).entry
        try:
            found = stat.S_ISDIR(os.lstat(entry).st_mode)  # a link is no entry: it could lead out of the cache
        except OSError:
            return None
        if not found:
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry)
        return entry

    def make(self, kind: str, key: str, build: Callable[[Path], None], *, resumable: bool = False) -> Path:
        """Return the directory of an entry; if there is none, make it. One process makes it while others wait.

        Afterwards the entries that were not used for longest are removed if the cache is larger than `max_bytes`.

        Args:
            kind: What sort of entry it is: lower-case letters, digits and hyphens.
            key: Any text that names the entry among those of its kind.
            build: Is given an empty directory, and fills it. It writes nothing beside it.
            resumable: Give `build` the directory that a failed or killed build before it left, if there is one.

        Raises:
            NolaError: ``disk-full``; ``cache-unwritable``: the root cannot be written.
            MissingPackage: ``needs-filelock``.
            Exception: Whatever `build` raises. Nothing is left then, unless the build is resumable.
        """
        found = self.get(kind, key)
        if found is not None:
            return found
        place = self._place(kind, key)
        with self._locked(place):
            if self.get(kind, key) is None:
                self._build(place, build, resumable)
        self._evict(spared=place)
        return place.entry

    @contextlib.contextmanager
    def hold(self, kind: str, key: str) -> Iterator[None]:
        """Keep an entry from being removed within the ``with`` block, whether it is there yet or not.

        The end of the process ends its holds. In a root that may only be read there is nothing to do.

        Raises:
            NolaError: ``disk-full``.
            MissingPackage: ``needs-filelock``.
        """
        place = self._place(kind, key)
        if self.root.is_dir() and not os.access(self.root, os.W_OK):
            yield
            return
        with writing(self.root):
            session = self._open_session()
        with self._locked(place), writing(self.root):  # the lock: nobody is just removing it
            session.hold(place.mark)
        try:
            yield
        finally:
            session.release(place.mark)

    def entries(self) -> list[CacheEntry]:
        """Return the finished entries, those first that were not used for longest."""
        found = []
        for kind in listed(self.root):
            if not _KIND.fullmatch(kind.name) or not kind.is_dir(follow_symlinks=False):
                continue
            for item in listed(Path(kind.path)):
                if item.name.startswith(".") or not item.is_dir(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                    used = item.stat(follow_symlinks=False).st_mtime
                    found.append(CacheEntry(kind.name, item.name, Path(item.path), tree_size(Path(item.path)), used))
        return sorted(found, key=lambda entry: entry.used)

    def total_bytes(self) -> int:
        """Return the size of all finished entries."""
        return sum(entry.bytes for entry in self.entries())

    def evict(self) -> int:
        """Remove entries by last use until the cache has at most `max_bytes`, and what killed processes left.

        Entries that a process holds or is making stay.

        Returns:
            The bytes of the entries that were removed.
        """
        return self._evict(spared=None)

    def remove(self, kind: str, key: str) -> bool:
        """Remove one entry, and return True if it is not there afterwards: an entry that is held stays."""
        place = self._place(kind, key)
        if os.path.lexists(place.entry):
            self._discard(place)
        return not os.path.lexists(place.entry)

    def clear(self) -> int:
        """Remove every entry that nobody holds, and unfinished downloads; return the bytes of the entries."""
        self._sweep(partial_seconds=0)
        places = [(entry.bytes, _Place(self.root, entry.kind, entry.name)) for entry in self.entries()]
        return sum(size for size, place in places if self._discard(place))

    def _place(self, kind: str, key: str) -> _Place:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"kind: expected lower-case letters, digits and hyphens, found {kind!r}")
        plain = _PLAIN_KEY.fullmatch(key) is not None
        name = key if plain else "sha256-" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return _Place(self.root, kind, name)

    def _build(self, place: _Place, build: Callable[[Path], None], resumable: bool) -> None:
        """Make an entry whose lock is held."""
        with writing(self.root):
            for stale in place.building.parent.glob(place.name + ".*"):  # the lock is ours, so their makers are dead
                shutil.rmtree(stale, ignore_errors=True)
            made = place.partial if resumable else place.building
            made.mkdir(parents=True, exist_ok=resumable)
            os.utime(made)
        try:
            try:
                build(made)
                write_through(made)
                if os.path.lexists(place.entry):  # a file or a link, which is no entry
                    os.unlink(place.entry)
                os.rename(made, place.entry)
            except OSError as e:
                if e.errno not in DISK_FULL:
                    raise
                raise disk_full(e, self.root) from e
        except BaseException:
            if not resumable:
                shutil.rmtree(made, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):
            os.utime(place.entry)
            write_through(place.entry.parent, deep=False)

    def _evict(self, spared: _Place | None) -> int:
        self._sweep(partial_seconds=PARTIAL_SECONDS)
        if self.max_bytes is None:
            return 0
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), 0
        for entry in entries:
            if total - removed <= self.max_bytes:
                break
            place = _Place(self.root, entry.kind, entry.name)
            if place != spared and self._discard(place):
                removed += entry.bytes
        return removed

    def _discard(self, place: _Place) -> bool:
        """Remove an entry that nobody holds or is making; return True if it was removed."""
        with writing(self.root), self._locked(place, wait=False) as ours:
            if not ours or is_held(self.root, place.mark):
                return False
            leaving = place.building
            leaving.parent.mkdir(exist_ok=True)
            try:
                os.rename(place.entry, leaving)  # a reader finds all of it or nothing
            except OSError:  # gone, or on Windows a file of it is open
                return False
            shutil.rmtree(leaving, ignore_errors=True)
            return True

    def _sweep(self, partial_seconds: float) -> None:
        """Remove what killed processes left, and unfinished downloads of at least an age in seconds."""
        now = time.time()
        with contextlib.suppress(NolaError), writing(self.root):
            sweep_sessions(self.root)
        for kind in (item.name for item in listed(self.root) if _KIND.fullmatch(item.name)):
            left = [(Path(i.path), i.name.rpartition(".")[0]) for i in listed(self.root / kind / ".building")
                    if not i.name.startswith(".")]  # fmt: skip
            for item in listed(self.root / kind / ".partial"):
                with contextlib.suppress(FileNotFoundError):
                    if now - item.stat(follow_symlinks=False).st_mtime >= partial_seconds:
                        left.append((Path(item.path), item.name))
            for path, name in left:
                with contextlib.suppress(NolaError), self._locked(_Place(self.root, kind, name), wait=False) as ours:
                    if ours:
                        shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, place: _Place, *, wait: bool = True) -> Iterator[bool]:
        """Lock an entry within the ``with`` block; yields False if it is locked already and `wait` is False."""
        lock = file_lock(place.lock, self.root)
        with writing(self.root):
            place.lock.parent.mkdir(parents=True, exist_ok=True)
            ours = acquire(lock, wait=wait)
        try:
            yield ours
        finally:
            if ours:
                lock.release()

    def _open_session(self) -> Session:
        with self._guard:
            # A fork holds for itself, and keeps the session of its parent untouched: they share its lock.
            if not self._sessions or not self._sessions[-1].is_ours():
                self._sessions.append(Session(self.root))
            return self._sessions[-1]


@dataclass(frozen=True)
class _Place:
    """The paths of one entry."""

    root: Path
    kind: str
    name: str

    @property
    def entry(self) -> Path:
        return self.root / self.kind / self.name

    @property
    def lock(self) -> Path:
        return self.root / self.kind / ".locks" / self.name

    @property
    def partial(self) -> Path:
        return self.root / self.kind / ".partial" / self.name

    @property
    def building(self) -> Path:
        """A new name each time."""
        return self.root / self.kind / ".building" / f"{self.name}.{secrets.token_hex(6)}"

    @property
    def mark(self) -> str:
        """The name of the file that says in a session's directory that the entry is held."""
        return f"{self.kind}@{self.name}"
