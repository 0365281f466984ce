"""The cache on disk: entries are made once, appear whole, stay while they are held, and leave by last use."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nola_codec.disk_cache import DiskCache, default_root
from nola_codec.errors import NolaError

ROOT = Path(__file__).resolve().parents[3]


def writes(text: str, count: list[int] | None = None) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        if count is not None:
            count.append(1)
        (directory / "data").write_text(text)

    return build


def process(code: str, root: Path, **more: object) -> subprocess.Popen[str]:
    """Start a Python that has `cache`, a DiskCache of `root`."""
    start = f"import os, sys, time\nfrom nola_codec.disk_cache import DiskCache\ncache = DiskCache({str(root)!r})\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", start + code], env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # type: ignore[call-overload, no-any-return] # fmt: skip


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def left_over(root: Path) -> list[str]:
    """What is in the cache besides finished entries and locks."""
    hidden = [*root.glob("*/.building/*"), *root.glob("*/.partial/*"), *root.glob(".sessions/*")]
    return sorted(path.relative_to(root).as_posix() for path in hidden)


def test_an_entry_is_made_once_and_found_again(tmp_path: Path) -> None:
    cache, count = DiskCache(tmp_path), list[int]()
    assert cache.get("sort", "one") is None
    assert not any(tmp_path.iterdir())
    path = cache.make("sort", "one", writes("first", count))
    assert cache.make("sort", "one", writes("second", count)) == path == cache.get("sort", "one")
    assert ((path / "data").read_text(), count) == ("first", [1])
    assert path == tmp_path / "sort" / "one"
    assert [(e.kind, e.name, e.path, e.bytes) for e in cache.entries()] == [("sort", "one", path, 5)]
    assert cache.total_bytes() == 5
    assert DiskCache(tmp_path).get("other", "one") is None
    assert cache.remove("sort", "one")
    assert cache.get("sort", "one") is None
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "key", ["..", "../x", "/etc/passwd", "", "Upper", "a/b", "a\\b", ".hidden", "x" * 300, "ü", "\udc80", "con:",
            "sha256-" + 64 * "0"],
)  # fmt: skip
def test_any_key_stays_in_the_cache(key: str, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "root")
    path = cache.make("sort", key, writes("x"))
    assert path.parent == tmp_path / "root" / "sort"
    assert path.name.startswith("sha256-")
    assert path.name != key
    assert cache.get("sort", key) == path
    assert [item.name for item in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("kind", ["", "..", "a/b", "Sort", ".locks"])
def test_a_kind_is_a_plain_word(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: expected lower-case"):
        DiskCache(tmp_path).get(kind, "key")


def test_a_link_is_no_entry(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("outside")
    cache = DiskCache(tmp_path / "root")
    cache.make("sort", "other", writes("x"))
    (tmp_path / "root" / "sort" / "key").symlink_to(outside)
    assert cache.get("sort", "key") is None
    assert [entry.name for entry in cache.entries()] == ["other"]
    path = cache.make("sort", "key", writes("inside"))
    assert ((path / "data").read_text(), (outside / "data").read_text()) == ("inside", "outside")


def test_the_least_recently_used_entries_leave(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=25)
    for number, key in enumerate("abc"):
        path = cache.make("sort", key, writes(10 * key))
        if key != "c":
            os.utime(path, (number, number))
    assert [entry.name for entry in cache.entries()] == ["b", "c"]
    cache.get("sort", "b")  # now c is the older one
    os.utime(tmp_path / "sort" / "c", (1, 1))
    cache.max_bytes = 10
    assert cache.evict() == 10
    assert [entry.name for entry in cache.entries()] == ["b"]
    large = cache.make("sort", "large", writes(100 * "x"))  # larger than the cache may be, and yet it is handed out
    assert large.is_dir()
    assert [entry.name for entry in cache.entries()] == ["large"]


def test_a_held_entry_stays(tmp_path: Path) -> None:
    cache, other = DiskCache(tmp_path, max_bytes=0), DiskCache(tmp_path, max_bytes=0)
    with cache.hold("sort", "a"), cache.hold("sort", "a"):
        path = cache.make("sort", "a", writes("x"))
        assert (other.evict(), other.remove("sort", "a"), other.clear()) == (0, False, 0)
        assert path.is_dir()
    assert other.evict() == 1
    assert not path.exists()


def test_the_end_of_a_process_ends_its_holds(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=0)
    holder = process(
        "with cache.hold('sort', 'a'):\n"
        "    cache.make('sort', 'a', lambda d: (d / 'data').write_text('x'))\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n",
        tmp_path,
    )
    assert line_of(holder) == "held"
    assert cache.evict() == 0
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert cache.evict() == 1
    assert left_over(tmp_path) == []


def test_a_fork_does_not_end_the_holds_of_its_parent(tmp_path: Path) -> None:
    holder = process(
        "hold = cache.hold('sort', 'a')\n"
        "hold.__enter__()\n"
        "cache.make('sort', 'a', lambda d: (d / 'data').write_text('x'))\n"
        "if os.fork() == 0:\n"
        "    with cache.hold('sort', 'a'):\n"
        "        pass\n"
        "    hold.__exit__(None, None, None)\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n",
        tmp_path,
    )
    assert line_of(holder) == "held"
    assert DiskCache(tmp_path, max_bytes=0).evict() == 0
    holder.communicate()
    assert DiskCache(tmp_path, max_bytes=0).evict() == 1


def test_threads_and_processes_make_an_entry_once(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    code = (
        "def build(directory):\n"
        f"    with open({str(log)!r}, 'a') as log: log.write(f'{{os.getpid()}}\\n')\n"
        "    time.sleep(0.3)\n"
        "    (directory / 'data').write_text('whole')\n"
        "import threading\n"
        "def ask(): print((cache.make('sort', 'key', build) / 'data').read_text(), flush=True)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    children = [process(code, root) for _ in range(2)]
    assert [line_of(child) for child in children] == ["ready", "ready"]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate() for child in children]
    assert [(out.replace("\n", ""), err) for out, err in outputs] == [("whole" * 8, "")] * 2
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_build_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "def build(directory):\n"
        "    (directory / 'data').write_text('half')\n"
        "    print('building', flush=True)\n"
        "    time.sleep(60)\n"
        "cache.make('sort', 'key', build)\n"
    )
    child = process(code, tmp_path)
    assert line_of(child) == "building"
    cache = DiskCache(tmp_path, max_bytes=0)
    cache.evict()
    assert len(left_over(tmp_path)) == 1  # a living process is at work there
    child.kill()
    child.communicate()
    assert cache.get("sort", "key") is None
    cache.evict()
    assert left_over(tmp_path) == []
    assert (cache.make("sort", "key", writes("whole")) / "data").read_text() == "whole"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)

    def build(directory: Path) -> None:
        (directory / "data").write_text("half")
        raise KeyError("network")

    with pytest.raises(KeyError):
        cache.make("sort", "key", build)
    assert cache.get("sort", "key") is None
    assert left_over(tmp_path) == []


def test_a_resumable_build_goes_on(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)

    def build(directory: Path) -> None:
        with (directory / "data").open("a") as file:
            file.write("piece")
            if file.tell() < 10:
                raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.make("sort", "key", build, resumable=True)
    assert cache.get("sort", "key") is None
    assert cache.evict() == 0
    assert left_over(tmp_path) == ["sort/.partial/key"]
    assert (cache.make("sort", "key", build, resumable=True) / "data").read_text() == "piecepiece"
    assert left_over(tmp_path) == []
    with pytest.raises(ConnectionError):
        cache.make("sort", "old", build, resumable=True)
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / "sort" / ".partial" / "old", (week_ago, week_ago))
    cache.evict()
    assert left_over(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)

    def build(directory: Path) -> None:
        (directory / "data").write_text("half")
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(NolaError, match="No space left on device; free some, or set NOLA_CODEC_CACHE") as caught:
        cache.make("sort", "key", build)
    assert caught.value.code == "disk-full"
    assert left_over(tmp_path) == []
    assert cache.get("sort", "key") is None


def test_a_root_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "root")
    assert cache.get("sort", "key") is None
    assert cache.entries() == []
    for call in (lambda: cache.make("sort", "key", writes("x")), lambda: cache.hold("sort", "key").__enter__()):
        with pytest.raises(NolaError, match="the cache cannot be written: Not a directory") as caught:
            call()
        assert caught.value.code == "cache-unwritable"


def drop_override() -> None:
    """Let the permissions of directories hold for the superuser too, from the next program on."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.skipif(sys.platform != "linux", reason="it uses prctl")
