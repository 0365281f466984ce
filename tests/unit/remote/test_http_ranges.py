"""`.nola` files behind HTTP: few requests, and what goes wrong with servers."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from range_server import RangeServer
from safetensors.numpy import save_file

import nola_codec
from nola_codec import remote
from nola_codec.container import reader
from nola_codec.errors import NolaError, RemoteError
from nola_codec.remote import http_files, open_url, range_file, transfer


def test_opening_takes_one_request_and_a_tensor_one_more(server: RangeServer, encoded: bytes) -> None:
    with nola_codec.load(server.url("task.nola"), device="numpy") as task:
        assert len(server.requests) == 1
        assert server.sent <= 16 << 10
        name = task.names()[-1]
        pair = task.factors(name)
        assert len(server.requests) <= 2
        with nola_codec.load(encoded, device="numpy") as local:
            for one, other in zip(pair, local.factors(name), strict=True):
                assert np.array_equal(one, other)


def test_each_byte_is_asked_for_once(server: RangeServer, encoded: bytes) -> None:
    facts = nola_codec.verify(server.url("task.nola"))
    assert facts == nola_codec.verify(encoded)
    assert server.sent == len(encoded)
    assert len(server.requests) <= 3


def test_inspect_names_the_url_without_secrets(server: RangeServer, encoded: bytes) -> None:
    server.password = "me:pw"
    facts = nola_codec.inspect(server.url("task.nola", "me:pw") + "?sig=abc")
    assert facts.name == server.url("task.nola") + "?..."
    assert facts.bytes == len(encoded)


def test_reads_in_any_order(server: RangeServer, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_file, "FIRST_READ", 1000)
    random = np.random.default_rng(0)
    with open_url(server.url("task.nola")) as stream:
        for _ in range(60):
            start, count = int(random.integers(0, len(encoded))), int(random.integers(0, 5000))
            stream.seek(start)
            assert stream.read(count) == encoded[start : start + count]
        assert stream.seek(-10, io.SEEK_END) == len(encoded) - 10
        assert stream.read() == encoded[-10:]
        stream.seek(0)
        assert stream.read() == encoded
    assert server.sent <= len(encoded)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut"])
def test_passing_failures_are_tried_again(server: RangeServer, encoded: bytes, fault: str) -> None:
    server.faults = [fault, fault]
    assert nola_codec.inspect(server.url("task.nola")).bytes == len(encoded)


def test_a_silent_server_is_asked_again(server: RangeServer, encoded: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "_TIMEOUT", (5, 0.25))
    server.faults = ["stall"]
    assert nola_codec.inspect(server.url("task.nola")).bytes == len(encoded)


def test_a_server_that_sends_byte_by_byte_is_given_up(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "_SLOW_SECONDS", 0.2)
    server.faults = ["drip"] * 5
    with pytest.raises(RemoteError, match="less than 500 bytes a second"):
        nola_codec.inspect(server.url("task.nola"))
    assert len(server.requests) == 1


def test_a_server_that_breaks_off_again_and_again_is_given_up(server: RangeServer) -> None:
    server.faults = ["cut"] * 50
    with pytest.raises(RemoteError) as caught:
        nola_codec.inspect(server.url("task.nola"))
    assert caught.value.code == "no-connection"
    assert len(server.requests) == 5


@pytest.mark.parametrize(("fault", "code"), [("503", "server-error"), ("reset", "no-connection")])
def test_lasting_failures_end(server: RangeServer, fault: str, code: str) -> None:
    server.faults = [fault] * 50
    with pytest.raises(RemoteError) as caught:
        nola_codec.inspect(server.url("task.nola"))
    assert caught.value.code == code
    assert len(server.requests) == 5


def test_a_cut_body_is_completed_and_not_begun_again(server: RangeServer, encoded: bytes) -> None:
    server.faults = ["cut"]
    with open_url(server.url("task.nola")) as stream:
        assert stream.read(60_000) == encoded[:60_000]
    assert server.requests[1][1].startswith("bytes=8192-")


@pytest.mark.parametrize("has_lengths", [True, False])
def test_a_server_without_ranges_is_read_whole_once(server: RangeServer, encoded: bytes, has_lengths: bool) -> None:
    server.has_ranges, server.has_lengths = False, has_lengths
    with nola_codec.load(server.url("task.nola"), device="numpy", verify=True) as task:
        task.state_dict()
    assert [status for _, _, status in server.requests] == [200]
    assert server.sent == len(encoded)


def test_a_server_without_ranges_that_breaks_off(server: RangeServer, encoded: bytes) -> None:
    server.has_ranges = False
    server.faults = ["cut"]
    assert nola_codec.verify(server.url("task.nola"))["bytes"] == len(encoded)


@pytest.mark.parametrize("has_tags", [True, False])
def test_a_file_that_changes_is_an_error(server: RangeServer, encoded: bytes, has_tags: bool) -> None:
    server.has_tags = has_tags
    with open_url(server.url("task.nola")) as stream:
        stream.read(10)
        server.files["task.nola"] = bytes(len(encoded) + (not has_tags))  # without a mark only another size tells
        stream.seek(90_000)
        with pytest.raises(RemoteError) as caught:
            stream.read(10)
    assert caught.value.code == "remote-changed"


def test_names_of_errors(server: RangeServer) -> None:
    with pytest.raises(RemoteError, match=r"http://127.0.0.1:\d+/none.nola\?\.\.\.: no such file$") as caught:
        nola_codec.load(server.url("none.nola", "me:pw") + "?token=abc")
    assert caught.value.code == "not-found"
    server.password = "me:pw"
    with pytest.raises(RemoteError) as caught:
        nola_codec.load(server.url("task.nola"))
    assert caught.value.code == "forbidden"
    server.password = None
    with pytest.raises(NolaError, match="encode") as refused:
        nola_codec.inspect(server.url("my_lora/adapter_model.safetensors"))
    assert refused.value.code == "not-nola"


def test_nobody_listens_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RemoteError, match="nobody listens") as caught:
        nola_codec.inspect(f"http://me:pw@127.0.0.1:{port}/a.nola?sig=abc")
    assert caught.value.code == "no-connection"
    text = "".join(map(str, (caught.value, caught.value.__cause__)))
    assert "pw" not in text
    assert "abc" not in text


def test_hostile_answers(server: RangeServer, encoded: bytes) -> None:
    hostile = {
        "Content-Range": "bytes 5-10/100", "content-range": "bytes 0-65535/*", "Content-Encoding": "gzip",
        "CONTENT-RANGE": "bytes 0-65535/99999999999999999999999", "conTent-range": "bytes 0-999999999/1000000000",
        "contEnt-range": "bytes 0-65535/1000",
    }  # fmt: skip
    for name, value in hostile.items():
        server.headers = {name.title() if name.lower() == "content-range" else name: value}
        with pytest.raises(RemoteError) as caught:
            nola_codec.inspect(server.url("task.nola"))
        assert caught.value.code == "bad-answer", value
    server.headers = {}
    server.redirects = {"round": server.url("round"), "away": "ftp://127.0.0.1/x", "there": server.url("task.nola")}
    for path in ("round", "away"):
        with pytest.raises(RemoteError) as caught:
            nola_codec.inspect(server.url(path))
        assert caught.value.code == "bad-answer"
    server.redirect_body = bytes(64 << 10)
    assert nola_codec.inspect(server.url("there")).bytes == len(encoded)
    server.redirect_body += b"x"
    with pytest.raises(RemoteError, match="a redirection with a body of more than 65536 bytes"):
        nola_codec.inspect(server.url("there"))


def test_a_disk_that_fills_up(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without ranges may send more than the disk of temporary files has room for."""
    server.has_ranges = server.has_lengths = False
    monkeypatch.setattr(range_file, "_IN_MEMORY", 1000)
    monkeypatch.setattr(transfer, "_LOOK_AGAIN", 50_000)
    free = [63 << 20, 999 << 20, 63 << 20]  # a download looks before it begins, too
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=free.pop(0)))
    for read in (nola_codec.inspect, remote.fetch):
        with pytest.raises(RemoteError, match="has 66 MB left, and the server sends more") as caught:
            read(server.url("task.nola"))
        assert caught.value.code == "no-space"
    assert not free


