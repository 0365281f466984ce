"""`open_url`: a remote file as a stream that can seek, and that asks for each byte once, in few requests."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from nola_codec.errors import RemoteError
from nola_codec.remote.addresses import check_url, file_url_path, hub_address, is_http, scheme_of
from nola_codec.remote.contract import RemoteFile
from nola_codec.remote.failures import not_found, require_online
from nola_codec.remote.fsspec_files import FsspecFile
from nola_codec.remote.http_files import HttpFile, HubFile
from nola_codec.remote.hub_fetching import lone_file
from nola_codec.remote.transfer import DiskRoom, stream_range

FIRST_READ = 16 << 10
"""Bytes of the first request: the header and the units of most `.nola` files of up to 500 KB."""
_GROWTH = 4
"""How many times more than the request before a request asks for that goes on where that one ended."""
_MOST_AHEAD = 8 << 20
_IN_MEMORY = 64 << 20  # bytes; more of a file lies in a temporary file


def open_url(url: str) -> BinaryIO:
    """Open a remote file for reading by ranges. The caller closes it.

    Nothing is asked before the first read. That asks for 16 KiB, and tells the size and the version of the file. A
    version that changes later is an error. What was read is kept until the file is closed.

    Raises:
        MissingPackage: A package for the protocol is not installed.
        RemoteError: ``bad-url``, ``offline``; reading raises ``not-found``, ``forbidden``, ``no-connection``,
            ``server-error``, ``remote-changed``, ``bad-answer`` and others.
    """
    check_url(url)
    local = file_url_path(url)
    if local is not None:
        try:
            return local.open("rb")
        except FileNotFoundError:
            raise not_found(url) from None
    from nola_codec.remote.fetching import cached_copy

    kept = cached_copy(url) if is_forbidden_now(url) else None
    if kept is not None:
        return kept.open("rb")
    return cast("BinaryIO", RangeFile(open_remote(url)))


def is_forbidden_now(url: str) -> bool:
    """Return True if the network must not be used for a URL."""
    try:
        require_online(url, network_of(url))
    except RemoteError:
        return True
    return False


def network_of(url: str) -> str:
    """Return ``hf`` for whatever lies on the Hugging Face Hub, and else the protocol."""
    return "hf" if hub_address(url) is not None else scheme_of(url)


def open_remote(url: str) -> RemoteFile:
    """Return the file behind a URL. Nothing is asked yet. Raise what `open_url` raises."""
    require_online(url, network_of(url))
    hub = hub_address(url)
    if hub is not None:
        return HubFile(hub if hub.path else lone_file(hub))
    return HttpFile(url) if is_http(url) else FsspecFile(url)


class RangeFile(io.BufferedIOBase):
    """A `RemoteFile` as a stream. Reads that follow one another ask for more and more at once."""

    is_remote = True
    """Tells a reader that each read of another place is a request."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self.name = file.name
        self._file = file
        self._kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - `close` closes it
        self._room = DiskRoom(Path(tempfile.gettempdir()), file.name)
        self._parts: list[tuple[int, int]] = []  # what is kept: (start, stop), sorted, not touching
        self._size: int | None = None
        self._position = 0
        self._ahead = FIRST_READ
        self._last_stop = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, and return it. From the end, the size has to be known, which may take a request."""
        start = {io.SEEK_SET: lambda: 0, io.SEEK_CUR: self.tell, io.SEEK_END: self._length}[whence]()
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read some bytes, or all up to the end. Raise RemoteError as `open_url` says."""
        length = self._length()
        stop = length if size is None or size < 0 else min(self._position + size, length)
        if stop <= self._position:
            return b""
        for start, end in self._missing(self._position, stop):
            self._fetch(start, end)
        self._kept.seek(self._position)
        data: bytes = self._kept.read(stop - self._position)
        self._position += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """Read as `read` does."""
        return self.read(size)

    def close(self) -> None:
        """Give up the connection and what was kept."""
        if not self.closed:
            self._file.close()
            self._kept.close()
        super().close()

    def _length(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on a closed file")
        if self._size is None:
            self._keep(0, FIRST_READ)
            self._size = self._last_stop if self._file.size is None else self._file.size
        return self._size

    def _fetch(self, start: int, stop: int) -> None:
        """Ask for a part that is not kept, and for more behind it."""
        self._ahead = min(_GROWTH * self._ahead, _MOST_AHEAD) if start == self._last_stop else FIRST_READ
        following = min((first for first, _ in self._parts if first >= stop), default=self._length())
        stop = min(max(stop, start + self._ahead), following)
        self._keep(start, stop)
        if self._missing(start, stop):
            raise RemoteError("the file ended early", code="bad-answer", where=self.name)

    def _keep(self, start: int, stop: int) -> None:
        """Ask for a part, and write what comes to the store of what was read."""
        self._last_stop = start
        for piece in stream_range(self._file, start, stop):
            self._kept.seek(self._last_stop)
            if self._last_stop >= _IN_MEMORY:
                self._room.take(len(piece))
            self._kept.write(piece)
            self._last_stop += len(piece)
        if self._last_stop == start:
            return
        parts = sorted([*self._parts, (start, self._last_stop)])
        self._parts = []
        for first, last in parts:
            if self._parts and first <= self._parts[-1][1]:
                self._parts[-1] = (self._parts[-1][0], max(last, self._parts[-1][1]))
            else:
                self._parts.append((first, last))

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of a range that are not kept."""
        found = []
        for first, last in self._parts:
            if first >= stop:
                break
            if first > start:
                found.append((start, first))
            start = max(start, last)
        if start < stop:
            found.append((start, stop))
        return found
