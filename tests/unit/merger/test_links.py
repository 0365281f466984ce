"""Files of a base model are copied, also through links, but never from outside of the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nola_codec.errors import AdapterError
from nola_codec.merger.model_directory import copy_other_files, copy_tree


def make_secret(folder: Path) -> Path:
    secret = folder / "secret"
    secret.write_text("private")
    return secret


def test_a_link_to_a_secret_is_not_followed(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "tokenizer.json").symlink_to(make_secret(tmp_path))
    with pytest.raises(AdapterError, match="outside of the base model") as caught:
        copy_other_files(base, out)
    assert caught.value.code == "outside-base"
    assert caught.value.where == str(base / "tokenizer.json")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("link", ["folder", "file"])
def test_a_link_in_a_folder_of_a_pipeline_is_not_followed(link: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "tokenizer").mkdir(parents=True)
    private = tmp_path / "private"
    private.mkdir()
    make_secret(private)
    target = private if link == "folder" else private / "secret"
    (base / "tokenizer" / "deep").symlink_to(target)
    with pytest.raises(AdapterError, match="outside of the base model"):
        copy_tree(base / "tokenizer", tmp_path / "copy", base)


def test_links_within_a_model_and_within_a_hub_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    base, blobs = repository / "snapshots" / "abc", repository / "blobs"
    base.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").write_text("{}")
    (base / "config.json").symlink_to("../../blobs/0123")
    (base / "LICENSE").write_text("free")
    (base / "COPYING").symlink_to("LICENSE")
    out, linked = tmp_path / "out", tmp_path / "linked"
    out.mkdir()
    linked.symlink_to(base)  # the model itself may be reached through a link
    copy_other_files(linked, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "config.json": "{}", "LICENSE": "free", "COPYING": "free",
    }  # fmt: skip
    assert not any(path.is_symlink() for path in out.iterdir())
    (base / "README.md").symlink_to(make_secret(tmp_path))
    with pytest.raises(AdapterError, match="outside of the base model"):
        copy_other_files(base, out)


def test_a_pipe_in_a_model_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    os.mkfifo(base / "notes.txt")
    with pytest.raises(AdapterError, match="not a regular file"):
        copy_other_files(base, out)
