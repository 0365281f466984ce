"""Helpers for all readers and writers of files: open any kind of source, write whole or not at all, read JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from nola_codec.errors import DISK_FULL, AdapterError, OutputExists
from nola_codec.stores.replacing import (
    link_others,
    remove,
    swap,
    sync_directory,
    sync_tree,
    temporary_beside,
)

AnySource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"

MAX_JSON_BYTES = 64_000_000  # an index of a very large model is about 10 MB

GGUF_MAGIC = b"GGUF"
ZIP_MAGIC = b"PK\x03\x04"
"""The first bytes of GGUF files, and of zip archives: `.npz`, and pickles of PyTorch."""

# The first bytes of gzip, 7z, zstd, xz, bzip2 and RAR files.
_ARCHIVE_MAGICS = (b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh", b"Rar!\x1a\x07")


@dataclass(frozen=True)
class Foreign:
    """A file of another type: the error code and the message for it.

    Attributes:
        code: The code of the error.
        message: A clause that says what the file is, and what to do.
    """

    code: str
    message: str


def describe_foreign_bytes(head: bytes) -> Foreign | None:
    """Recognise files that users often give by mistake, by their first bytes.

    Args:
        head: The first bytes of the file, at least 512 if it has so many.

    Returns:
        The error code and message; None if nothing is recognised.
    """
    if not head:
        return Foreign("empty-file", "the file is empty")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return Foreign("lfs-pointer", "a git-LFS pointer instead of the file itself; run `git lfs pull`")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return Foreign("html-page", "a web page, not a file of tensors; the download went wrong")
    if head.startswith(b"\x89NLA"):
        return Foreign("nola-file", "this is already a .nola file; `nola-codec decode` makes an adapter of it")
    if head.startswith(ZIP_MAGIC):
        return Foreign("zip", "a zip archive (a PyTorch pickle or .npz); convert it to safetensors first")
    # The first 8 bytes of a safetensors file are a length and may have any value, but its byte 8 is always `{`.
    if head[8:9] != b"{" and (head.startswith(_ARCHIVE_MAGICS) or head[257:262] == b"ustar"):
        return Foreign("archive", "a packed archive; unpack it and name the adapter in it")
    if is_pickle(head):
        return Foreign("pickle", "a Python pickle, which can run code when loaded; convert it to safetensors first")
    return None


def is_pickle(head: bytes) -> bool:
    """Return True if a file begins as a pickle of protocol 2 to 5.

    Such a pickle begins with 0x80 and the number of the protocol. A safetensors file with a long header may begin so
    too, but its byte 8 is always `{`, which the opcodes of a pickled dict or tuple never put there.
    """
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[8:9] != b"{"


def is_unicode(text: str) -> bool:
    """Return True if a string can be encoded in UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def display_name(source: AnySource) -> str:
    """Return the name that messages give a source: its path, or what kind of source it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "(bytes)"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "(stream)"


def open_stream(source: AnySource, name: str) -> tuple[BinaryIO, bool]:
    """Return a stream that can seek, and True if the caller has to close it. A stream that cannot seek is read whole.

    Raises:
        AdapterError: ``not-found``; ``unreadable``, also for pipes and devices, since reading them may never end.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), True
    if isinstance(source, (str, os.PathLike)):
        try:
            mode = os.stat(source).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe could wait for ever
                raise AdapterError("not a regular file", code="unreadable", where=name)
            return open(source, "rb"), True
        except FileNotFoundError as e:
            raise AdapterError("no such file or directory", code="not-found", where=name) from e
        except (OSError, ValueError) as e:  # ValueError: a null character in the path
            reason = e.strerror if isinstance(e, OSError) and e.strerror else e
            raise AdapterError(f"cannot be opened: {reason}", code="unreadable", where=name) from e
    if source.seekable():
        return source, False
    return io.BytesIO(source.read()), True


