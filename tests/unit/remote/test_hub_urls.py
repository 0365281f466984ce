"""`hf://` through the real huggingface_hub, against the stand-in of the Hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Account, HubServer, connect

import nola_codec
from nola_codec.errors import OutputExists, RemoteError
from nola_codec.remote import fetch


@pytest.fixture
def hub(tmp_path: Path, adapter: dict[str, bytes], encoded: bytes) -> Iterator[HubServer]:
    with HubServer() as server:
        server.accounts["hf_secret"] = Account("me")
        extra = {"optimizer.pt": b"state", "README.md": b"# lora", "sub/task.nola": encoded}
        server.put("me/lora", {**adapter, **extra})
        server.put("me/hidden", {"task.nola": encoded})
        server.repositories["me/hidden"].is_private = True
        with connect(server, tmp_path / "hf"):
            yield server


def test_a_file_is_read_by_ranges(hub: HubServer, encoded: bytes) -> None:
    with nola_codec.load("hf://me/lora/sub/task.nola", device="numpy") as task:
        time.sleep(0.1)  # the server notes a request after it has answered it
        # Once in a process, huggingface_hub asks for something of its own. Large files lie on another host.
        asked = [request.path for request in hub.requests if not request.path.startswith("/api/agent-")]
        assert (len(asked), asked[0]) == (2, "/me/lora/resolve/main/sub/task.nola"), hub.requests
        task.factors(task.names()[-1])
    assert sum(request.sent for request in hub.requests) < len(encoded) + 1000
    assert nola_codec.inspect(f"{hub.endpoint}/me/lora/blob/main/sub/task.nola").bytes == len(encoded)


def test_reading_stays_with_one_commit(hub: HubServer, encoded: bytes) -> None:
    with nola_codec.load("hf://me/lora/sub/task.nola", device="numpy") as task:
        hub.put("me/lora", {"sub/task.nola": bytes(len(encoded))})
        task.verify()


def test_an_adapter_comes_without_what_is_not_needed(hub: HubServer, adapter: dict[str, bytes]) -> None:
    for url in ("hf://me/lora", f"{hub.endpoint}/me/lora", f"{hub.endpoint}/me/lora/tree/main"):
        assert {path.name: path.read_bytes() for path in fetch(url).iterdir() if path.is_file()} == adapter
    weights = fetch("hf://me/lora/adapter_model.safetensors")
    assert (weights.parent / "adapter_config.json").read_bytes() == adapter["adapter_config.json"]
    assert nola_codec.encode("hf://me/lora", nmse=0.9).scale_origin == "config"


def test_nothing_is_printed(hub: HubServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    nola_codec.decode("hf://me/hidden/task.nola", "hf://me/hidden/decoded")
    fetch("hf://me/lora")
    assert capfd.readouterr() == ("", "")


def test_offline_takes_what_the_cache_has(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = fetch("hf://me/lora")
    for name in ("HF_HUB_OFFLINE", "NOLA_CODEC_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            hub.requests.clear()
            assert fetch("hf://me/lora") == copy
            with pytest.raises(RemoteError, match=name) as caught:
                fetch("hf://me/hidden")
            assert caught.value.code == "offline"
            with pytest.raises(RemoteError, match=name):
                nola_codec.inspect("hf://me/lora/sub/task.nola")
            assert hub.requests == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("hf://me/nothing/task.nola", "not-found"),
        ("hf://me/lora/none.nola", "not-found"),
        ("hf://me/lora@v9/sub/task.nola", "not-found"),
        ("hf://me/hidden/task.nola", "not-found"),
    ],
)
def test_refusals(hub: HubServer, url: str, code: str) -> None:
    for use in (nola_codec.inspect, fetch):
        with pytest.raises(RemoteError, match=url) as caught:
            use(url)
        assert caught.value.code == code


def test_a_token_opens_what_is_private(hub: HubServer, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert nola_codec.inspect("hf://me/hidden/task.nola").bytes == len(encoded)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RemoteError, match="HF_TOKEN") as caught:
        nola_codec.inspect("hf://me/hidden/task.nola")
    assert "hf_wrong" not in str(caught.value)


def test_a_repository_with_one_file_is_that_file(hub: HubServer, encoded: bytes) -> None:
    hub.put("me/only", {"task.nola": encoded, "README.md": b"card"})
    assert nola_codec.inspect("hf://me/only").bytes == len(encoded)
    assert fetch("hf://me/only").read_bytes() == encoded
    hub.put("me/only", {"b.nola": encoded})
    for use in (nola_codec.inspect, fetch):
        with pytest.raises(RemoteError, match=r"b\.nola, task\.nola"):
            use("hf://me/only")


def test_writing_is_one_commit(hub: HubServer, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    nola_codec.decode("hf://me/hidden/task.nola", "hf://me/hidden/decoded")
    assert {"decoded/adapter_model.safetensors", "decoded/adapter_config.json"} <= set(hub.files("me/hidden"))
    assert hub.titles("me/hidden") == ["Upload decoded with nola-codec", "Upload", "initial commit"]
    with pytest.raises(OutputExists):
        nola_codec.decode("hf://me/hidden/task.nola", "hf://me/hidden/decoded")
    with pytest.raises(RemoteError, match="push"):
        nola_codec.truncate(encoded, "hf://me/hidden")


def test_a_damaged_download_is_noticed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    big = bytes(11 << 20)
    hub.put("me/big", {"adapter_model.safetensors": big})
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def damage(*arguments: object, **options: object) -> str:
        home: str = real(*arguments, **options)
        blob = (Path(home) / "adapter_model.safetensors").resolve()
        blob.write_bytes(b"x" + big[1:])
        return home

    monkeypatch.setattr(huggingface_hub, "snapshot_download", damage)
    with pytest.raises(RemoteError) as caught:
        fetch("hf://me/big")
    assert caught.value.code == "bad-download"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", real)
    assert (fetch("hf://me/big") / "adapter_model.safetensors").read_bytes() == big


def test_progress_counts_bytes(hub: HubServer, adapter: dict[str, bytes]) -> None:
    seen: list[tuple[str, int, int]] = []
    fetch("hf://me/lora", progress=lambda *step: seen.append(step))
    total = sum(map(len, adapter.values())) // 1000
    assert seen[-1] == ("download, KB", total, total)
