"""`fetch`: a local copy of a remote file or directory, in the disk cache, whole and checked."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from nola_codec.disk_cache import DiskCache
from nola_codec.errors import RemoteError, require_package
from nola_codec.progress import Progress
from nola_codec.remote.addresses import check_url, file_url_path, hub_address, is_url, last_name, scheme_of, shown_url
from nola_codec.remote.contract import RemoteFile
from nola_codec.remote.failures import is_offline, offline
from nola_codec.remote.hub_fetching import fetch_from_hub
from nola_codec.remote.listing import Listing, list_url
from nola_codec.remote.transfer import SPARE, download

KIND = "remote"
_FACTS = "source.json"
_MOST_HELD = 64  # copies; a command reads fewer at once, and a fleet goes on to others


def local_path(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """Return a path as it is, and for a URL the path of a local copy; raise what `fetch` raises."""
    return fetch(path, progress=progress) if isinstance(path, str) and is_url(path) else Path(path)


def fetch(url: str, *, progress: Progress | None = None, wants_nola: bool = False) -> Path:
    """Return the path of a local copy of a file, or of the files of a directory that an adapter or a model needs.

    The copy lies in the disk cache, under the URL and the versions of its files, and is made once. Each call asks the
    server for the versions. A download that was killed goes on where it was. Files of the Hugging Face Hub come from
    huggingface_hub's own cache, which other programs share. The copy must not be changed. It stays while this process
    lives, unless the process fetches many others.

    With an adapter's file come the configurations that lie beside it, since they tell its scaling.

    Args:
        url: The URL. That of a local file gives its path.
        progress: Called as (stage, kilobytes done, kilobytes in all).
        wants_nola: Of a repository of the Hub, take its only `.nola` file, even if there is an adapter too.

    Raises:
        MissingPackage: A package for the protocol is not installed.
        RemoteError: ``bad-url``, ``not-found``, ``forbidden``, ``no-connection``, ``server-error``,
            ``remote-changed``, ``bad-answer``, ``no-space``; ``offline``: the network must not be used
            (NOLA_CODEC_OFFLINE, for the Hub also HF_HUB_OFFLINE), and the cache has no copy; ``several-checkpoints``.
        NolaError: Those of `DiskCache`.
    """
    check_url(url)
    local = file_url_path(url)
    if local is not None:
        return local
    hub = hub_address(url)
    if hub is not None:
        return fetch_from_hub(hub, progress, wants_nola=wants_nola)
    if is_offline(scheme_of(url)):
        kept = cached_copy(url)
        if kept is None:
            raise offline(url)
        return kept
    require_package("the cache of remote files", "filelock", "remote")
    name = last_name(url)
    listing = list_url(url, name)
    try:
        entry = _copy(url, name, listing, progress)
    finally:
        for file in listing.files.values():
            file.close()
    return entry / _HOME / name


_HOME = "files"


def cached_copy(url: str) -> Path | None:
    """Return the copy of a URL that was used last, without asking the server; None if there is none."""
    place = file_url_path(url)
    if place is not None:
        return place
    hub = hub_address(url)
    if hub is not None:
        with suppress(RemoteError):
            return fetch_from_hub(hub, None, wants_nola=True, only_cached=True)
        return None
    own = _url_key(url)
    for entry in reversed(DiskCache().entries()):
        if entry.kind == KIND and entry.name.startswith(own):
            with suppress(OSError, ValueError, KeyError, TypeError):
                _holds.add(entry.name)
                return entry.path / _HOME / str(json.loads((entry.path / _FACTS).read_text("utf-8"))["name"])
    return None


def _copy(url: str, name: str, listing: Listing, progress: Progress | None) -> Path:
    """Return the entry of the cache with the files, which is made if it is not there."""
    files = listing.files

    def build(entry: Path) -> None:
        home = entry / _HOME / name if listing.is_directory else entry / _HOME
        home.mkdir(parents=True, exist_ok=True)
        report = _reporter(files, progress)
        _require_space(entry, files, url)
        for relative, file in files.items():
            path = home / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            if not file.tag:
                path.unlink(missing_ok=True)  # the beginning may be that of another version
            download(file, path, report)
        facts = {"url": shown_url(url), "name": name, "files": {n: [f.size, f.tag] for n, f in files.items()}}
        (entry / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    key = _entry_key(url, files)
    _holds.add(key)
    return DiskCache().make(KIND, key, build, resumable=True)


class _Holds:
    """The copies that this process was given last: no other process may remove them while they are read."""

    def __init__(self) -> None:
        self._caches: dict[Path, DiskCache] = {}
        self._holds: deque[AbstractContextManager[None]] = deque()
        self._guard = threading.Lock()

    def add(self, key: str) -> None:
        """Hold one copy more, until many others were given out."""
        cache = DiskCache()
        with self._guard:
            cache = self._caches.setdefault(cache.root, cache)
        hold = cache.hold(KIND, key)
        hold.__enter__()  # it may wait for a process that is making the copy
        with self._guard:
            self._holds.append(hold)
            old = [self._holds.popleft() for _ in range(len(self._holds) - _MOST_HELD)]
        for each in old:
            each.__exit__(None, None, None)


_holds = _Holds()


def _url_key(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _entry_key(url: str, files: dict[str, RemoteFile]) -> str:
    """Return a key of the URL and of all versions; a new one for files whose version the server does not tell."""
    versions = [[name, file.size, file.tag] for name, file in sorted(files.items())]
    if any(not file.tag for file in files.values()):
        versions.append(["", None, secrets.token_hex(16)])
    text = json.dumps(versions).encode()
    return f"{_url_key(url)}-{hashlib.sha256(text).hexdigest()[:32]}"


def _reporter(files: dict[str, RemoteFile], progress: Progress | None) -> Callable[[int], None]:
    total = sum(file.size or 0 for file in files.values())
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("download, KB", done // 1000, max(total, done) // 1000)

    return report


def _require_space(place: Path, files: dict[str, RemoteFile], url: str) -> None:
    """Raise RemoteError ``no-space`` before a download that does not fit on the disk."""
    there = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    needed = sum(file.size or 0 for file in files.values()) - there
    free = shutil.disk_usage(place).free
    if needed + SPARE > free:
        message = (
            f"{needed / 1e9:.2f} GB are needed for a copy, and the disk of {DiskCache().root} has {free / 1e9:.2f} GB "
            "left; free some, or set NOLA_CODEC_CACHE to another disk"
        )
        raise RemoteError(message, code="no-space", where=shown_url(url))