def open_from_start(source: AnySource, name: str) -> tuple[BinaryIO, bool]:
    """Open a source as `open_stream` does, so that offset 0 is the first byte of the file.

    A stream that is not at its start is read whole.
    """
    stream, owned = open_stream(source, name)
    if owned or stream.tell() == 0:
        return stream, owned
    return io.BytesIO(stream.read()), True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        AdapterError: ``not-found``, ``unreadable``, ``limit`` or ``bad-json``.
    """
    stream, _ = open_stream(path, str(path))
    try:
        with stream:
            size = stream.seek(0, os.SEEK_END)
            if size > MAX_JSON_BYTES:
                raise AdapterError(f"{size} bytes, over {MAX_JSON_BYTES}", code="limit", where=str(path))
            stream.seek(0)
            data = stream.read(size)
    except OSError as e:
        raise AdapterError(f"cannot be read: {e.strerror or e}", code="unreadable", where=str(path)) from e
    foreign = describe_foreign_bytes(data[:512])
    if foreign is not None:
        raise AdapterError(foreign.message, code=foreign.code, where=str(path))
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"not valid JSON: {e}", code="bad-json", where=str(path)) from e
    if not isinstance(value, dict):
        raise AdapterError("not a JSON object", code="bad-json", where=str(path))
    return value


def dump_json(value: object) -> bytes:
    """Return JSON bytes as PEFT and Transformers write them: indented by two, keys in the order given."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a stream whose bytes appear under ``path`` only when the ``with`` block ends without an error.

    An existing file is replaced. The bytes are synced to the disk before they get the name. What killed runs have left
    of the same file is removed.

    Raises:
        OutputExists: ``special-file``: ``path`` is a device, pipe or socket.
        OSError: The directory cannot be written.
    """
    target = Path(path)
    require_free(target, overwrite=True)
    with _named_errors(target), temporary_beside(target, is_directory=False) as temporary:
        with temporary.open("wb") as stream:
            yield stream
        sync_tree(temporary)
        os.replace(temporary, target)
        sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace: bool) -> Iterator[Path]:
    """Make a temporary directory that becomes ``path`` only when the ``with`` block ends without an error.

    All files are synced before the directory gets its name. What killed runs have left of it is removed.

    Raises:
        OutputExists: ``path`` exists, is not an empty directory, and ``replace`` is False.
    """
    target = Path(path)
    require_free(target, overwrite=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _named_errors(target), temporary_beside(target, is_directory=True) as temporary:
        yield temporary
        sync_tree(temporary)
        replace_directory(temporary, target)


@contextlib.contextmanager
def updated_directory(path: str | os.PathLike[str], first: str) -> Iterator[Path]:
    """Make a directory for files that come into an existing directory all at once, when the ``with`` block ends.

    The existing directory is exchanged with one that has the new files and links to all others. Where that cannot be,
    because the directory is the working directory or the file system has no links, the file `first` is removed, the
    others replace theirs one by one, and `first` comes last.

    Args:
        path: The existing directory.
        first: The name of the file without which no reader takes the others, such as a configuration.

    Raises:
        OSError: The directory cannot be written.
    """
    target = Path(os.path.realpath(path))
    with _named_errors(target), temporary_beside(target, is_directory=True) as temporary:
        yield temporary
        new = [entry.name for entry in temporary.iterdir()]
        sync_tree(temporary)
        if not (_holds_us(target) or os.path.ismount(target)):
            try:
                link_others(target, temporary)
                swap(temporary, target)
            except OSError:
                pass
            else:
                sync_directory(target.parent)
                return
        (target / first).unlink(missing_ok=True)
        for name in sorted(new, key=lambda name: name == first):
            os.replace(temporary / name, target / name)
        sync_directory(target)


def _holds_us(directory: Path) -> bool:
    """Return True if the working directory of this process is a directory or lies in it."""
    try:
        here = Path.cwd()
    except OSError:
        return False
    return directory == here or directory in here.parents


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    """Give errors of writing the name of the file: the system does not say which disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL and error.filename is None:
            error.filename = os.fspath(target)
        raise


def replace_directory(new: Path, target: Path) -> None:
    """Rename a directory to ``target``; whatever has that name is removed."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if os.path.lexists(target):
        swap(new, target)
        remove(new)
    else:
        os.rename(new, target)
    sync_directory(target.parent)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that writing to ``path`` replaces nothing that the caller wants to keep.

    Args:
        path: The path that will be written.
        overwrite: True if a file or a directory may be replaced.

    Raises:
        OutputExists: ``path`` exists, is not an empty directory, and ``overwrite`` is False; ``special-file``: it is
            a device, pipe or socket, which is never replaced.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputExists("a device, pipe or socket, which is not replaced", code="special-file", where=str(path))
    if overwrite or not os.path.lexists(path):
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    raise OutputExists("already exists", where=str(path))
