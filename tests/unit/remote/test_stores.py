"""Stores of fsspec: memory, archives, and S3 through moto's server."""

from __future__ import annotations

import io
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nola_codec
from nola_codec.errors import MissingPackage, OutputExists, RemoteError
from nola_codec.remote import fetch, open_url, publish, published_bytes

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, str]]]:
    """A bucket of moto; the value lists the method and the path of each request that is answered."""
    from fsspec import get_filesystem_class
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    requests: list[tuple[str, str]] = []
    inner = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, object], start: object) -> object:
        requests.append((str(environ["REQUEST_METHOD"]), str(environ["PATH_INFO"])))
        return inner(environ, start)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    import threading

    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
        kind = get_filesystem_class("s3")
        kind.clear_instance_cache()
        kind().mkdir("bucket")
        yield requests
        kind.clear_instance_cache()
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory() -> Iterator[object]:
    import fsspec

    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def test_s3_reads_by_ranges(s3: list[tuple[str, str]], encoded: bytes) -> None:
    with publish("s3://bucket/task.nola") as path:
        path.write_bytes(encoded)
    s3.clear()
    with nola_codec.load("s3://bucket/task.nola", device="numpy") as task:
        assert [method for method, _ in s3] == ["HEAD", "GET"]
        task.factors(task.names()[-1])
        assert len(s3) <= 3
    assert nola_codec.verify("s3://bucket/task.nola")["bytes"] == len(encoded)


def test_s3_tells_a_change(s3: list[tuple[str, str]], encoded: bytes) -> None:
    import fsspec

    store = fsspec.filesystem("s3")
    store.pipe_file("bucket/changing.nola", encoded)
    with open_url("s3://bucket/changing.nola") as stream:
        stream.read(10)
        store.pipe_file("bucket/changing.nola", bytes(len(encoded)))
        stream.seek(100_000)
        with pytest.raises(RemoteError) as caught:
            stream.read(10)
    assert caught.value.code == "remote-changed"


def test_s3_listings_are_not_old(s3: list[tuple[str, str]], adapter: dict[str, bytes]) -> None:
    import fsspec

    other = fsspec.filesystem("s3", skip_instance_cache=True)
    for name, data in adapter.items():
        other.pipe_file(f"bucket/listed/{name}", data)
    first = fetch("s3://bucket/listed")
    other.pipe_file("bucket/listed/adapter_config.json", b'{"peft_type": "LORA"}')
    second = fetch("s3://bucket/listed")
    assert second != first
    assert (second / "adapter_config.json").read_bytes() == b'{"peft_type": "LORA"}'


def test_s3_directories_in_and_out(s3: list[tuple[str, str]], adapter: dict[str, bytes], adapter_dir: Path) -> None:
    report = nola_codec.encode(str(adapter_dir), "s3://bucket/out/task.nola", nmse=0.5)
    assert published_bytes("s3://bucket/out/task.nola") == report.bytes
    assert nola_codec.decode("s3://bucket/out/task.nola", "s3://bucket/again") == "s3://bucket/again"
    names = [path.name for path in fetch("s3://bucket/again").iterdir()]
    assert sorted(names) == sorted(adapter)
    assert nola_codec.compare("s3://bucket/again", "s3://bucket/out/task.nola").nmse == 0
    with pytest.raises(OutputExists, match="s3://bucket/again: already exists"):
        nola_codec.decode("s3://bucket/out/task.nola", "s3://bucket/again")
    nola_codec.decode("s3://bucket/out/task.nola", "s3://bucket/again", overwrite=True)


