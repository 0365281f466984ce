"""Plain bytes in a section: what is compressed, and what a reader refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.entropy.blobs import STORED, ZSTD, pack_blob, unpack_blob
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
