"""Keep the journal of a directory that may take several runs to write, so that a run goes on where a killed one ended.

Beside the target, the folder ``.NAME.partial`` holds the journal and ``files/``. After a file is synced and renamed,
the journal gets a line with its size and checksum. A file counts as finished if it still agrees with its line. The
first line of the journal is a key, which stands for everything that the files are made from; a run with another key
keeps nothing. At the end, one rename turns ``files/`` into the target.
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
from nola_codec.merger.checksums import Sums, file_sums
from nola_codec.parallel import parallel_map
from nola_codec.stores.files import replace_directory, require_free
from nola_codec.stores.replacing import sync_directory

_MAGIC = "nola-codec partial directory 1"


@dataclass
class Journal:
    """The open journal of an unfinished directory.

    Attributes:
        files: The directory to write to.
        stream: The journal file.
        finished: The names of the groups of files that an earlier run finished.
    """

    files: Path
    stream: IO[bytes]
    finished: frozenset[str] = frozenset()
    _lock: Lock = field(default_factory=Lock)

    def finish(self, group: str, files: dict[str, Sums]) -> None:
        """Sync the files ``NAME.part``, give them their names, and write them down as one finished group.

        Args:
            group: The name of the group.
            files: The sums of each file, by its name.

        Raises:
            OSError: A file cannot be synced or renamed, or the journal cannot be written.
        """
        entries = {}
        for name, sums in files.items():
            part = self.files / (name + ".part")
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            entries[name] = [part.stat().st_size, *(f"{s:016x}" for s in sums)]
            part.replace(self.files / name)
        sync_directory(self.files)
        with self._lock:
            self.stream.write(json.dumps({"group": group, "files": entries}).encode() + b"\n")
            self.stream.flush()
            os.fsync(self.stream.fileno())


@contextlib.contextmanager
def open_journal(target: Path, key: str, *, replace: bool) -> Iterator[Journal]:
    """Open the journal of a directory, which becomes `target` when the ``with`` block ends without an error.

    After an interrupt or an error of the system, the finished files stay for the next run. After any other error,
    nothing stays.

    Args:
        target: The directory to make.
        key: A string for everything that decides the bytes of the files; a journal with another key is discarded.
        replace: True if an existing directory may be replaced.

    Raises:
        OutputExists: `target` exists, is not an empty directory, and `replace` is False.
        AdapterError: ``busy``: another process is writing the same directory; ``foreign-partial``: something else has
            the name of the journal's folder.
    """
    require_free(target, overwrite=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.partial"
    journal_path, files = folder / "journal", folder / "files"
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or _is_foreign(folder))):
        message = "is in the way, and no merge has left it; move it away"
        raise AdapterError(message, code="foreign-partial", where=str(folder))
    folder.mkdir(exist_ok=True)
    with journal_path.open("ab+") as journal:
        _lock_file(journal, folder)
        finished = _finished_groups(journal, key, files)
        if not finished:
            shutil.rmtree(files, ignore_errors=True)
            journal.truncate(0)
            journal.write(json.dumps({"magic": _MAGIC, "key": key}).encode() + b"\n")
            journal.flush()
        files.mkdir(exist_ok=True)
        try:
            yield Journal(files, journal, finished)
            replace_directory(files, target)
        except (KeyboardInterrupt, SystemExit, OSError):
            if not _finished_groups(journal, key, files):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_foreign(folder: Path) -> bool:
    """Return True if the folder was not left by a merge."""
    if not any(folder.iterdir()):
        return False
    try:
        with (folder / "journal").open("rb") as stream:
            line = stream.readline(4096)
        # A run that was killed before it wrote the first line leaves an empty journal and nothing else.
        return not line.startswith(json.dumps({"magic": _MAGIC})[:-1].encode()) and (
            bool(line.endswith(b"\n")) or {p.name for p in folder.iterdir()} != {"journal"}
        )
    except OSError:
        return True


def _finished_groups(journal: IO[bytes], key: str, files: Path) -> frozenset[str]:
    """Return the groups of a journal with this key whose files still agree with the journal."""
    journal.seek(0)
    lines = journal.read().splitlines(keepends=True)
    if not lines or lines[0] != json.dumps({"magic": _MAGIC, "key": key}).encode() + b"\n":
        return frozenset()
    entries: dict[str, dict[str, list[object]]] = {}
    for line in lines[1:]:
        if line.endswith(b"\n"):  # a line without its end was cut short by the kill
            try:
                entry = json.loads(line)
                entries[entry["group"]] = entry["files"]
            except (ValueError, KeyError, TypeError):
                return frozenset()
    whole = parallel_map(lambda item: all(_is_whole(files / n, e) for n, e in item[1].items()), entries.items())
    return frozenset(group for group, good in zip(entries, whole, strict=True) if good)


def _is_whole(path: Path, entry: list[object]) -> bool:
    """Return True if a file has the size and the sums of its entry."""
    try:
        if path.is_symlink() or path.stat().st_size != entry[0]:
            return False
        return [f"{s:016x}" for s in file_sums(path)] == entry[1:]
    except OSError:
        return False


def _lock_file(stream: IO[bytes], folder: Path) -> None:
    """Lock the journal against other processes, until the stream is closed or this process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: the open journal itself cannot be removed there
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = "another process is writing the same output"
        raise AdapterError(message, code="busy", where=str(folder)) from error
