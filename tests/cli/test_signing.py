"""`sign`, and `verify --key`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from nola_forge import GOLDEN

Run = Callable[..., Any]


def test_sign_and_verify_with_a_key(run: Run, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)
    signed = tmp_path / "signed.nola"
    done = run("sign", GOLDEN / "nmse.nola", "--key", tmp_path / "mine.pem", "-o", signed)
    assert (done.status, done.out) == (0, f"wrote  {signed}\n")
    assert run("sign", GOLDEN / "nmse.nola", "--key", tmp_path / "mine.pem", "-o", signed).status == 2
    good = run("verify", signed, "--key", tmp_path / "mine.pub")
    assert good.status == 0
    assert "signed by" in good.out
    assert "(not checked" not in good.out
    assert "(not checked: give --key)" in run("verify", signed).out
    assert "signed by" in run("inspect", signed).out
    assert run("inspect", signed, "--json").json["signed_by"] in good.out
    assert run("inspect", GOLDEN / "nmse.nola", "--json").json["signed_by"] is None
    assert "signed by" not in run("inspect", GOLDEN / "nmse.nola").out
    bad = run("verify", signed, "--key", tmp_path / "other.pub")
    assert bad.status == 1
    assert "signed with another key" in bad.out
