"""Outputs appear whole, old ones go at once, and leftovers of killed runs are removed by the next one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nola_codec.stores import files, replacing
from nola_codec.stores.files import atomic_directory, atomic_file, updated_directory

HELD = """
import sys, time
from pathlib import Path
from nola_codec.stores.replacing import temporary_beside
with temporary_beside(Path(sys.argv[1]), is_directory=sys.argv[2] == "directory") as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def hold(target: Path, kind: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a temporary name of an output until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(target), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def listed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def forget_listings() -> None:
    """A process lists a folder once, and the folders of a test are changed by others."""
    replacing._leftovers.cache_clear()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_leftovers_go_and_those_of_running_processes_stay(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out.nola"
    running, own = hold(target, kind)
    killed, left = hold(target, kind)
    killed.kill()
    killed.communicate()
    other = tmp_path / ".other.nola.0123456789ab.tmp"  # of another output
    other.write_bytes(b"x")
    assert own.exists()
    assert left.exists()
    with atomic_file(target) as stream:
        stream.write(b"new")
    assert own.exists()
    assert not left.exists()
    assert other.exists()
    running.communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out.nola"]


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    real = os.scandir

    def scandir(path: str) -> object:
        counted.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for number in range(20):
        with atomic_file(tmp_path / f"{number}.nola") as stream:
            stream.write(b"x")
    assert counted.count(os.path.realpath(tmp_path)) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(target) as stream:
            stream.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert listed(tmp_path) == {"a.bin": b"old"}


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_directory_is_replaced(has_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_exchange:
        monkeypatch.setattr(replacing, "_exchange", lambda new, target: False)
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with atomic_directory(target, replace=True) as directory:
        (directory / "new").write_bytes(b"new")
        assert listed(target) == {"old": b"old"}
    assert listed(tmp_path) == {"a/new": b"new"}


def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the step of Linux")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert replacing._exchange(tmp_path / "a", tmp_path / "b")
    assert listed(tmp_path) == {"a/b": b"", "b/a": b""}
    with pytest.raises(FileNotFoundError):
        replacing._exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("way", ["exchange", "renames", "no links", "working directory"])
def test_an_updated_directory_keeps_other_files(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    (target / "checkpoint").mkdir(parents=True)
    for name in ("config", "weights", "README.md", "checkpoint/deep"):
        (target / name).write_bytes(b"old")
    (target / "link").symlink_to("README.md")
    target.chmod(0o750)
    inode = target.stat().st_ino
    if way == "renames":
        monkeypatch.setattr(replacing, "_exchange", lambda new, target: False)
    elif way == "no links":
        monkeypatch.setattr(files, "link_others", _refuse_links)
    elif way == "working directory":
        monkeypatch.chdir(target)
    with updated_directory(target, "config") as directory:
        (directory / "weights").write_bytes(b"new")
        (directory / "config").write_bytes(b"new")
        assert (target / "weights").read_bytes() == b"old"
    assert listed(target) == {
        "config": b"new", "weights": b"new", "README.md": b"old", "link": b"old", "checkpoint/deep": b"old",
    }  # fmt: skip
    assert (target / "link").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o750
    assert (target.stat().st_ino == inode) == (way in ("no links", "working directory"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def _refuse_links(old: Path, new: Path) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_writeback_changes_nothing_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    replacing.start_writeback(path, 0, 7)
    replacing.start_writeback(path, 5, 1 << 40)
    replacing.start_writeback(tmp_path / "missing", 0, 7)
    assert listed(tmp_path) == {"file": b"content"}
    monkeypatch.setattr(replacing, "_writeback_call", lambda: None)
    replacing.start_writeback(path, 0, 7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the call")
def test_linux_has_the_call_of_writeback(tmp_path: Path) -> None:
    call = replacing._writeback_call()
    assert call is not None
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(9))
        file.flush()
        assert call(file.fileno(), 0, 9, 2) == 0