def test_s3_errors(s3: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://bucket/none.nola", "s3://no-such-bucket/none.nola"):
        with pytest.raises(RemoteError) as caught:
            nola_codec.inspect(url)
        assert caught.value.code == "not-found"
        with pytest.raises(RemoteError) as caught:
            fetch(url)
        assert caught.value.code == "not-found"
    from fsspec import get_filesystem_class

    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    get_filesystem_class("s3").clear_instance_cache()
    try:
        with pytest.raises(RemoteError) as caught:
            nola_codec.inspect("s3://bucket/task.nola")
        assert caught.value.code == "forbidden"
    finally:
        get_filesystem_class("s3").clear_instance_cache()


def test_memory(memory: object, adapter_dir: Path, adapter: dict[str, bytes]) -> None:
    with publish("memory://lora/my_lora") as path:
        path.mkdir()
        for name, data in adapter.items():
            (path / name).write_bytes(data)
    nola_codec.encode("memory://lora/my_lora", "memory://lora/task.nola", nmse=0.5)
    assert nola_codec.inspect("memory://lora/task.nola").scalings == (2.0,)
    assert nola_codec.compare(str(adapter_dir), "memory://lora/task.nola").nmse <= 0.5


def test_a_file_in_an_archive_in_a_store(memory: object, encoded: bytes) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in/task.nola", encoded)
    memory.pipe_file("/all.zip", packed.getvalue())  # type: ignore[attr-defined]
    url = "zip://in/task.nola::memory://all.zip"
    assert nola_codec.verify(url)["bytes"] == len(encoded)
    assert fetch(url).read_bytes() == encoded
    with pytest.raises(RemoteError) as caught:
        nola_codec.truncate(encoded, url)
    assert caught.value.code == "read-only-url"


def test_an_upload_that_fails_leaves_nothing(memory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        with publish("memory://half/task.nola") as path:
            path.write_bytes(b"half")
            raise RuntimeError("the work failed")

    with pytest.raises(RuntimeError):
        fail()
    assert not memory.exists("/half/task.nola")  # type: ignore[attr-defined]
    put = type(memory).put_file

    def put_once(self: object, source: str, place: str, **options: object) -> None:
        if place.endswith("config.json"):
            raise OSError(28, "No space left on device")
        put(self, source, place, **options)

    monkeypatch.setattr(type(memory), "put_file", put_once)

    def write() -> None:
        with publish("memory://half/model") as path:
            path.mkdir()
            (path / "config.json").write_bytes(b"{}")
            (path / "model.safetensors").write_bytes(b"weights")

    with pytest.raises(RemoteError):
        write()
    assert memory.find("/half") == []  # type: ignore[attr-defined]


def test_new_weights_are_never_beside_an_old_configuration(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, weights: bytes, overwrite: bool) -> None:
        with publish("memory://swap/lora", overwrite=overwrite) as path:
            path.mkdir()
            (path / "adapter_config.json").write_bytes(name.encode())
            (path / "adapter_model.safetensors").write_bytes(weights)

    write("old", b"old", False)
    put = type(memory).put_file

    def look_and_put(self: object, source: str, place: str, **options: object) -> None:
        seen.append({path.rpartition("/")[2]: bytes(memory.cat_file(path)) for path in memory.find("/swap/lora")})
        put(self, source, place, **options)

    seen: list[dict[str, bytes]] = []
    monkeypatch.setattr(type(memory), "put_file", look_and_put)
    write("new", b"new", True)
    assert seen == [{"adapter_model.safetensors": b"old"}, {"adapter_model.safetensors": b"new"}]
    assert memory.cat_file("/swap/lora/adapter_config.json") == b"new"


def test_a_store_that_shows_half_files_gets_the_name_last(tmp_path: Path) -> None:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class Plain(LocalFileSystem):  # type: ignore[misc]
        protocol = "plain"

        def put_file(self, source: str, place: str, **options: object) -> None:
            super().put_file(source, place, **options)
            seen.append(place)
            if fails:
                raise OSError(5, "Input/output error")

    seen: list[str] = []
    fails = False
    fsspec.register_implementation("plain", Plain, clobber=True)

    def write(data: bytes) -> None:
        with publish(f"plain://{tmp_path}/task.nola", overwrite=fails) as path:
            path.write_bytes(data)

    write(b"whole")
    assert seen[0].endswith(".tmp")
    fails = True
    with pytest.raises(RemoteError):
        write(b"other")
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()} == {"task.nola": b"whole"}


def test_what_cannot_be_written(encoded: bytes) -> None:
    for url in ("https://example.org/a.nola", "http://localhost/a.nola"):
        with pytest.raises(RemoteError, match="can only be read") as caught:
            nola_codec.truncate(encoded, url)
        assert caught.value.code == "read-only-url"


def test_a_chain_to_a_server_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for use in (nola_codec.inspect, fetch):
        with pytest.raises(RemoteError, match="nobody listens") as caught:
            use(f"zip://a.nola::http://me:pw@127.0.0.1:{port}/b.zip?sig=abc")
        assert caught.value.code == "no-connection"
        assert not any(secret in str(caught.value) for secret in ("pw", "abc"))


def test_unknown_and_missing_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match="no protocol 'nonsense'") as caught:
        nola_codec.inspect("nonsense://a/b")
    assert caught.value.code == "bad-url"
    with pytest.raises(MissingPackage, match=r"gs:// needs another package.*gcsfs"):
        nola_codec.inspect("gs://a/b.nola")


def test_two_checkpoints_in_a_store_are_not_guessed(memory: object, adapter: dict[str, bytes]) -> None:
    for step in (1, 2):
        for name, data in adapter.items():
            memory.pipe_file(f"/run/checkpoint-{step}/{name}", data)  # type: ignore[attr-defined]
    with pytest.raises(RemoteError, match="checkpoint-1, checkpoint-2"):
        nola_codec.encode("memory://run", nmse=0.5)
    assert nola_codec.encode("memory://run/checkpoint-2", nmse=0.5).bytes


def test_names_in_a_store_stay_in_the_copy() -> None:
    from nola_codec.remote.listing import is_plain

    assert is_plain("a/b.json")
    for name in ("../x", "/etc/passwd", "a//b", "a/./b", "C:\\x", "a\\b", "a\0", "", "a" * 2000):
        assert not is_plain(name)
