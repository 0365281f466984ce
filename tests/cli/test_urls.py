"""The commands on URLs, as a newcomer types them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from range_server import RangeServer

import nola_codec
from nola_codec.remote import transfer

Run = Callable[..., Any]


@pytest.fixture
def server(adapter: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    files = {f"my_lora/{path.name}": path.read_bytes() for path in adapter.iterdir()}
    with RangeServer({"task.nola": encoded.read_bytes(), **files}) as running:
        yield running


@pytest.fixture
def memory() -> Iterator[Any]:
    import fsspec

    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def test_from_a_server_into_a_store_and_back(run: Run, server: RangeServer, memory: Any, tmp_path: Path) -> None:
    out = "memory://tasks/task.nola"
    done = run("encode", server.url("my_lora/"), "-o", out, "--nmse", 0.5)
    assert done.status == 0, done.err
    assert f"wrote        {out}\n" in done.out
    assert "from its configuration" in done.out
    again = run("encode", server.url("my_lora/"), "-o", out, "--nmse", 0.5)
    assert (again.status, again.err) == (2, f"nola-codec: {out}: already exists; -f overwrites it\n")
    assert run("verify", out).out.startswith(f"good  {out}")
    shown = run("decode", out, "-o", "memory://tasks/my_lora", "--json")
    assert shown.json["output"] == "memory://tasks/my_lora"
    assert shown.json["bytes"] == memory.du("/tasks/my_lora")
    assert run("compare", out, "memory://tasks/my_lora").status == 0
    both = run("merge", f"{out}:0.5", f"{server.url('my_lora/')}:0.25", "-o", "memory://tasks/both")
    assert both.out.startswith("wrote  memory://tasks/both")
    assert nola_codec.read_adapter("memory://tasks/both").modules[0].rank == 8


def test_secrets_are_not_printed(run: Run, server: RangeServer, tmp_path: Path) -> None:
    server.password = "me:pw123"
    url = server.url("task.nola", "me:pw123") + "?sig=abc456"
    done = [run("inspect", url), run("verify", url), run("decode", url, "-o", tmp_path / "lora"),
            run("inspect", url.replace("task", "none")), run("encode", url, "-n")]  # fmt: skip
    assert [each.status for each in done] == [0, 0, 0, 3, 3]
    for each in done:
        assert "pw123" not in each.out + each.err
        assert "abc456" not in each.out + each.err
    assert "no such file [not-found]" in done[3].err


def test_a_model_given_as_an_adapter(run: Run, server: RangeServer, tmp_path: Path) -> None:
    server.files |= {"model/config.json": b"{}", "model/model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}
    done = run("encode", server.url("model/"), "-o", tmp_path / "x.nola", "--base", server.url("model/"))
    assert done.status == 2
    assert f"nola-codec encode-delta {server.url('model/')} --base {server.url('model/')}" in done.err


def test_a_command_says_which_place_is_read_only(run: Run, encoded: Path) -> None:
    done = run("decode", encoded, "-o", "https://example.org/lora")
    assert done.status == 3
    assert "can only be read" in done.err


def test_a_report_of_a_url_names_the_url(run: Run, server: RangeServer, memory: Any, tmp_path: Path) -> None:
    url, out = server.url("task.nola"), "memory://pages/report.html"
    done = run("report", url, "--against", server.url("my_lora/"), "-o", out, "--json")
    assert done.status == 0, done.err
    assert done.json["facts"] == run("inspect", url, "--json").json
    assert done.json["output"] == out
    text = memory.cat("/pages/report.html").decode()
    assert "<h1>task.nola</h1>" in text
    assert str(tmp_path) not in text
