"""Paths, globs and directories become sources."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from broken_adapters import write_adapter

from nola_codec.errors import AdapterError
from nola_codec.fleet.finding import find_sources


def found(*patterns: str | Path, verb: str = "encode", skip: Path | None = None) -> dict[str, str]:
    """The paths of the sources, relative to the current directory, by their names."""
    sources = find_sources(patterns, verb, skip)  # type: ignore[arg-type]
    return {source.name: os.path.relpath(source.path) for source in sources}


@pytest.fixture(autouse=True)
def here(loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loras.parent)


def test_a_directory_is_searched() -> None:
    assert found("loras") == {"a": "loras/a", "b": "loras/b", "deep/a": "loras/deep/a"}


def test_an_adapter_is_itself(loras: Path) -> None:
    assert found("loras/a") == {"a": "loras/a"}
    assert found(loras / "a" / "adapter_model.safetensors") == {"adapter_model": "loras/a/adapter_model.safetensors"}


def test_checkpoints_of_an_adapter_are_left_out_unless_a_glob_names_them(loras: Path) -> None:
    write_adapter(loras / "a" / "checkpoint-10")
    assert "a/checkpoint-10" not in found("loras")
    assert found("loras/*/checkpoint-*") == {"a/checkpoint-10": "loras/a/checkpoint-10"}


@pytest.mark.parametrize("pattern", ["loras/**", "loras/**/adapter_model.safetensors"])
def test_globs_find_each_adapter_once(pattern: str) -> None:
    assert found(pattern) == {"a": "loras/a", "b": "loras/b", "deep/a": "loras/deep/a"}


def test_a_path_with_the_characters_of_a_glob_is_a_path(loras: Path) -> None:
    (loras / "a").rename(loras / "a[1]")
    assert found("loras/a[1]") == {"a[1]": "loras/a[1]"}


def test_lone_files_are_adapters_and_states_of_trainings_are_not(loras: Path) -> None:
    folder = loras.parent / "files"
    folder.mkdir()
    for name in ("x.safetensors", "y.gguf", "pytorch_lora_weights.safetensors", "optimizer.pt", "notes.txt", ".z.bin"):
        (folder / name).write_bytes(b"x")
    assert sorted(found("files")) == ["pytorch_lora_weights", "x", "y"]


def test_models_hidden_folders_and_the_destination_are_left_out(loras: Path) -> None:
    write_adapter(loras / ".cache" / "c")
    (loras / "model").mkdir()
    (loras / "model" / "config.json").write_text("{}")
    (loras / "model" / "model.safetensors").write_bytes(b"x")
    assert sorted(found("loras", skip=loras / "deep")) == ["a", "b"]


def test_links_that_lead_in_a_circle_end(loras: Path) -> None:
    (loras / "deep" / "up").symlink_to(loras)
    assert sorted(found("loras")) == ["a", "b", "deep/a"]


def test_what_cannot_be_read_is_a_source_of_its_own_and_a_pipe_is_none(
    loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loras / "circle").symlink_to("circle")
    (loras / "gone.safetensors").symlink_to("nowhere")
    os.mkfifo(loras / "pipe.safetensors")
    (loras / "closed").mkdir()
    scan = os.scandir

    def refuse(folder: Any) -> Any:  # the tests may run as root, who may read everything
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert sorted(found("loras")) == ["a", "b", "closed", "deep/a", "gone"]


def test_files_of_the_other_verbs(loras: Path) -> None:
    (loras / "deep" / "x.nola").write_bytes(b"x")
    assert found("loras", verb="verify") == {"deep/x": "loras/deep/x.nola"}


@pytest.mark.parametrize("pattern", ["nothing*", "empty"])
def test_nothing_is_an_error(pattern: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(AdapterError, match="no adapters found") as error:
        found(pattern)
    assert error.value.code == "no-sources"
