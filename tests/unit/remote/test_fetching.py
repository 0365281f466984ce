"""Copies of adapters and models in the disk cache: once, resumed, checked, offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from range_server import RangeServer

import nola_codec
from nola_codec.disk_cache import DiskCache
from nola_codec.errors import NolaError, RemoteError
from nola_codec.remote import fetch, fetching, transfer


def test_an_adapters_file_comes_with_its_configuration(server: RangeServer, adapter_dir: Path) -> None:
    url = server.url("my_lora/adapter_model.safetensors")
    data, report = nola_codec.encode_bytes(url, nmse=0.5)
    assert (report.scalings, report.scale_origin) == ((2.0,), "config")
    assert data == nola_codec.encode_bytes(str(adapter_dir), nmse=0.5)[0]


def test_a_copy_is_made_once(server: RangeServer, adapter: dict[str, bytes]) -> None:
    url = server.url("my_lora/adapter_model.safetensors")
    first = fetch(url)
    assert first.name == "adapter_model.safetensors"
    assert {p.name: p.read_bytes() for p in first.parent.iterdir()} == adapter
    server.requests.clear()
    server.sent = 0
    assert fetch(url) == first
    assert server.sent < 100
    server.files["my_lora/adapter_config.json"] = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 32}'
    again = fetch(url)
    assert again != first
    assert json.loads((again.parent / "adapter_config.json").read_text())["lora_alpha"] == 32


def test_a_copy_stays_while_its_process_lives(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may bring the cache down to its limit at any time."""
    monkeypatch.setattr(fetching, "_MOST_HELD", 1)
    copy = fetch(server.url("task.nola"))
    other = DiskCache(max_bytes=0)
    assert other.evict() == 0
    monkeypatch.setenv("NOLA_CODEC_OFFLINE", "1")
    assert fetch(server.url("task.nola")) == copy
    assert other.evict() == 0
    monkeypatch.delenv("NOLA_CODEC_OFFLINE")
    later = fetch(server.url("my_lora/adapter_model.safetensors"))
    assert other.evict() > 0
    assert later.exists()
    assert not copy.exists()


def test_a_directory_is_found_by_the_usual_names(server: RangeServer, adapter: dict[str, bytes]) -> None:
    for url in (server.url("my_lora"), server.url("my_lora/")):
        copy = fetch(url)
        assert copy.name == "my_lora"
        assert {p.name: p.read_bytes() for p in copy.iterdir()} == adapter
    with pytest.raises(RemoteError, match="name the file itself") as caught:
        fetch(server.url("other"))
    assert caught.value.code == "not-found"


class _ListingServer(SimpleHTTPRequestHandler):
    """A server as `python -m http.server`: it redirects a directory to the same path with a slash, and lists it."""

    lists = True

    def log_message(self, format: str, *values: object) -> None:
        pass

    def list_directory(self, path: Any) -> Any:
        return super().list_directory(path) if self.lists else self.send_error(403)


@pytest.mark.parametrize("lists", [True, False], ids=["a listing", "forbidden"])
def test_a_directory_that_is_redirected_is_found(
    lists: bool, adapter: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ListingServer, "lists", lists)
    (tmp_path / "my_lora").mkdir()
    for name, data in adapter.items():
        (tmp_path / "my_lora" / name).write_bytes(data)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_ListingServer, directory=str(tmp_path))) as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        try:
            url = f"http://127.0.0.1:{made.server_port}/my_lora"
            assert {p.name: p.read_bytes() for p in fetch(url).iterdir()} == adapter
            with pytest.raises(RemoteError, match="a directory, not a file") as caught:
                nola_codec.inspect(url)
            assert caught.value.code == "not-found"
        finally:
            made.shutdown()


