"""`PackedFile`: a `.nola` file in memory, as the bytes that it has on disk, with the earlier versions that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from nola_codec.arrays import NUMPY, Arrays
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.device.resident import ResidentFile, keep_on_device
from nola_codec.decoder.prediction import KnownRecords, Reference
from nola_codec.errors import AdapterError, mismatch
from nola_codec.references.finding import References, open_decoder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class PackedFile:
    """A file in memory.

    Attributes:
        data: The file: its bytes, or the two places that hold them if its coded sections lie on a device.
        rung: The rung that is decoded.
        reference: The earlier version that the file is coded against; None if it needs none.
    """

    data: bytes | ResidentFile
    rung: int
    reference: PackedFile | KnownRecords | None

    @property
    def nbytes(self) -> int:
        """The bytes that it takes, without its reference."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes

    def open(self, xp: Arrays, limits: Limits) -> Decoder:
        """Return a decoder of the file.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged.
        """
        known = self.reference
        reference: Reference | None = known.open(xp, limits) if isinstance(known, PackedFile) else known
        if isinstance(reference, KnownRecords):
            reference = KnownRecords(reference.records, xp)
        if isinstance(self.data, bytes):
            return Decoder(open_container(self.data, limits, rung=self.rung), xp, reference=reference)
        return Decoder(self.data.open(), xp, reference=reference, resident=self.data.blocks)

    def chain(self) -> Iterator[PackedFile | KnownRecords]:
        """Yield the file, and the earlier versions that it needs."""
        yield self
        if isinstance(self.reference, PackedFile):
            yield from self.reference.chain()
        elif self.reference is not None:
            yield self.reference


class FilePacker:
    """Reads files into memory; files that are the same are held once.

    Attributes:
        limits: The sizes that a file may declare.
        device: The device that keeps the coded sections of the files; None keeps them beside the rest.
    """

    def __init__(self, limits: Limits, device: torch.device | None = None) -> None:
        self.limits, self.device = limits, device
        self._known: WeakValueDictionary[tuple[bytes, int], PackedFile] = WeakValueDictionary()

    def open(self, source: Source, rung: int | None) -> Container:
        """Open a file, and compare its content SHA-256. The caller closes it.

        Raises:
            FormatError, ChecksumMismatch, AdapterError, RemoteError, OSError: Those of `open_container`.
        """
        container = open_container(source, self.limits, rung=rung)
        try:
            container.check_content()
        except BaseException:
            container.close()
            raise
        return container

    def pack(self, container: Container, references: References, most_bytes: int) -> PackedFile:
        """Return an open file in memory, with its references.

        Args:
            container: The file; it is not needed any more afterwards.
            references: The places to look for the reference in, as in `nola_codec.decode`.
            most_bytes: The most bytes that the file may have, and each reference.

        Raises:
            AdapterError: ``limit``: a file is larger.
            FormatError: ``reference``: the reference is not there.
        """
        if container.header.reference is None:
            return self._pack(container, None, most_bytes)
        return self._pack_decoder(open_decoder(container, NUMPY, references), most_bytes)

    def _pack_decoder(self, decoder: Decoder, most_bytes: int) -> PackedFile:
        found = decoder.reference
        if isinstance(found, Decoder):
            return self._pack(decoder.container, self._pack_decoder(found, most_bytes), most_bytes)
        return self._pack(decoder.container, found if isinstance(found, KnownRecords) else None, most_bytes)

    def _pack(self, container: Container, reference: PackedFile | KnownRecords | None, most_bytes: int) -> PackedFile:
        rung = len(container.header.rungs) - 1
        key = container.prelude.content_sha256, rung
        found = self._known.get(key)
        if found is not None:
            return found
        if container.file_length > most_bytes:
            message = mismatch("bytes that are left for packed files", f"at least {container.file_length}", most_bytes)
            raise AdapterError(message, code="limit", where=container.name)
        data = container.file_bytes() if self.device is None else keep_on_device(container, self.device)
        made = self._known[key] = PackedFile(data, rung, reference)
        return made
