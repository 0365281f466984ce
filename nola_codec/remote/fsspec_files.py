"""Read files of any protocol of fsspec, such as ``s3://``, ``gs://``, ``memory://``, and chains such as ``zip://``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from nola_codec.errors import MissingPackage, RemoteError, require_package
from nola_codec.remote.addresses import is_chain, links, scheme_of, shown_url
from nola_codec.remote.contract import TransientError, VersionedFile
from nola_codec.remote.failures import from_store_error, refused

_READ = 8 << 20
"""Bytes that are asked of a store at once."""
# What stores call the mark that changes with the bytes, the surest first.
_TAGS = (
    "ETag", "etag", "e_tag", "VersionId", "generation", "md5Hash", "content_md5", "blob_id", "sha256", "CRC",
    "LastModified", "last_modified", "mtime", "modified", "updated", "created",
)  # fmt: skip


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of fsspec for a URL, and the path in it.

    Raises:
        MissingPackage: ``needs-fsspec``, or ``needs-package`` for the package of the protocol.
        RemoteError: ``bad-url``: fsspec does not know the protocol; and those of `from_store_error`.
    """
    require_package(f"reading from {scheme_of(url)}://", "fsspec", "remote")
    from fsspec.core import url_to_fs
    from fsspec.registry import get_filesystem_class

    try:
        for part in links(url):
            get_filesystem_class(scheme_of(part) if ":" in part else part.lower())
    except ValueError:
        message = f"no protocol {scheme_of(url)!r} is known here; is the URL right?"
        raise RemoteError(message, code="bad-url", where=shown_url(url)) from None
    except ImportError as error:
        message = f"{scheme_of(url)}:// needs another package: {str(error).splitlines()[0]}"
        raise MissingPackage(message, code="needs-package", where=shown_url(url)) from None
    with translated(url):
        filesystem, path = url_to_fs(url)
        filesystem.invalidate_cache()  # listings that earlier calls left may be old
        return filesystem, path


@contextlib.contextmanager
def translated(url: str, *, is_tried_again: bool = False) -> Iterator[None]:
    """Raise errors of a store as ours; see `from_store_error`.

    Args:
        url: The URL, for messages.
        is_tried_again: True if the caller knows what to do with TransientError; else its RemoteError is raised.
    """
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:  # every file system has errors of its own
        failure = from_store_error(error, url)
        if isinstance(failure, TransientError) and not is_tried_again:
            failure = failure.error
        raise failure from None


class FsspecFile(VersionedFile):
    """A file of fsspec, as a `RemoteFile`."""

    def __init__(self, url: str, filesystem: Any = None, path: str = "", info: Mapping[str, Any] | None = None) -> None:
        """Name a file; nothing is asked yet.

        Args:
            url: Its URL.
            filesystem: The file system, if it is open already.
            path: The path in that file system.
            info: What a listing says about the file, if there was one.

        Raises:
            MissingPackage, RemoteError: Those of `open_filesystem`.
        """
        super().__init__(url)
        self._filesystem, self._path = (filesystem, path) if filesystem is not None else open_filesystem(url)
        self._handle: Any = None
        if info is not None:
            self._pin.fix(self.name, size_of(info), tag_of(info))

    def stream(self, start: int, stop: int | None) -> Iterator[bytes]:
        """Yield bytes; see `RemoteFile.stream`."""
        try:
            with translated(self._url, is_tried_again=True):
                handle = self._open()
                size = self.size
                end = size if stop is None else stop if size is None else min(stop, size)
                handle.seek(start)
                position = start
                while end is None or position < end:
                    wanted = _READ if end is None else min(_READ, end - position)
                    data = handle.read(wanted)
                    if not data:
                        break
                    position += len(data)
                    yield data
                if end is not None and position < end:
                    raise refused(self._url, f"the store gives {position} bytes of {end}")
        except GeneratorExit:
            raise
        except BaseException:
            self.close()  # the next try opens it again
            raise

    def close(self) -> None:
        """Close the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(Exception):
                handle.close()

    def _open(self) -> Any:
        if self._handle is None:
            # Our own read-ahead is enough. Most file systems take the option; an archive in a file does not.
            options = {} if is_chain(self._url) else {"cache_type": "none"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._handle = self._filesystem.open(self._path, "rb", **options)
            # A buffered file of fsspec has asked already, and asking again would be a request more.
            info = getattr(self._handle, "details", None)
            if not isinstance(info, Mapping):
                info = self._filesystem.info(self._path)
            # A listing and a question about one file may name different marks, of which only the same are compared.
            key = self.tag.partition(" ")[0]
            self._pin.fix(self.name, size_of(info), tag_of(info, (key,) if key else _TAGS))
        return self._handle


def size_of(info: Mapping[str, Any]) -> int | None:
    """Return the length that a store says a file has."""
    size = info.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def tag_of(info: Mapping[str, Any], keys: Sequence[str] = _TAGS) -> str:
    """Return the first mark of a version that a store gives under one of the keys; empty if it gives none."""
    return next((f"{key} {_plain(info[key])}" for key in keys if info.get(key)), "")


def _plain(value: object) -> str:
    """Return a mark as text; the memory file system gives a time once as a number and once as a date."""
    if isinstance(value, datetime):
        value = value.timestamp()
    return f"{value:.3f}" if isinstance(value, float) else str(value)