def test_a_model_in_shards_is_found_by_its_index(server: RangeServer) -> None:
    shards = {f"model/model-0000{n}-of-00002.safetensors": bytes([n]) * n for n in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    server.files |= {**shards, "model/model.safetensors.index.json": json.dumps(index).encode()}
    copy = fetch(server.url("model"))
    assert {f"model/{p.name}": p.read_bytes() for p in copy.iterdir() if p.suffix == ".safetensors"} == shards
    for hostile in ('{"weight_map": {"a": "../../x.safetensors"}}', "[]", "{", '{"weight_map": 3}'):
        server.files["model/model.safetensors.index.json"] = hostile.encode()
        with pytest.raises(RemoteError) as caught:
            fetch(server.url("model"))
        assert caught.value.code == "bad-answer"


def test_a_download_goes_on_after_a_kill(server: RangeServer, tmp_path: Path) -> None:
    data = os.urandom(6 << 20)
    server.files["big.bin"] = data
    program = """
        import os, sys, nola_codec.remote.transfer as t
        from nola_codec.remote import fetch
        real = t.stream_range
        def slow(file, start, stop):
            count = start
            for piece in real(file, start, stop):
                yield piece
                count += len(piece)
                if count > 3 << 20:
                    print("half", flush=True)
                    sys.stdin.read()
        t.stream_range = slow
        fetch(sys.argv[1])
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), server.url("big.bin")],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    server.sent = 0
    server.requests.clear()
    seen: list[tuple[int, int]] = []
    copy = fetch(server.url("big.bin"), progress=lambda stage, done, total: seen.append((done, total)))
    assert copy.read_bytes() == data
    resumed = next(int(asked[6:-1]) for _, asked, _ in server.requests if asked.endswith("-"))
    assert 2 << 20 < resumed < 6 << 20
    assert seen[0][0] >= 2000
    assert seen[-1] == (len(data) // 1000, len(data) // 1000)
    assert [entry.kind for entry in DiskCache().entries()] == ["remote"]


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
def test_failures_of_a_download_are_mended(server: RangeServer, adapter: dict[str, bytes], fault: str) -> None:
    server.faults = ["", "", "", fault, fault]
    assert fetch(server.url("my_lora/adapter_model.safetensors")).read_bytes() == adapter["adapter_model.safetensors"]


def test_a_file_that_changes_before_its_download(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = transfer.download

    def change(*arguments: object) -> None:
        server.files["my_lora/adapter_model.safetensors"] = b"other"
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fetching, "download", change)
    with pytest.raises(RemoteError) as caught:
        fetch(server.url("my_lora/adapter_model.safetensors"))
    assert caught.value.code == "remote-changed"
    assert DiskCache().entries() == []


def test_a_server_that_tells_nothing_is_asked_each_time(server: RangeServer, encoded: bytes) -> None:
    server.has_tags = server.has_ranges = server.has_lengths = False
    assert fetch(server.url("task.nola")).read_bytes() == encoded
    server.files["task.nola"] = b"new"
    assert fetch(server.url("task.nola")).read_bytes() == b"new"


def test_offline(server: RangeServer, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = fetch(server.url("task.nola"))
    monkeypatch.setenv("NOLA_CODEC_OFFLINE", "1")
    server.requests.clear()
    assert fetch(server.url("task.nola")) == copy
    assert nola_codec.inspect(server.url("task.nola")).bytes == len(encoded)
    for use in (fetch, nola_codec.inspect):
        with pytest.raises(RemoteError, match="NOLA_CODEC_OFFLINE") as caught:
            use(server.url("my_lora/adapter_model.safetensors"))
        assert caught.value.code == "offline"
    assert server.requests == []


def test_errors_name_the_url_and_not_the_copy(server: RangeServer, tmp_path: Path) -> None:
    server.files["my_lora/adapter_model.safetensors"] = b"\x00" * 100
    with pytest.raises(NolaError) as caught:
        nola_codec.encode(server.url("my_lora") + "/", tmp_path / "x.nola", size=1000)
    assert str(caught.value).startswith(server.url("my_lora/"))
    assert str(tmp_path) not in str(caught.value)


def test_a_disk_that_is_too_small(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SPARE", 1 << 60)
    with pytest.raises(RemoteError) as caught:
        fetch(server.url("task.nola"))
    assert caught.value.code == "no-space"


def test_a_local_url_is_its_path(adapter_dir: Path) -> None:
    assert fetch(adapter_dir.as_uri()) == adapter_dir


def test_whole_commands_on_urls(server: RangeServer, tmp_path: Path) -> None:
    url = server.url("small.nola")
    server.files["small.nola"], _ = nola_codec.encode_bytes(server.url("my_lora/"), nmse=0.5)
    assert nola_codec.compare(url, server.files["small.nola"]).nmse == 0
    out = nola_codec.decode(url, tmp_path / "decoded")
    assert nola_codec.compare(out, url).nmse == 0
    joined = nola_codec.merge_adapters([(url, 0.5), (server.url("my_lora/"), 0.5)], tmp_path / "joined")
    assert joined.modules == 2
    assert len(nola_codec.sweep(server.url("my_lora/"), nmse=[0.9]).points) == 1
