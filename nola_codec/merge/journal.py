"""A directory that is written over several runs if need be: what a killed run finished, the next one keeps.

Beside the target, ``.NAME.partial`` holds a journal and ``files/``. A file counts as finished when the journal has a
line for it, written after the file itself was synced and renamed, and its size and checksum are still those. The first
line of the journal is a key of everything the files are made from: of another key, nothing is kept. At the end
``files/`` becomes the target by one rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO

from nola_codec.errors import AdapterError
from nola_codec.merge.checksums import Sums, file_sums
from nola_codec.parallel import parallel_map
from nola_codec.stores.files import replace_directory, require_free

_MAGIC = "nola-codec partial directory 1"


@dataclass
class Partial:
    """An unfinished directory.

    Attributes:
        files: Where to write.
        finished: Groups of files that an earlier run finished, by their name.
    """

    files: Path
    journal: IO[bytes]
    finished: frozenset[str] = frozenset()
    _lock: Lock = field(default_factory=Lock)

    def finish(self, group: str, files: dict[str, Sums]) -> None:
        """Sync ``NAME.part`` files, give them their names, and note them down as one finished group.

        Raises:
            OSError: They cannot be synced, renamed or noted.
        """
        entries = {}
        for name, sums in files.items():
            part = self.files / (name + ".part")
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            entries[name] = [part.stat().st_size, *(f"{s:016x}" for s in sums)]
            part.replace(self.files / name)
        _sync_directory(self.files)
        with self._lock:
            self.journal.write(json.dumps({"group": group, "files": entries}).encode() + b"\n")
            self.journal.flush()
            os.fsync(self.journal.fileno())


@contextlib.contextmanager
def partial_directory(target: Path, key: str, *, replace: bool) -> Iterator[Partial]:
    """Work on a directory that becomes `target` when the block ends without an error.

    An interrupt or an error of the system leaves what is finished for the next run; any other error leaves nothing.

    Raises:
        OutputExists: `target` is there, is not an empty directory, and `replace` is False.
        AdapterError: ``busy``: another process is at work on it; ``foreign-partial``: something else has its name.
    """
    require_free(target, overwrite=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.partial"
    journal_path, files = folder / "journal", folder / "files"
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or _is_foreign(folder))):
        message = "is in the way and was not left by a merge; move it away"
        raise AdapterError(message, code="foreign-partial", where=str(folder))
    folder.mkdir(exist_ok=True)
    with journal_path.open("ab+") as journal:
        _lock_file(journal, folder)
        finished = _finished(journal, key, files)
        if not finished:
            shutil.rmtree(files, ignore_errors=True)
            journal.truncate(0)
            journal.write(json.dumps({"magic": _MAGIC, "key": key}).encode() + b"\n")
            journal.flush()
        files.mkdir(exist_ok=True)
        partial = Partial(files, journal, finished)
        try:
            yield partial
            replace_directory(files, target)
        except (KeyboardInterrupt, SystemExit, OSError):
            if not _finished(journal, key, files):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_foreign(folder: Path) -> bool:
    if not any(folder.iterdir()):
        return False
    try:
        with (folder / "journal").open("rb") as stream:
            line = stream.readline(4096)
        # Killed before its first line was written: an empty journal and nothing else.
        return not line.startswith(json.dumps({"magic": _MAGIC})[:-1].encode()) and (
            bool(line.endswith(b"\n")) or {p.name for p in folder.iterdir()} != {"journal"}
        )
    except OSError:
        return True


def _finished(journal: IO[bytes], key: str, files: Path) -> frozenset[str]:
    """Groups that are in the journal of this key, and whose files are as they were noted down."""
    journal.seek(0)
    lines = journal.read().splitlines(keepends=True)
    if not lines or lines[0] != json.dumps({"magic": _MAGIC, "key": key}).encode() + b"\n":
        return frozenset()
    entries: dict[str, dict[str, list[object]]] = {}
    for line in lines[1:]:
        if line.endswith(b"\n"):  # else cut short by the kill
            try:
                entry = json.loads(line)
                entries[entry["group"]] = entry["files"]
            except (ValueError, KeyError, TypeError):
                return frozenset()
    whole = parallel_map(lambda item: all(_is_whole(files / n, e) for n, e in item[1].items()), entries.items())
    return frozenset(group for group, good in zip(entries, whole, strict=True) if good)


def _is_whole(path: Path, entry: list[object]) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size != entry[0]:
            return False
        return [f"{s:016x}" for s in file_sums(path)] == entry[1:]
    except OSError:
        return False


def _lock_file(stream: IO[bytes], folder: Path) -> None:
    """Keep other processes out; freed when the stream is closed or the process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: the open journal itself cannot be removed there
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = "another process is writing the same output"
        raise AdapterError(message, code="busy", where=str(folder)) from error


def _sync_directory(path: Path) -> None:
    """Make renames last, where a directory can be synced."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