def test_an_endless_body_is_bounded(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "MAX_WHOLE", 50_000)
    server.has_ranges = server.has_lengths = False
    with pytest.raises(RemoteError, match="50000") as caught:
        nola_codec.inspect(server.url("task.nola"))
    assert caught.value.code == "bad-answer"


def test_an_empty_file(server: RangeServer) -> None:
    server.files["empty.nola"] = b""
    with pytest.raises(NolaError) as caught:
        nola_codec.inspect(server.url("empty.nola"))
    assert caught.value.code == "truncated"


def test_truncate_reads_only_the_rungs_that_it_keeps(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(range_file, "FIRST_READ", 256)
    monkeypatch.setattr(reader, "AHEAD", 256)
    random = np.random.default_rng(1)
    sides = {"lora_A": (8, 1024), "lora_B": (1024, 8)}
    tensors = {f"base_model.model.q.{side}.weight": random.standard_normal(s, np.float32) for side, s in sides.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')
    data, _ = nola_codec.encode_bytes(str(tmp_path), size=12_000, progressive=True, rungs=(1_000,))
    server.files["steps.nola"] = data
    out = io.BytesIO()
    report = nola_codec.truncate(server.url("steps.nola"), out, size=2_000)
    assert (report.rung, report.bytes) == (0, len(out.getvalue()))
    assert server.sent < len(data) // 2
