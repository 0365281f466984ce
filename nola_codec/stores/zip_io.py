"""Read the members of a stranger's zip archive, and refuse an archive that unpacks to far more than its own size."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, cast

from nola_codec.errors import AdapterError, mismatch
from nola_codec.stores.files import AnySource, display_name, open_from_start

MAX_MEMBERS = 500_000

# zipfile reads the directory of an archive at once and keeps about ten times its bytes. It reads members in small
# pieces, so only a read of the directory can reach this limit.
_MAX_READ_BYTES = 64_000_000
# Deflate can shrink data to about a thousandth. Single factors of zeros do so, but they are not most of a large file.
_MAX_DEFLATE_RATIO = 1100
_MAX_TOTAL_RATIO = 64
_ALWAYS_ALLOWED_BYTES = 16_000_000

# The exceptions that zipfile raises for damaged archives, found by experiment.
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class Archive:
    """A zip archive with every declared size checked and nothing unpacked.

    Attributes:
        name: The file's name, for messages.
        members: The unpacked size of each member in bytes, by name, in the order of the archive.
        file_bytes: The size of the archive in bytes.
    """

    def __init__(self, source: AnySource, *, name: str | None = None) -> None:
        """Open and check a path, bytes or a binary stream.

        Raises:
            AdapterError: ``not-found``, ``unreadable``; ``bad-zip`` for a damaged archive; ``zip-bomb`` for one that
                would unpack to more than its size allows; ``limit`` for too many members.
        """
        self.name = name if name is not None else display_name(source)
        self._file, self._owned = open_from_start(source, self.name)
        try:
            self.file_bytes = self._file.seek(0, os.SEEK_END)
            with self._translate_errors(self.name):
                self._zip = zipfile.ZipFile(cast(BinaryIO, _Guarded(self._file)))
            self._infos = self._check_members()
        except BaseException:
            self.close()
            raise
        self.members: Mapping[str, int] = MappingProxyType({n: info.file_size for n, info in self._infos.items()})

    def close(self) -> None:
        """Close the archive, if it was opened here."""
        if self._owned:
            self._file.close()

    def read(self, member: str, limit: int | None = None) -> bytes:
        """Unpack a member, or its first ``limit`` bytes. The checksum is compared if the member is read to its end.

        Raises:
            AdapterError: ``bad-zip``.
        """
        info = self._infos[member]
        where = f"{self.name}: {member}"
        with self._translate_errors(where), self._zip.open(info) as stream:
            data = stream.read() if limit is None else stream.read(limit)
        if limit is None and len(data) != info.file_size:
            raise AdapterError(mismatch("bytes", info.file_size, len(data)), code="bad-zip", where=where)
        return data

    @contextlib.contextmanager
    def _translate_errors(self, where: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise AdapterError(f"cannot be read: {e}", code="unreadable", where=where) from e
        except _DAMAGED as e:
            raise AdapterError(f"a damaged zip archive: {e}", code="bad-zip", where=where) from e

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        infos: dict[str, zipfile.ZipInfo] = {}
        stored = unpacked = 0
        entries = self._zip.infolist()
        if len(entries) > MAX_MEMBERS:
            raise AdapterError(f"{len(entries)} members, over {MAX_MEMBERS}", code="limit", where=self.name)
        for info in entries:
            where = f"{self.name}: {info.filename}"
            if info.filename in infos:
                raise AdapterError("occurs twice in the zip archive", code="bad-zip", where=where)
            if info.header_offset < 0:
                raise AdapterError("starts before the zip archive", code="bad-zip", where=where)
            if info.flag_bits & 1:
                raise AdapterError("an encrypted member", code="bad-zip", where=where)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                message = mismatch("compression", "none or deflate", f"method {info.compress_type}")
                raise AdapterError(message, code="bad-zip", where=where)
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                message = mismatch("stored bytes", info.file_size, info.compress_size)
                raise AdapterError(message, code="bad-zip", where=where)
            if info.file_size > _MAX_DEFLATE_RATIO * (info.compress_size + 1):
                message = f"{info.file_size} bytes out of {info.compress_size}: more than deflate can hold"
                raise AdapterError(message, code="zip-bomb", where=where)
            infos[info.filename] = info
            stored += info.compress_size
            unpacked += info.file_size
        if stored > self.file_bytes:
            message = f"members of {stored} bytes overlap in a file of {self.file_bytes}"
            raise AdapterError(message, code="zip-bomb", where=self.name)
        if unpacked > max(_MAX_TOTAL_RATIO * self.file_bytes, _ALWAYS_ALLOWED_BYTES):
            message = f"{self.file_bytes} bytes that unpack to {unpacked}, over {_MAX_TOTAL_RATIO} times as many"
            raise AdapterError(message, code="zip-bomb", where=self.name)
        return infos


class _Guarded(io.BufferedIOBase):
    """The stream of an archive, which refuses to read very much at once.

    zipfile reads the directory in one piece, whose length the file itself declares.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_READ_BYTES:
            raise ValueError(f"{size} bytes wanted at once, over {_MAX_READ_BYTES}")
        return self._stream.read(size if size is not None else -1)
