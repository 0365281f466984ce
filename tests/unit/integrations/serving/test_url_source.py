"""Adapters under a URL: a server of files with ranges, and a store of fsspec."""

from __future__ import annotations

from pathlib import Path

import pytest
from range_server import RangeServer
from served_adapters import BASE_NAME, write_nola

from nola_codec.disk_cache import DiskCache
from nola_codec.errors import NolaError
from nola_codec.integrations.serving import AdapterCache

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("made")
    return {
        f"{name}.nola": write_nola(folder / f"{name}.nola", seed=seed).read_bytes() for seed, name in enumerate("ab")
    }


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))


def test_a_server_of_files(data: dict[str, bytes], tmp_path: Path) -> None:
    with RangeServer({"files/team/task.nola": data["a.nola"]}) as server:
        prefix = server.url("files")
        with AdapterCache([tmp_path, prefix], refresh_seconds=3600) as cache:
            first = cache.resolve("team/task", BASE_NAME)
            asked = len(server.requests)
            assert cache.resolve("team/task", BASE_NAME) == first
            assert len(server.requests) == asked
            with pytest.raises(NolaError) as caught:
                cache.resolve("absent")
            assert caught.value.code == "not-found"
        server.files["files/team/task.nola"] = data["b.nola"]
        with AdapterCache([prefix], refresh_seconds=0) as cache:
            second = cache.resolve("team/task")
            assert second.content_sha256 != first.content_sha256
            server.faults.extend(["403"] * 9)
            with pytest.raises(NolaError) as caught:
                cache.resolve("team/task")
            assert caught.value.code == "forbidden"


def test_a_store_of_fsspec(data: dict[str, bytes], tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe({f"/served/{name}": value for name, value in data.items()})
    with AdapterCache(["memory://served/"], cache=DiskCache(tmp_path / "own")) as cache:
        assert cache.resolve("a").content_sha256 != cache.resolve("b").content_sha256
    files.rm("/served", recursive=True)


@pytest.mark.parametrize("url", ["https://host/x?key=secret", "https://host/x#y", "zip://a::https://host/b.zip"])
def test_urls_that_no_name_can_follow(url: str) -> None:
    with pytest.raises(NolaError) as caught:
        AdapterCache([url])
    assert caught.value.code == "adapter-source"
    assert "secret" not in str(caught.value)
