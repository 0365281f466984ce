"""`check_rungs`: the decoded SHA-256 of every rung in one pass over the file."""

from __future__ import annotations

import io

import pytest
from kernel_paths import PATHS
from nola_forge import GOLDEN, golden, join, manifest, split
from random_files import random_file

import nola_codec
from nola_codec.decoder import decoder as decoder_module
from nola_codec.errors import ChecksumMismatch

NAMES = sorted(name.removesuffix(".nola") for name in manifest())
PROGRESSIVE = [name for name in NAMES if len(split(golden(name)).top["rungs"]) > 1]


class CountingStream(io.BytesIO):
    """A stream that counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def rungs_of(data: bytes) -> int:
    return len(split(data).top["rungs"])


def with_wrong_rung(data: bytes, rung: int) -> bytes:
    """The file with another decoded SHA-256 at one rung, and checksums that fit."""
    parts = split(data)
    digest, *others = parts.top["rungs"][rung]
    parts.top["rungs"][rung] = [bytes([digest[0] ^ 1]) + digest[1:], *others]
    return join(parts)


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_every_rung_is_compared(name: str) -> None:
    data = golden(name)
    assert nola_codec.verify(data, references=GOLDEN)
    for rung in range(rungs_of(data)):
        with pytest.raises(ChecksumMismatch) as caught:
            nola_codec.verify(with_wrong_rung(data, rung), references=GOLDEN)
        assert caught.value.code == "factors-checksum"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("portion", [1, 1 << 20])
def test_random_files(path: str, portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that start late, several blocks, all bases and forms; a record at a time and many."""
    monkeypatch.setenv("NOLA_KERNELS", path)
    monkeypatch.setattr(decoder_module, "_PORTION_SYMBOLS", portion)
    found = [made for made in map(random_file, range(40)) if rungs_of(made.data) > 1]
    assert len(found) > 8
    for made in found:
        references = list(made.references)
        nola_codec.verify(made.data, references=references)
        with pytest.raises(ChecksumMismatch):
            nola_codec.verify(with_wrong_rung(made.data, 0), references=references)


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_the_file_is_read_as_often_as_a_file_of_one_rung(name: str) -> None:
    """Once for each of the two hashes of bytes, and once to decode; the header and the units are read again."""
    stream = CountingStream(golden(name))
    nola_codec.verify(stream, references=GOLDEN)
    parts = split(golden(name))
    blocks = len(parts.top["blocks"])
    raw = len(parts.sections) - rungs_of(golden(name)) * (1 + blocks)
    first = len(golden(name)) - sum(len(data) for _, data in parts.sections)
    units = [0] + [1 + blocks + raw + (1 + blocks) * (rung - 1) for rung in range(1, rungs_of(golden(name)))]
    again = first + sum(len(parts.sections[number][1]) for number in units)
    assert stream.count <= 3 * len(golden(name)) + again + 100


def test_progress_counts_records_at_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "_PORTION_SYMBOLS", 1)
    seen: list[tuple[str, int, int]] = []
    nola_codec.verify(golden("rungs"), progress=lambda *state: seen.append(state))
    total = rungs_of(golden("rungs")) * sum(split(golden("rungs")).top["blocks"])
    assert seen == [("checking", done, total) for done in range(1, total + 1)]
