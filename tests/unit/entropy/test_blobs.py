"""Plain bytes in a section: what is compressed, and what a reader refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.entropy.blobs import PLANES, STORED, ZSTD, pack_blob, unpack_blob
from nola_codec.entropy.frames import compress
from nola_codec.errors import FormatError


@given(data=st.binary(max_size=200), copies=st.integers(1, 30))
def test_round_trip(data: bytes, copies: int) -> None:
    codec, stored = pack_blob(data * copies)
    assert unpack_blob(codec, stored, len(data) * copies, "section 3") == data * copies
    assert len(stored) <= len(data) * copies


def test_bytes_are_compressed_where_that_pays() -> None:
    noise = np.random.default_rng(0).bytes(1000)
    assert pack_blob(noise) == (STORED, noise)
    codec, stored = pack_blob(bytes(1000))
    assert codec == ZSTD
    assert len(stored) < 30


@given(data=st.binary(max_size=200), width=st.sampled_from([2, 4, 8]), copies=st.integers(1, 30))
def test_elements_of_several_bytes(data: bytes, width: int, copies: int) -> None:
    data = data[: len(data) // width * width] * copies
    codec, stored = pack_blob(data, width)
    assert unpack_blob(codec, stored, len(data), "section 3", width) == data
    assert len(stored) <= len(data)


def test_weights_are_shorter_in_planes() -> None:
    weights = np.random.default_rng(0).standard_normal(20000).astype("<f4")
    half = (weights.view("<u4") >> 16).astype("<u2")
    for data, width, share in ((weights.tobytes(), 4, 0.86), (half.tobytes(), 2, 0.70)):
        codec, stored = pack_blob(data, width)
        assert codec == PLANES
        assert len(stored) < share * len(data) < 0.97 * len(pack_blob(data)[1])
        assert unpack_blob(codec, stored, len(data), "section 3", width) == data


def test_damaged_planes_are_refused() -> None:
    good = pack_blob(np.random.default_rng(0).standard_normal(64).astype("<f4").tobytes(), 4)[1]
    for stored, code in (
        (b"", "symbols"), (b"\x04" + good[1:], "symbols"), (good[:100], "symbols"), (good[:-1], "zstd"),
        (good + b"\0", "zstd"), (bytes([good[0] - 1]) + good[1:], "zstd"),
    ):  # fmt: skip
        with pytest.raises(FormatError, match="section 3") as caught:
            unpack_blob(PLANES, stored, 256, "section 3", 4)
        assert caught.value.code == code
    with pytest.raises(FormatError) as caught:
        unpack_blob(PLANES, good, 256, "section 3")
    assert caught.value.code == "codec"


@pytest.mark.parametrize(
    ("codec", "stored", "code"),
    [
        (2, bytes(9), "codec"),
        (STORED, bytes(8), "symbols"),
        (STORED, bytes(10), "symbols"),
        (ZSTD, compress(bytes(8)), "zstd"),
        (ZSTD, bytes(9), "zstd"),
    ],
)
def test_refused(codec: int, stored: bytes, code: str) -> None:
    with pytest.raises(FormatError, match="section 3") as caught:
        unpack_blob(codec, stored, 9, "section 3")
    assert caught.value.code == code