def test_a_cache_that_may_only_be_read_serves_what_it_has(tmp_path: Path) -> None:
    root = tmp_path / "root"
    DiskCache(root).make("sort", "there", writes("x"))
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o555)
    code = (
        "from nola_codec.errors import NolaError\n"
        "with cache.hold('sort', 'there'):\n"
        "    print((cache.make('sort', 'there', None) / 'data').read_text())\n"
        "try:\n"
        "    cache.make('sort', 'new', None)\n"
        "except NolaError as error:\n"
        "    print(error.code)\n"
        "print(cache.evict())\n"
    )
    out, err = process(code, root, preexec_fn=drop_override).communicate()
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o755)
    assert (out.split(), err) == (["x", "cache-unwritable", "0"], "")


def test_a_cache_removed_under_a_server_is_made_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "root", max_bytes=0)
    with cache.hold("sort", "a"):
        cache.make("sort", "a", writes("x"))
        shutil.rmtree(tmp_path / "root")
        with cache.hold("sort", "a"):
            path = cache.make("sort", "a", writes("y"))
            assert DiskCache(tmp_path / "root", max_bytes=0).evict() == 0
            assert (path / "data").read_text() == "y"


def test_makers_and_evictors_never_show_half(tmp_path: Path) -> None:
    """Threads make and read entries under holds while others remove all that is not held."""
    cache, other = DiskCache(tmp_path), DiskCache(tmp_path, max_bytes=0)
    wrong: list[object] = []
    stop = threading.Event()

    def use(key: str) -> None:
        for _ in range(15):
            with cache.hold("sort", key):
                path = cache.make("sort", key, writes(key * 100))
                if (path / "data").read_text() != key * 100:
                    wrong.append(path)

    def remove() -> None:
        while not stop.is_set():
            other.evict()

    remover = threading.Thread(target=remove)
    users = [threading.Thread(target=use, args=(key,)) for key in "aabb"]
    for thread in (remover, *users):
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    remover.join()
    assert wrong == []


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DiskCache().root == default_root() == tmp_path / "own"
    monkeypatch.delenv("NOLA_CODEC_CACHE")
    assert default_root() == tmp_path / "shared" / "nola-codec"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == tmp_path / "home" / ".cache" / "nola-codec"
    with pytest.raises(ValueError, match="max_bytes"):
        DiskCache(tmp_path, max_bytes=-1)
