"""Open a `.nola` file from a path, bytes or a stream, and check each part of it before it is used.

with open_container("task.nola") as container:
    container.header.coded[0].name
    container.section(1)          # its stored bytes; the CRC-32 is checked, and nothing else is read
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from nola_codec.container.header import unpack_header
from nola_codec.container.limits import DEFAULT_LIMITS, Limits, resolve_limits
from nola_codec.container.prelude import (
    BEFORE_CONTENT,
    CONTENT_BYTES,
    MAGIC,
    SIZE,
    Prelude,
    check_header,
    unpack_prelude,
)
from nola_codec.container.random_access import AHEAD, RandomAccess
from nola_codec.container.rungs import header_at_rung
from nola_codec.container.signature import SIZE as SIGNATURE_SIZE
from nola_codec.container.signature import Signature, unpack_signature
from nola_codec.container.units import UnitsReader
from nola_codec.entropy import adaptive
from nola_codec.entropy.blobs import unpack_blob
from nola_codec.entropy.frames import declared_size, decompress
from nola_codec.errors import (
    AdapterError,
    ChecksumMismatch,
    FormatError,
    MissingFile,
    NolaError,
    OutOfMemory,
    RemoteError,
    mismatch,
)
from nola_codec.model.header import Header
from nola_codec.model.records import CodedRecord
from nola_codec.model.tensors import DTYPE_BYTES, RawTensor
from nola_codec.remote import is_url, shown_url

Source = str | os.PathLike[str] | bytes | BinaryIO


_NO_MEMORY = "not enough memory for what the file declares; `--max-memory` or a Limits refuses such files beforehand"
_ADAPTER_SUFFIXES = frozenset({".safetensors", ".npz", ".gguf", ".bin", ".pt", ".pth"})


@cache
def header_dictionary() -> bytes:
    """Return the preset dictionary of header compression, which is `spec/header-dictionary.bin`."""
    return Path(__file__).with_name("header-dictionary.bin").read_bytes()


class Container:
    """An open file. Its header is read and checked at once, and its sections on request.

    Threads may read one open file at once, and so may forked processes if it is a file on disk or bytes
    (`random_access.py`). Only `select` and `close` are not for a file that others read.

    Attributes:
        name: The name of the source in errors.
        limits: The bounds that the file was opened with.
        prelude: The prelude of the file.
        header: The header as it is at the rung at which the file was opened.
        rungs: The number of rungs of the whole file.
        signature: The signature behind the last section, which nothing here checks; None if there is none.
    """

    def __init__(
        self, source: bytes | BinaryIO, limits: Limits, name: str, *, owned: bool, rung: int | None, partial: bool
    ) -> None:
        self._source, self._owned, self.name = source, owned, name
        self.limits = limits
        self._others: list[Container] = []
        self._bytes = RandomAccess(source)
        self._length = self._bytes.length
        self._bytes.keep_beginning(AHEAD)
        start = self._read(0, SIZE)
        self.prelude: Prelude = unpack_prelude(start, limits)
        if self.header_length > AHEAD:
            self._bytes.keep_beginning(self.header_length + AHEAD)
        stored = self._read(SIZE, self.prelude.header_stored)
        check_header(start, stored)
        size = declared_size(stored, "header")
        limits.require("header_plain", size, "plain header (bytes)")
        plain = decompress(stored, size, "header", header_dictionary())
        header = unpack_header(plain, limits, self.prelude.required_flags)
        self.signature = self._check_length(header, partial=partial)
        self._whole = header
        self.rungs = len(header.rungs)
        self.select(self._choose(header, rung))

    def select(self, rung: int) -> None:
        """Show the file as it would be without the rungs after this one."""
        self._without_units: Header = header_at_rung(self._whole, rung)
        self.header = self._without_units

    @property
    def file_length(self) -> int:
        """The length of the whole file in bytes, as the header says; a signature that follows does not count."""
        return self.header_length + sum(section.length for section in self._whole.sections)

    @property
    def header_length(self) -> int:
        """The number of bytes of prelude and compressed header. The first section follows."""
        return SIZE + self.prelude.header_stored

    def rung_bytes(self, rung: int) -> int:
        """Return how many bytes, from the beginning of the file, a reader of this rung needs."""
        sections = self.header.sections[: self.header.sections_at(rung)]
        return self.header_length + sum(s.length for s in sections)

    def section(self, index: int) -> bytes:
        """Return the stored bytes of a section.

        Raises:
            ChecksumMismatch: ``section-checksum``: The bytes were altered.
        """
        section = self.header.sections[index]
        data = self._read(self.header_length + section.offset, section.length)
        if zlib.crc32(data) != section.crc32:
            raise ChecksumMismatch(f"section {index}: CRC-32 does not match", code="section-checksum")
        return data

    def read_units(self) -> Header:
        """Return the header with its rungs and the units of its records; the first call reads the units sections."""
        header = self._without_units
        if self.header is header:
            reader = UnitsReader(header, self.limits)
            for _ in self._read_rungs(reader):
                pass
            self.header = replace(header, coded=reader.records, rungs=tuple(reader.rungs))
        return self.header

    def records_by_rung(self) -> list[Sequence[CodedRecord]]:
        """Return the coded records as they are at each rung up to the open one; reads the units sections."""
        return list(self._read_rungs(UnitsReader(self._without_units, self.limits)))

    def count_units(self) -> tuple[int, ...]:
        """Return the number of units of each coded record; only the beginnings of the units sections are parsed."""
        header = self._without_units
        reader = UnitsReader(header, self.limits)
        for rung in range(len(header.rungs)):
            reader.count_rung(self._units_bytes(rung))
        return reader.rungs[-1].units

    def _read_rungs(self, reader: UnitsReader) -> Iterator[Sequence[CodedRecord]]:
        """Read the units sections, and yield the records after each."""
        for rung in range(len(self._without_units.rungs)):
            reader.read_rung(self._units_bytes(rung))
            yield reader.records

    def _units_bytes(self, rung: int) -> bytes:
        """Return the stored bytes of a rung's units section."""
        number = self._without_units.units_section(rung)
        codec = self._without_units.sections[number].codec
        if codec != adaptive.id:
            raise FormatError(mismatch(f"codec of section {number}", adaptive.id, codec), code="codec")
        return self.section(number)

    def raw_tensor(self, index: int) -> RawTensor:
        """Read carried tensor `index`. Raises FormatError or ChecksumMismatch if its section is damaged."""
        kind = self.header.raw[index].kind
        number = self.header.raw_section(index)
        codec = self.header.sections[number].codec
        width = DTYPE_BYTES[kind.dtype]
        data = unpack_blob(codec, self.section(number), kind.nbytes, f"section {number}", width)
        return RawTensor(kind.dtype, kind.shape, data)

    def check_content(self) -> None:
        """Read the whole file, and compare the SHA-256 of its content with the one in the prelude.

        Raises:
            ChecksumMismatch: ``content-checksum``: They differ.
            FormatError: ``truncated``: The file is not whole.
        """
        if self.content_digest()[:CONTENT_BYTES] != self.prelude.content_sha256:
            raise ChecksumMismatch("file: SHA-256 of the content does not match", code="content-checksum")

    def content_digest(self) -> bytes:
        """Return the SHA-256 of the content, all 32 bytes of it; the whole file is read.

        Raises:
            FormatError: ``truncated``: The file is not whole.
        """
        if self._length < self.file_length:
            raise FormatError(mismatch("file length", self.file_length, self._length), code="truncated")
        import hashlib

        sha256 = hashlib.sha256(self._read(0, BEFORE_CONTENT))
        for position in range(SIZE, self.file_length, 1 << 20):
            sha256.update(self._read(position, min(1 << 20, self.file_length - position)))
        return sha256.digest()

    def hash_file(self) -> bytes:
        """Return the file SHA-256, which `sha256sum` prints."""
        import hashlib

        sha256 = hashlib.sha256()
        for position in range(0, self._length, 1 << 20):
            sha256.update(self._read(position, min(1 << 20, self._length - position)))
        return sha256.digest()

    def file_bytes(self) -> bytes:
        """Return the bytes of the whole file, without a signature.

        Raises:
            FormatError: ``truncated``: The file is not whole.
        """
        return self._read(0, self.file_length)

    def all_names(self) -> tuple[str, ...]:
        """Return the name of this file, and those of the files that are closed together with it."""
        return (self.name, *(name for other in self._others for name in other.all_names()))

    def close_too(self, other: Container) -> None:
        """Close another file together with this one."""
        self._others.append(other)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        for other in self._others:
            other.close()
        if self._owned and not isinstance(self._source, bytes):
            self._source.close()

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, MemoryError) and not isinstance(error, NolaError):
            raise OutOfMemory(_NO_MEMORY, where=self.name) from error

    def _choose(self, header: Header, rung: object) -> int:
        """Return the rung to open at: the one that was asked for, else the last one that is whole."""
        there = [number for number in range(len(header.rungs)) if self._end(header, number) <= self._length]
        if rung is not None and (not isinstance(rung, int) or not 0 <= rung < len(header.rungs)):
            raise AdapterError(mismatch("rung", f"0 to {len(header.rungs) - 1}", repr(rung)), code="unknown-rung")
        chosen = rung if rung is not None else max(there, default=0)
        if chosen not in there:
            wanted = f"{self._end(header, chosen)} bytes"
            raise FormatError(mismatch(f"rung {chosen}", wanted, self._length), code="truncated")
        return chosen

    def _read(self, offset: int, length: int) -> bytes:
        data = self._bytes.read(offset, length)
        if len(data) != length and offset + length > SIZE:
            raise FormatError(mismatch("file", f"{length} bytes at offset {offset}", len(data)), code="truncated")
        return data

    def _end(self, header: Header, rung: int) -> int:
        """Return where the last section of a rung ends."""
        return self.header_length + sum(s.length for s in header.sections[: header.sections_at(rung)])

    def _check_length(self, header: Header, *, partial: bool) -> Signature | None:
        """Check that the file ends with its last section, or before it if `partial`; return a signature behind it."""
        wanted = self._end(header, len(header.rungs) - 1)
        text = mismatch("file length", wanted, self._length)
        surplus = self._length - wanted
        signature = unpack_signature(self._read(wanted, surplus)) if surplus == SIGNATURE_SIZE else None
        if surplus > 0 and signature is None:
            raise FormatError(text, code="trailing")
        if surplus < 0 and not partial:
            whole = sum(self._end(header, rung) <= self._length for rung in range(len(header.rungs)))
            if whole:
                rungs = "the coarsest rung, which is" if whole == 1 else f"the {whole} coarsest rungs, which are"
                text += f"; `nola-codec truncate` keeps {rungs} whole"
            raise FormatError(text, code="truncated")
        return signature


