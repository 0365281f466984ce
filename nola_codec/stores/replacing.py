"""Temporary names beside an output, and the steps that put one in the place of the output without a gap.

A temporary file or directory is called ``.NAME.xxxxxxxxxxxx.tmp`` (12 hexadecimal digits) and is locked as long as its
writer runs. The system releases the locks of a dead process. So the next writer of the same output can tell what a
killed run left behind from what a running one needs, and removes the former.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from nola_codec.lazy import ctypes

if sys.platform != "win32":  # Windows has no such locks: nothing is swept there
    import fcntl

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})  # EBADF: NFS
_EXCHANGE, _SWAP = 2, 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_AT_FDCWD = -100
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of Linux: begin to write, and do not wait


@contextlib.contextmanager
def temporary_beside(target: Path, *, is_directory: bool) -> Iterator[Path]:
    """Make and lock an empty temporary file or directory beside an output, and remove what has its name at the end.

    Raises:
        OSError: The directory of the output cannot be written.
    """
    _sweep(target)
    path, descriptor = _make(target, is_directory)
    try:
        yield path
    finally:
        remove(path)
        if descriptor is not None:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it. A link is removed, and not what it points to."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; the caller removes what is called `new` afterwards.

    Linux and macOS exchange the two names in one step. Elsewhere a reader may for a moment find no `target`, but never
    a mixture.

    Raises:
        OSError: A rename failed. `target` is as it was.
    """
    if _exchange(new, target):
        return
    with temporary_beside(target, is_directory=True) as old:
        os.rename(target, old / "old")
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old / "old", target)
            raise


def sync_tree(path: Path) -> None:
    """Sync a file, or a directory with all files in it, so that a rename that follows survives a power cut."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in path.iterdir():
            sync_tree(entry)
        sync_directory(path)
    elif path.is_file():
        with path.open("rb") as stream, contextlib.suppress(OSError):  # some file systems cannot sync
            os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Sync a directory, so that its renames survive a power cut; some systems cannot do it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def start_writeback(path: Path, start: int, stop: int) -> None:
    """Tell the system to write bytes start..stop of a file to disk now, so that a later sync of it waits less.

    Linux alone has such a call. It is no sync and may fail; then nothing is lost but time.
    """
    call = _writeback_call()
    if call is None:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            call(descriptor, start, stop - start, _WRITE)
        finally:
            os.close(descriptor)


@functools.cache
def _writeback_call() -> Callable[[int, int, int, int], int] | None:
    """Return ``sync_file_range`` of Linux, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast("Callable[[int, int, int, int], int]", call)


def link_others(old: Path, new: Path) -> None:
    """Give a new directory the files of an old one that it has not: by hard links, so that no data is copied.

    Raises:
        OSError: The file system has no hard links.
    """
    import shutil

    for entry in old.iterdir():
        if not os.path.lexists(new / entry.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
            else:
                os.link(entry, new / entry.name, follow_symlinks=False)
    shutil.copystat(old, new)


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _make(target: Path, is_directory: bool) -> tuple[Path, int | None]:
    """Make a temporary name of an output, and lock it; return its path, and the descriptor that holds the lock."""
    while True:
        path = target.parent / f".{target.name}.{os.urandom(6).hex()}.tmp"
        if is_directory:
            path.mkdir()
        else:
            path.open("xb").close()  # the permissions of the umask, which tempfile would not give
        if sys.platform == "win32":
            return path, None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return path, descriptor
        except FileNotFoundError:  # another process took it for a leftover before it was locked
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return path, descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed runs have left of an output."""
    for name in _leftovers(os.path.realpath(target.parent)).get(target.name, ()):
        path = target.parent / name
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                    remove(path)
            finally:
                os.close(descriptor)


@functools.lru_cache(maxsize=64)
def _leftovers(folder: str) -> dict[str, list[str]]:
    """Return the temporary names in a folder by the names of their outputs.

    A folder is listed once in the life of a process: one that writes a million files must not list it a million times.
    """
    found: dict[str, list[str]] = {}
    if sys.platform == "win32":
        return found
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name := _TEMPORARY.fullmatch(entry.name):
                found.setdefault(name[1], []).append(entry.name)
    return found


def _exchange(new: Path, target: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system has no such step.

    Raises:
        OSError: It has one, and it failed.
    """
    names = os.fsencode(new), os.fsencode(target)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            status = library.renamex_np(*names, _SWAP)
        else:
            status = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)
    except (AttributeError, OSError, TypeError):
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(target))
