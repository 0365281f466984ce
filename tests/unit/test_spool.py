"""Arrays on disk behave as arrays in memory, and their files go away with the last of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from nola_codec import spool
from nola_codec.adapters.spooling import spool_adapter
from nola_codec.model.adapter import Adapter, VectorTensor


@pytest.fixture(autouse=True)
def low_threshold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool, "THRESHOLD", 1 << 12)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def mappings(directory: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(directory))


def test_large_arrays_lie_on_disk(tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc here")
    before = mappings(tmp_path)
    small, large = spool.allocate_array((10, 4), np.float32), spool.allocate_array((64, 32), np.float32)
    assert mappings(tmp_path) == before + 1
    assert (small.shape, large.shape, large.dtype) == ((10, 4), (64, 32), np.float32)
    large[:] = np.arange(2048, dtype=np.float32).reshape(64, 32)
    assert float(large.sum()) == 2047 * 1024
    assert os.listdir(tmp_path) == []  # the file has no name
    del large
    assert mappings(tmp_path) == before


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        spool.allocate_array((64, 32), np.float32)
    assert caught.value.errno == errno.ENOSPC
    zeros = np.zeros((64, 32), np.float32)
    vector = VectorTensor("a", zeros, "F32")
    adapter = Adapter(dialect="peft", modules=(), vectors=(vector,), raw={}, config=None)
    assert spool_adapter(adapter) is adapter
    monkeypatch.undo()
    monkeypatch.setattr(spool, "THRESHOLD", 1 << 12)
    (moved,) = spool_adapter(adapter).vectors
    assert moved.values is not zeros
    assert np.array_equal(moved.values, zeros)


def test_released_pages_come_back() -> None:
    arena = spool.Arena(np.float32)
    arrays = [arena.copy(np.arange(5000, dtype=np.float32) + place) for place in range(3)]
    own = np.arange(10)
    spool.release_pages(*arrays, own, own[2:], np.zeros(0), arrays[0][:0], arrays[1].reshape(50, 100).T)
    for place, array in enumerate(arrays):
        assert np.array_equal(array, np.arange(5000, dtype=np.float32) + place)
    assert own.tolist() == list(range(10))


def test_released_pages_take_no_memory() -> None:
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("no /proc here")
    array = spool.allocate_array((1 << 20,), np.float32)
    array[:] = 1
    address = array.ctypes.data

    def resident() -> int:
        """The resident bytes of the mapping that holds the array."""
        inside = False
        for line in status.read_text().splitlines():
            if "-" in line.split(" ")[0]:
                start, stop = (int(part, 16) for part in line.split(" ")[0].split("-"))
                inside = start <= address < stop
            elif inside and line.startswith("Rss:"):
                return 1024 * int(line.split()[1])
        raise AssertionError("the array has no mapping")

    assert resident() == 4 << 20
    spool.release_pages(array[: 1 << 19])
    assert resident() == 2 << 20
    assert array.all()


def test_an_arena_keeps_values_apart() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in [(3, 5), (40, 40), (), (7,), (500,), (2, 2)]]
    arena = spool.Arena(np.float32)
    copies = [arena.copy(array) for array in arrays]
    for array, copy in zip(arrays, copies, strict=True):
        assert copy.shape == array.shape
        assert np.array_equal(copy, array)
