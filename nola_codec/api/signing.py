"""`sign`: a file with a signature behind its last section; and the check of one, for `verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nola_codec.api.arguments import require_source, require_target, write_output
from nola_codec.api.checking import check_content
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.container.signature import Signature, signed_message
from nola_codec.errors import ChecksumMismatch, NolaError, mismatch, require_package
from nola_codec.remote import accepts_urls

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Key = str | os.PathLike[str] | bytes
"""A key in PEM: its file, or its bytes."""

_OTHER_ALGORITHM = mismatch("key", "a key of Ed25519", "a key of another algorithm")


@accepts_urls("source", out="out")
def sign(
    source: Source,
    key: Key,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> bytes:
    """Sign a file with an Ed25519 key. Its content stays, and with it both hashes that are stored in it.

    A signature that is there is replaced. The content SHA-256 is compared first; `verify` checks more.

    Args:
        source: The `.nola` file.
        key: The private key in PEM (PKCS 8, without a password): its file, or its bytes.
        out: Path or binary stream that the signed file is written to; None writes nothing.
        overwrite: True replaces a file that is there.
        limits: As in `load`.

    Returns:
        The bytes of the signed file.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
        NolaError: ``key``: The key cannot be read, or is no Ed25519 key.
        MissingPackage: ``needs-cryptography``.
        OutputExists: `out` is there and `overwrite` is false.
    """
    require_source(source)
    require_target(out, overwrite=overwrite)
    private = _private_key(key)
    with open_container(source, limits) as container:
        check_content(container)
        value = private.sign(signed_message(container.content_digest()))
        data = container.file_bytes() + Signature(private.public_key().public_bytes_raw(), value).pack()
    write_output(out, data)
    return data


def check_signature(container: Container, key: Key) -> None:
    """Check that a file is signed with the private key of a public key.

    Args:
        container: The open file.
        key: The public key in PEM: its file, or its bytes.

    Raises:
        ChecksumMismatch: ``signature``: The file is not signed, or with another key, or it was changed since.
        NolaError: ``key``; MissingPackage.
    """
    public = _public_key(key)
    signature = container.signature
    if signature is None:
        raise ChecksumMismatch("the file is not signed", code="signature", where=container.name)
    if signature.public_key != public.public_bytes_raw():
        found = signature.public_key.hex()
        message = f"the file is signed with another key: expected {public.public_bytes_raw().hex()}, found {found}"
        raise ChecksumMismatch(message, code="signature", where=container.name)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature.value, signed_message(container.content_digest()))
    except InvalidSignature:
        message = "the signature is wrong: the file was changed since, or the signature was not made with this key"
        raise ChecksumMismatch(message, code="signature", where=container.name) from None


def _private_key(key: Key) -> Ed25519PrivateKey:
    data, name = _read_key(key)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = _unusable_key("private", data, "openssl genpkey -algorithm ed25519 -out private.pem")
        raise NolaError(message, code="key", where=name) from error
    if not isinstance(found, Ed25519PrivateKey):
        raise NolaError(_OTHER_ALGORITHM, code="key", where=name)
    return found


def _public_key(key: Key) -> Ed25519PublicKey:
    data, name = _read_key(key)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        message = _unusable_key("public", data, "openssl pkey -in private.pem -pubout -out public.pem")
        raise NolaError(message, code="key", where=name) from error
    if not isinstance(found, Ed25519PublicKey):
        raise NolaError(_OTHER_ALGORITHM, code="key", where=name)
    return found


def _unusable_key(kind: str, data: bytes, command: str) -> str:
    """Return the message for a key that cannot be read: what was found instead, and the command that makes a good one.

    Args:
        kind: "private" or "public".
        data: What was read.
        command: The command.
    """
    if data.lstrip().startswith((b"ssh-", b"-----BEGIN OPENSSH")):
        found = "a key of OpenSSH"
    elif b"ENCRYPTED" in data[:200]:
        found = "a key with a password"
    elif b"PRIVATE KEY-----" in data[:200]:
        found = "a private key" if kind == "public" else "a damaged private key"
    elif b"PUBLIC KEY-----" in data[:200]:
        found = "a public key" if kind == "private" else "a damaged public key"
    else:
        found = "something else"
    wanted = f"a {kind} key of Ed25519 in PEM{', without a password' if kind == 'private' else ''}"
    return f"{mismatch('key', wanted, found)}; `{command}` makes one"


def _read_key(key: Key) -> tuple[bytes, str]:
    """Return the bytes of a key, and its name for errors."""
    require_package("a signature", "cryptography", "sign")
    if isinstance(key, bytes):
        return key, "key"
    try:
        return Path(key).read_bytes(), os.fspath(key)
    except OSError as error:
        raise NolaError(f"cannot be read: {error.strerror}", code="key", where=os.fspath(key)) from error
