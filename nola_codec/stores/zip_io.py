"""Read the members of a stranger's zip archive without being made to unpack more than it could honestly hold."""

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

ZIP_MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 500_000

# zipfile reads the directory whole and keeps about ten times its bytes; members it reads in small pieces.
_MAX_READ_BYTES = 64_000_000
# Factors that are mostly zeros deflate well, to a thousandth at best; a file of nothing else is small.
_MAX_DEFLATE_RATIO = 1100
_MAX_TOTAL_RATIO = 64
_ALWAYS_ALLOWED_BYTES = 16_000_000

# Exceptions that zipfile raises for damaged archives, found by experiment: none is a fault of ours.
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
        name: The file, for messages.
        members: Unpacked size in bytes by name, in the archive's order.
        file_bytes: Size of the archive.
    """

    def __init__(self, source: AnySource, *, name: str | None = None) -> None:
        """Open and check a path, bytes or a binary stream.

        Raises:
            AdapterError: ``not-found``, ``unreadable``; ``bad-zip`` for a damaged archive; ``zip-bomb`` when it
                declares more than its size allows; ``limit``.
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
        if self._owned:
            self._file.close()

    def read(self, member: str, limit: int | None = None) -> bytes:
        """Unpack a member, or its first ``limit`` bytes; the checksum is compared when it is read to its end.

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
    """The archive's stream; zipfile reads the directory in one piece, as long as the file says it is."""

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
