"""The decoded SHA-256 of a file: of its records, in their order, and of its carried and drawn tensors."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import BoundedSemaphore, Thread
from types import TracebackType

import numpy as np

from nola_codec.arrays import Arrays
from nola_codec.decoder.factors import DecodedGroup, DecodedRecord
from nola_codec.errors import ChecksumMismatch
from nola_codec.model.header import Header
from nola_codec.model.tensors import RawTensor
from nola_codec.parallel import worker_count

_WAITING = 4
"""Records, or groups of them, that wait for the thread of a hash."""


class DecodedHash:
    """Computes the decoded SHA-256 of a file from its records, in the order of the file.

    A coded record adds the exponent of each side as int8, and then each side as little-endian int16. A carried or drawn
    tensor adds its bytes.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def update(self, decoded: DecodedRecord, xp: Arrays) -> None:
        """Add a coded record."""
        self._sha.update(struct.pack(f"<{len(decoded.exponents)}b", *decoded.exponents))
        for side in decoded.sides:
            self._sha.update(np.ascontiguousarray(xp.numpy(side), dtype="<i2").reshape(-1).view(np.uint8).data)

    def update_group(self, group: DecodedGroup, xp: Arrays) -> None:
        """Add the records of a group."""
        if group.image is not None:
            self._sha.update(group.image.data)
            return
        for record in group.records:
            self.update(record, xp)

    def update_raw(self, tensor: RawTensor) -> None:
        """Add a carried or a drawn tensor."""
        self._sha.update(tensor.data)

    def digest(self) -> bytes:
        """Return the hash of all that was added so far, 32 bytes."""
        return self._sha.digest()


class HashThread:
    """The `DecodedHash` of each rung, on a thread of its own, since SHA-256 takes a third of the time of a decode.

    With one worker, or for arrays that are not NumPy's, it computes in the caller's thread.

        with HashThread(xp) as sha256:
            sha256.update(record)
            sha256.digests()
    """

    def __init__(self, xp: Arrays, rungs: int = 1) -> None:
        """Start with no record in the hash of any of so many rungs."""
        self._xp = xp
        self._hashes = [DecodedHash() for _ in range(rungs)]
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._room = BoundedSemaphore(_WAITING)
        self._failure: BaseException | None = None
        has_thread = xp.has_threads and worker_count() > 1
        self._thread = Thread(target=self._compute, daemon=True) if has_thread else None

    def update(self, decoded: DecodedRecord, rung: int = 0) -> None:
        """Add a coded record as it is at a rung."""
        self._do(lambda: self._hashes[rung].update(decoded, self._xp))

    def update_group(self, group: DecodedGroup) -> None:
        """Add the records of a group to the hash of the only rung."""
        self._do(lambda: self._hashes[0].update_group(group, self._xp))

    def update_raw(self, tensor: RawTensor) -> None:
        """Add a carried or a drawn tensor, which is the same at all rungs."""
        for each in self._hashes:
            self._do(partial(each.update_raw, tensor))

    def digests(self) -> list[bytes]:
        """Return the hash of each rung, 32 bytes each. Nothing can be added after it."""
        self._end()
        if self._failure is not None:
            raise self._failure
        return [each.digest() for each in self._hashes]

    def __enter__(self) -> HashThread:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _do(self, step: Callable[[], None]) -> None:
        if self._thread is None:
            step()
        else:
            self._room.acquire()
            self._work.put(step)

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._work.put(None)
            self._thread.join()

    def _compute(self) -> None:
        while (step := self._work.get()) is not None:
            try:
                if self._failure is None:
                    step()
            except BaseException as error:  # raised again by `digest`, in the caller's thread
                self._failure = error
            finally:
                self._room.release()


def compare_digests(digests: Sequence[bytes], header: Header, *, has_reference: bool) -> None:
    """Compare the decoded SHA-256 of the last rungs, one for each digest, with those of the header.

    Raises:
        ChecksumMismatch: ``factors-checksum``: at a rung the decoded numbers are not those of the encoder.
    """
    for entry, digest in zip(header.rungs[-len(digests) :], digests, strict=True):
        if digest != entry.decoded_sha256:
            cause = "this decoder is not exact" + (", or the reference is not what it says" if has_reference else "")
            raise ChecksumMismatch(
                f"decoded factors: SHA-256 differs from the encoder's; {cause}", code="factors-checksum"
            )
