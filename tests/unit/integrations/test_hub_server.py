"""The stand-in of the Hub does for the real `huggingface_hub` what the Hub does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Account, HubServer, connect

with warnings.catch_warnings():
    huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, errors

BINARY = bytes(range(256)) * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(page=2) as server, connect(server, tmp_path / "home", token="hf_mine"):
        server.accounts["hf_mine"] = Account("me")
        server.accounts["hf_reader"] = Account("me", can_write=False)
        yield server


def test_a_repository_is_made_filled_listed_and_read(hub: HubServer) -> None:
    api = HfApi(endpoint=hub.endpoint)
    assert api.whoami()["name"] == "me"
    assert api.create_repo("me/lora", private=True).repo_id == "me/lora"
    files = {"README.md": b"---\ntags: [nola]\n---\ntext", "a/task.nola": BINARY, "b.txt": b"text"}
    api.create_commit("me/lora", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="first")
    assert sorted(api.list_repo_files("me/lora")) == sorted([".gitattributes", *files])  # two at a time
    assert {path: hub.files("me/lora")[path] for path in files} == files
    path = api.hf_hub_download("me/lora", "a/task.nola")
    assert Path(path).read_bytes() == BINARY
    assert os.path.basename(os.path.realpath(path)) == api.get_paths_info("me/lora", "a/task.nola")[0].lfs.sha256
    assert [r.path for r in hub.requests if r.path.startswith("/cdn/") and r.authorized] == []


def test_large_files_are_read_by_ranges(hub: HubServer) -> None:
    hub.put("me/lora", {"task.nola": BINARY})
    with HfFileSystem(endpoint=hub.endpoint, skip_instance_cache=True).open("me/lora/task.nola", block_size=64) as file:
        file.seek(1000)
        assert file.read(10) == BINARY[1000:1010]
    assert sum(r.sent for r in hub.requests if r.path.startswith("/cdn/")) < 1000


def test_a_commit_on_an_old_parent_is_refused(hub: HubServer) -> None:
    api = HfApi(endpoint=hub.endpoint)
    old = hub.put("me/lora", {"a.txt": b"1"}).oid
    hub.put("me/lora", {"a.txt": b"2"})
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        api.create_commit("me/lora", [CommitOperationAdd("a.txt", b"3")], commit_message="late", parent_commit=old)
    assert hub.files("me/lora")["a.txt"] == b"2"


def test_refusals_are_the_errors_of_the_client(hub: HubServer) -> None:
    hub.put("me/lora", {"a.txt": b"1"})
    hub.put("me/secret", {"a.txt": b"1"})
    hub.put("other/gated", {"a.txt": b"1"})
    hub.repositories["me/secret"].is_private = True
    hub.repositories["other/gated"].is_gated = True
    mine, nobody = HfApi(endpoint=hub.endpoint), HfApi(endpoint=hub.endpoint, token=False)
    with pytest.raises(errors.RepositoryNotFoundError, match="404"):
        mine.model_info("me/nothing")
    with pytest.raises(errors.RepositoryNotFoundError, match="401"):
        nobody.model_info("me/secret")
    with pytest.raises(errors.GatedRepoError):
        mine.hf_hub_download("other/gated", "a.txt")
    with pytest.raises(errors.RevisionNotFoundError):
        mine.model_info("me/lora", revision="nothing")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        mine.hf_hub_download("me/lora", "nothing.txt")
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        HfApi(endpoint=hub.endpoint, token="hf_reader").upload_file(
            path_or_fileobj=b"1", path_in_repo="b.txt", repo_id="me/lora"
        )
    with pytest.raises(errors.HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").model_info("me/lora")


def test_it_fails_when_told_to(hub: HubServer) -> None:
    hub.put("me/lora", {"a.txt": b"1"})
    hub.fail("/resolve/", 500)
    with pytest.raises(errors.HfHubHTTPError, match="500"):
        huggingface_hub.get_hf_file_metadata(f"{hub.endpoint}/me/lora/resolve/main/a.txt")
    assert huggingface_hub.get_hf_file_metadata(f"{hub.endpoint}/me/lora/resolve/main/a.txt").size == 1
