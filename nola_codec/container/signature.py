"""The signature that may follow the last section of a file (specification, "Signatures")."""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = b"\x89NLS\r\n\x1a\n"
KEY_BYTES, VALUE_BYTES = 32, 64
SIZE = len(MAGIC) + KEY_BYTES + VALUE_BYTES
_PURPOSE = b"nola signature\0"


@dataclass(frozen=True)
class Signature:
    """An Ed25519 signature of the content of a file. Nothing here says that it is right.

    Attributes:
        public_key: The key that it was made for, 32 bytes.
        value: The signature, 64 bytes.
    """

    public_key: bytes
    value: bytes

    def pack(self) -> bytes:
        """Return the bytes that follow the last section."""
        return MAGIC + self.public_key + self.value


def unpack_signature(data: bytes) -> Signature | None:
    """Return the signature that the bytes behind the last section are; None if they are something else."""
    if len(data) != SIZE or not data.startswith(MAGIC):
        return None
    start = len(MAGIC) + KEY_BYTES
    return Signature(data[len(MAGIC) : start], data[start:])


def signed_message(content_digest: bytes) -> bytes:
    """Return what is signed: a purpose, and the whole SHA-256 of the content (`Container.content_digest`)."""
    return _PURPOSE + content_digest
