"""A signature says who made a file, and leaves its content as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from nola_forge import golden, reference

import nola_codec
from nola_codec.container.reader import open_container
from nola_codec.container.signature import SIZE
from nola_codec.errors import ChecksumMismatch, FormatError, NolaError

PLAIN = golden("effective-rungs")


def private_pem(key: Any) -> bytes:
    made: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made


def public_pem(key: Any) -> bytes:
    made: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SIGNED = nola_codec.sign(PLAIN, private_pem(KEY))


def test_a_signature_follows_the_file_and_changes_nothing_in_it() -> None:
    assert SIGNED[: len(PLAIN)] == PLAIN
    assert len(SIGNED) == len(PLAIN) + SIZE == len(PLAIN) + 104
    facts, plain = nola_codec.verify(SIGNED, key=public_pem(KEY)), nola_codec.verify(PLAIN)
    assert facts["signed_by"] == KEY.public_key().public_bytes_raw().hex()
    assert plain["signed_by"] is None
    differing = {name for name in facts if facts[name] != plain[name]}
    assert differing == {"signed_by", "file_sha256"}
    assert nola_codec.verify(SIGNED)["signed_by"] == facts["signed_by"]
    reference().decode(SIGNED)


def test_the_signature_is_the_one_that_the_specification_says() -> None:
    import hashlib

    content = hashlib.sha256(PLAIN[:18] + PLAIN[38:]).digest()
    assert SIGNED[-64:] == KEY.sign(b"nola signature\0" + content)
    assert SIGNED[-104:-64] == b"\x89NLS\r\n\x1a\n" + KEY.public_key().public_bytes_raw()


def test_signing_again_replaces_the_signature(tmp_path: Path) -> None:
    path = tmp_path / "a.nola"
    path.write_bytes(SIGNED)
    (tmp_path / "key.pem").write_bytes(private_pem(OTHER))
    nola_codec.sign(path, tmp_path / "key.pem", path, overwrite=True)
    assert path.read_bytes() == nola_codec.sign(PLAIN, private_pem(OTHER))
    nola_codec.verify(path, key=public_pem(OTHER))


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        (PLAIN, KEY, "is not signed"),
        (SIGNED, OTHER, "signed with another key"),
        (SIGNED[:-1] + bytes([SIGNED[-1] ^ 1]), KEY, "the signature is wrong"),
        (golden("nmse") + SIGNED[-104:], KEY, "the signature is wrong"),
    ],
    ids=["none", "another key", "altered", "of another file"],
)
def test_what_is_not_signed_by_the_key_is_refused(data: bytes, key: Any, message: str) -> None:
    with pytest.raises(ChecksumMismatch, match=message) as refusal:
        nola_codec.verify(data, key=public_pem(key))
    assert refusal.value.code == "signature"


@pytest.mark.parametrize("tail", [SIGNED[-104:-1], SIGNED[-104:] + b"\0", bytes(104), b"\0"], ids=len)
def test_other_bytes_behind_a_file_are_refused(tail: bytes) -> None:
    with pytest.raises(FormatError) as refusal:
        open_container(PLAIN + tail)
    assert refusal.value.code == "trailing"
    with pytest.raises(reference().Refused) as other:
        reference().decode(PLAIN + tail)
    assert other.value.args[0] == "trailing"


def test_a_cut_file_has_no_signature() -> None:
    with open_container(SIGNED) as container:
        assert container.rungs > 1
    from io import BytesIO

    out = BytesIO()
    nola_codec.truncate(SIGNED, out, rung=0)
    with pytest.raises(ChecksumMismatch, match="is not signed"):
        nola_codec.verify(out.getvalue(), key=public_pem(KEY))


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    for key in (b"no key", private_pem(curve), public_pem(KEY), tmp_path / "missing.pem"):
        with pytest.raises(NolaError) as refusal:
            nola_codec.sign(PLAIN, key)
        assert refusal.value.code == "key"
    for key in (b"no key", public_pem(curve), private_pem(KEY), tmp_path / "missing.pem"):
        with pytest.raises(NolaError) as refusal:
            nola_codec.verify(SIGNED, key=key)
        assert refusal.value.code == "key"


@pytest.mark.parametrize(
    ("key", "private", "public"),
    [
        (b"ssh-ed25519 AAAA me", "found a key of OpenSSH", "found a key of OpenSSH"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "found a key of OpenSSH", "found a key of OpenSSH"),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "found a key with a password", "found a key with a password"),
        (private_pem(KEY), "", "found a private key; `openssl pkey"),
        (public_pem(KEY), "found a public key; `openssl genpkey", ""),
        (b"text", "found something else", "found something else"),
    ],
)
def test_a_refusal_says_what_the_key_is_and_how_to_make_one(key: bytes, private: str, public: str) -> None:
    if private:
        with pytest.raises(NolaError, match=f"a private key of Ed25519 in PEM, without a password, {private}"):
            nola_codec.sign(PLAIN, key)
    if public:
        with pytest.raises(NolaError, match=f"a public key of Ed25519 in PEM, {public}"):
            nola_codec.verify(SIGNED, key=key)


def test_a_damaged_file_is_not_signed() -> None:
    with pytest.raises(ChecksumMismatch):
        nola_codec.sign(PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]), private_pem(KEY))
