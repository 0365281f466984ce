"""Files are written in pieces on threads: the bytes, the sums, and the early writing to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_paths import PATHS

from nola_codec.errors import AdapterError
from nola_codec.merger import stream
from nola_codec.merger.checksums import Sums, file_sums
from nola_codec.merger.stream import FileWrite, TensorWrite, write_files


def doubled(data: memoryview, start: int, stop: int) -> None:
    """Double the uint8 rows of a tensor."""
    rows = np.frombuffer(data, np.uint8)
    np.add(rows, rows, out=rows)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", ["1", "3"])
def test_pieces_make_the_file(path: str, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", threads)
    monkeypatch.setenv("NOLA_KERNELS", path)
    monkeypatch.setattr(stream, "_WRITEBACK_BYTES", 5000)
    early: list[tuple[Path, int, int]] = []
    real = stream.start_writeback

    def watched(target: Path, start: int, stop: int) -> None:
        early.append((target, start, stop))
        real(target, start, stop)

    monkeypatch.setattr(stream, "start_writeback", watched)
    content = np.random.default_rng(1).integers(0, 100, 40_003, dtype=np.uint8).tobytes()
    source = tmp_path / "source"
    source.write_bytes(content)
    found: dict[str, Sums] = {}
    tensors = (
        TensorWrite("copied", 20_001, 2),
        TensorWrite("changed", 9_000, 20_003, 90, lambda: doubled),
        TensorWrite("given", 7, b"1234567"),
    )
    writes = [
        FileWrite(source, tmp_path / name, header, tensors, lambda sums, name=name: found.update({name: sums}))  # type: ignore[misc]
        for name, header in (("a", b"head"), ("b", b"header"))
    ]
    write_files(writes, 1024)
    for write in writes:
        changed = bytes(2 * byte for byte in content[20_003:29_003])
        wanted = write.header + content[2:20_003] + changed + b"1234567"
        assert write.target.read_bytes() == wanted
        assert found[write.target.name] == file_sums(write.target)
        ranges = [(start, stop) for target, start, stop in early if target == write.target]
        assert len(ranges) >= 4
        assert all(len(write.header) <= start < stop <= len(wanted) for start, stop in ranges)
        covered = {byte for start, stop in ranges for byte in range(start, stop)}
        assert len(covered) > len(wanted) - 6100


def test_a_source_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(10))
    write = FileWrite(tmp_path / "source", tmp_path / "a", b"", (TensorWrite("w", 11, 0),), lambda _: None)
    with pytest.raises(AdapterError) as e:
        write_files([write], 4)
    assert e.value.code == "truncated"
