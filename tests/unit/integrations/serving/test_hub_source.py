"""Adapters of repositories, through the real `huggingface_hub` and a stand-in of the Hub."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hub_server import Account, HubServer, connect
from served_adapters import BASE_NAME, write_nola

from nola_codec.disk_cache import DiskCache
from nola_codec.errors import NolaError
from nola_codec.integrations.serving import AdapterCache

with warnings.catch_warnings():
    huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.mark.filterwarnings("ignore")  # of huggingface_hub
def test_repositories_are_a_source(tmp_path: Path) -> None:
    files = [write_nola(tmp_path / f"{name}.nola", seed=seed) for seed, name in enumerate(("one", "two"))]

    def resolve(source: str, name: str, **options: float) -> str:
        with AdapterCache([source], cache=DiskCache(tmp_path / "cache"), **options) as cache:  # type: ignore[arg-type]
            return cache.resolve(name, BASE_NAME).content_sha256

    with HubServer() as hub, connect(hub, tmp_path / "home", token="hf_mine"):
        hub.accounts["hf_mine"] = Account("me")
        api = huggingface_hub.HfApi(endpoint=hub.endpoint, token="hf_mine")
        for repo, held in (("me/single", files[:1]), ("me/both", files)):
            api.create_repo(repo)
            for file in held:
                api.upload_file(path_or_fileobj=str(file), path_in_repo=file.name, repo_id=repo)
        first = resolve("hf://", "me/single")
        assert resolve("hf://me", "single") == resolve("hf://me/both", "one") == resolve("hf://me", "both/one") == first
        assert resolve("hf://me/both", "two") != first
        for source, name, code in (
            ("hf://", "single", "not-found"),
            ("hf://me", "absent", "not-found"),
            ("hf://me/both", "three", "not-found"),
            ("hf://me", "both", "which-file"),
            ("hf://me", "../me/single", "adapter-name"),
        ):
            with pytest.raises(NolaError) as caught:
                resolve(source, name)
            assert caught.value.code == code
        with AdapterCache(["hf://me"], cache=DiskCache(tmp_path / "cache")) as cache:
            cache.resolve("single")
            asked = len(hub.requests)
            cache.resolve("single")
            assert len(hub.requests) == asked  # within `refresh_seconds` the Hub is not asked again
