"""`push` and `pull` as a user types them, against a stand-in of the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Account, HubServer, connect

from nola_codec.container.limits import Limits

with warnings.catch_warnings():
    pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, connect(server, tmp_path / "home", token="hf_mine"):
        server.accounts["hf_mine"] = Account("me")
        server.put("nobody/model", {"config.json": b"{}"})
        yield server


def test_push_and_pull(run: Callable[..., Any], encoded: Path, hub: HubServer, tmp_path: Path) -> None:
    shown = run("push", encoded, "me/lora", "--dry-run")
    assert (shown.status, list(hub.repositories)) == (0, ["nobody/model"])
    assert "would push" in shown.out
    assert "base_model: nobody/model" in shown.out
    pushed = run("push", encoded, "me/lora", "-q")
    assert pushed.status == 0
    assert f"pushed     {hub.endpoint}/me/lora (new, public)" in pushed.out
    assert "nola-codec pull me/lora:a.nola -o a.nola" in pushed.out
    assert run("push", encoded, "me/lora", "-q").out.startswith("unchanged")
    pulled = run("pull", "me/lora", "-o", tmp_path / "b.nola")
    assert (pulled.status, pulled.out) == (0, f"{tmp_path / 'b.nola'}\n")
    assert (tmp_path / "b.nola").read_bytes() == encoded.read_bytes()
    again = run("pull", "me/lora", "-o", tmp_path / "b.nola")
    assert again.status == 2
    assert "-f overwrites it" in again.err
    found = run("pull", "me/lora", "--json").json
    assert (found["file"], found["bytes"]) == ("a.nola", encoded.stat().st_size)
    report = run("push", encoded, "me/lora", "--no-card", "--json").json
    assert (report["changed"], [file["path"] for file in report["files"]]) == (False, ["a.nola"])


def test_a_file_is_held_against_the_limits_of_decoding(
    run: Callable[..., Any], encoded: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nola_codec.api.inspecting.INSPECT_LIMITS", Limits(records=1))
    assert run("inspect", encoded).status == 3
    assert run("push", encoded, "me/lora", "-q").status == 0
    assert run("pull", "me/lora", "-o", tmp_path / "b.nola").status == 0
    monkeypatch.setenv("NOLA_LIMITS", "records=1")
    refused = run("pull", "me/lora", "-o", tmp_path / "c.nola")
    assert (refused.status, refused.err.split()[-1]) == (3, "[limit]")


def test_a_pulled_version_names_the_one_that_it_needs(
    run: Callable[..., Any], adapter: Path, encoded: Path, hub: HubServer, tmp_path: Path
) -> None:
    from nola_codec.integrations.hub import from_hub

    assert run("encode", adapter, "-o", tmp_path / "b.nola", "--reference", encoded, "--nmse", "0.01").status == 0
    assert run("push", tmp_path / "b.nola", "me/versions", "-q").status == 0
    pulled = run("pull", "me/versions", "-o", tmp_path / "c.nola")
    assert pulled.status == 0
    assert "note: the file can only be decoded with its reference, 'a.nola', SHA-256" in pulled.err
    assert "`nola-codec pull me/versions:a.nola` puts it beside the file" in pulled.err
    with from_hub("me/versions", device="numpy", references=encoded) as opened:
        assert len(opened.factors(opened.names()[0])) == 2


def test_refusals_say_what_to_do(run: Callable[..., Any], adapter: Path, encoded: Path, hub: HubServer) -> None:
    refused = run("push", adapter, "me/lora")
    assert refused.status == 3
    assert f"nola-codec encode {adapter} -o adapter.nola" in refused.err
    assert run("push", encoded, "lora").status == 2
    alone = run("push", encoded)
    assert (alone.status, f"nola-codec push {encoded} owner/name" in alone.err) == (2, True)
    unseen = run("pull", "me/lora", "--offline")
    assert (unseen.status, "[offline]" in unseen.err, hub.requests) == (3, True, [])
    assert run("push", encoded, "me/lora", "--license", "My Licence!").status == 2
    missing = run("pull", "me/lora")
    assert missing.status == 3
    assert missing.err.startswith(f"nola-codec: me/lora: no such repository on {hub.endpoint}")
    assert missing.err.count("\n") == 1


def test_the_environment_names_the_hub(encoded: Path, hub: HubServer) -> None:
    """A process of its own, since `huggingface_hub` reads HF_ENDPOINT when it is imported."""
    hub.put("me/lora", {"a.nola": encoded.read_bytes()})
    command = [sys.executable, "-m", "nola_codec", "pull", "me/lora"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == encoded.read_bytes()
    off = environment | {"HF_HUB_OFFLINE": "1"}
    cached = subprocess.run(command, env=off, capture_output=True, text=True, timeout=120)
    assert (cached.returncode, cached.stdout) == (0, done.stdout), cached.stderr
