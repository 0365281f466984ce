"""Symbols of any width are packed and unpacked without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.quant import packing
from nola_codec.quant.packing import pack, packed_size, padding_bits, unpack


@given(width=st.integers(1, 16), data=st.data())
def test_round_trip_at_any_width(width: int, data: st.DataObject) -> None:
    symbols = np.array(data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=80)), np.uint16)
    stored = pack(symbols, width)
    assert len(stored) == packed_size(len(symbols), width)
    number = sum(int(s) << (width * i) for i, s in enumerate(symbols))  # the definition
    assert stored == number.to_bytes(len(stored), "little")
    assert unpack(stored, width, len(symbols)).tolist() == symbols.tolist()
    assert padding_bits(stored, width, len(symbols)) == 0 if len(symbols) else True


@pytest.mark.parametrize("width", [1, 3, 8, 11, 16])
def test_long_streams_are_cut_at_whole_bytes(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(0).integers(0, 1 << width, 1000).astype(np.uint16)
    whole = pack(symbols, width)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    assert pack(symbols, width) == whole
    assert unpack(whole, width, 1000).tolist() == symbols.tolist()


def test_padding_bits_are_the_unused_high_bits() -> None:
    assert padding_bits(b"\xff\x1f", 13, 1) == 0
    assert padding_bits(b"\xff\x3f", 13, 1) == 1
    assert padding_bits(b"\xff\xff", 16, 1) == 0
