"""Sources behind URLs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import nola_codec
from nola_codec.errors import NolaError
from nola_codec.fleet.finding import find_sources
from nola_codec.fleet.manifest import read_manifest


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing."""


@pytest.fixture
def server(loras: Path) -> Iterator[str]:
    """The address of a server of `loras/`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(loras))) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_run_reads_urls_and_writes_no_secret(
    server: str, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    urls = [f"{server}/a/adapter_model.safetensors?token=secret", f"{server}/nothing.safetensors"]
    out = tmp_path / "files"
    report = nola_codec.encode_many(urls, out, encoding={"ratio": 2.0}, workers=1, manifest_format="jsonl")
    assert [(row.output, row.code) for row in report.failed] == [("nothing.nola", "not-found")]
    wanted, _ = nola_codec.encode_bytes(loras / "a", ratio=2.0)
    assert (out / "adapter_model.nola").read_bytes() == wanted
    assert read_manifest(out)["adapter_model.nola"].source == f"{server}/a/adapter_model.safetensors?..."
    assert not any(b"secret" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert str(tmp_path / "cache") not in report.failed[0].reason
    again = nola_codec.encode_many(urls[:1], out, encoding={"ratio": 2.0})
    assert (again.done, again.unchanged) == (0, 1)


def test_wildcards_list_a_store() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a", "b"):
        store.pipe(f"/fleet/{name}/adapter_model.safetensors", b"x")
    found = {source.name: source.path for source in find_sources(["memory://fleet/*"], "encode")}
    assert found == {"a": "memory:///fleet/a", "b": "memory:///fleet/b"}
    found = {source.name: source.path for source in find_sources(["memory://fleet/**/*.safetensors"], "encode")}
    assert found == {f"{name}/adapter_model": f"memory:///fleet/{name}/adapter_model.safetensors" for name in "ab"}


def test_wildcards_of_http_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NolaError, match="cannot be listed") as error:
        find_sources(["https://host/*.safetensors"], "encode")
    assert error.value.code == "not-listed"
    assert [s.name for s in find_sources(["https://[::1]/x/a.safetensors?x=*"], "encode")] == ["a"]


def test_a_destination_behind_a_url_is_refused(loras: Path) -> None:
    with pytest.raises(NolaError, match="on this machine") as error:
        nola_codec.encode_many(loras, "s3://bucket/files")
    assert error.value.code == "target-type"