def open_container(
    source: Source,
    limits: Limits | None = None,
    *,
    rung: int | None = None,
    partial: bool = False,
    default_limits: Limits = DEFAULT_LIMITS,
) -> Container:
    """Open a file by path, URL, bytes or seekable binary stream. Behind a URL, only what is needed is read.

    Args:
        source: The file.
        limits: Bounds on what the file may declare; None stands for those of the environment variable NOLA_LIMITS.
        rung: The last rung to use, counted from 0; the file is then shown as if later rungs did not exist. None stands
            for the last rung.
        partial: True to accept the beginning of a file, which is opened at the last rung that is whole.
        default_limits: The limits that NOLA_LIMITS changes.

    Raises:
        AdapterError: ``unknown-rung``: The file has no such rung; ``not-nola``: The path is an adapter or a directory;
            ``unreadable``: it is a pipe or a device.
        FormatError, ChecksumMismatch: The file is refused; the specification's reject table lists the codes. The
            message starts with the source.
        OutOfMemory: The header takes more memory than there is.
        RemoteError: A URL cannot be read.
        MissingFile: There is no such file.
        OSError: The path cannot be opened.
    """
    stream: bytes | BinaryIO
    limits = resolve_limits(limits, default_limits)
    if isinstance(source, bytes | bytearray | memoryview):
        stream, owned, name = bytes(source), True, "bytes"
    elif isinstance(source, str) and is_url(source):
        from nola_codec.remote import open_url

        stream, owned, name = open_url(source), True, shown_url(source)
    elif isinstance(source, str | os.PathLike):
        _refuse_adapter(Path(source))
        stream, owned, name = Path(source).open("rb"), True, os.fspath(source)  # noqa: SIM115 - the Container closes it
    else:
        stream, owned, name = source, False, str(getattr(source, "name", "stream"))
    try:
        return Container(stream, limits, name, owned=owned, rung=rung, partial=partial)
    except (NolaError, MemoryError) as error:
        if owned and not isinstance(stream, bytes):
            stream.close()
        if not isinstance(error, NolaError):
            raise OutOfMemory(_NO_MEMORY, where=name) from error
        if isinstance(error, RemoteError):  # it names the URL already
            raise
        if error.code == "magic" and name.endswith(tuple(_ADAPTER_SUFFIXES)):
            raise _not_nola(name) from error
        raise error.within(name) from error


def _refuse_adapter(path: Path) -> None:
    """Raise an error that says what to do if the path is an adapter, a directory or a pipe, not a `.nola` file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFile("no such file or directory", where=str(path)) from error
    except OSError:  # opening it says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe could wait for ever
        raise AdapterError("not a regular file", code="unreadable", where=str(path))
    if path.is_dir():
        if not any((path / name).exists() for name in ("adapter_config.json", "adapters.safetensors", "adapters.npz")):
            raise AdapterError("is a directory, not a .nola file", code="not-nola", where=str(path))
    elif path.suffix not in _ADAPTER_SUFFIXES:
        return
    else:
        with path.open("rb") as stream:
            if stream.read(4) == MAGIC[:4]:
                return
    raise _not_nola(str(path))


def _not_nola(name: str) -> AdapterError:
    return AdapterError("is an adapter, not a .nola file; use `nola-codec encode`", code="not-nola", where=name)
