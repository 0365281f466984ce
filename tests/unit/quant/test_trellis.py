"""Quantizers with memory do what the words of the specification say literally."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nola_forge import reference

from nola_codec.container.quantizer_wire import quantizer_to_wire
from nola_codec.model.quantizers import Dependent, Quantizer, Trellis
from nola_codec.quant.points import book_points
from nola_codec.quant.trellis import TRELLISES, dependent_points, trellis_points


def literal(trellis: Trellis, symbols: list[int], count: int) -> list[int]:
    """Decode one vector bit by bit."""
    bits = [symbol >> (trellis.bits - 1 - i) & 1 for symbol in symbols for i in range(trellis.bits)]
    made = []
    for step in range(len(symbols)):
        last = (step + 1) * trellis.bits - 1
        window = [bits[(last - age) % len(bits)] for age in range(8)]
        for masks in trellis.masks:
            index = 0
            for mask in masks:
                index = 2 * index + sum(bit for age, bit in enumerate(window) if mask >> age & 1) % 2
            made.append(trellis.levels[index])
    return made[:count]


@pytest.mark.parametrize("trellis", TRELLISES, ids=lambda t: str(t.number))
@pytest.mark.parametrize("count", [1, 7, 40, 577])
def test_trellis_is_the_window_in_a_ring(trellis: Trellis, count: int) -> None:
    rng = np.random.default_rng(count)
    symbols = rng.integers(0, trellis.size, (3, trellis.run(count))).astype(np.uint8)
    made = trellis_points(trellis, symbols, count)
    assert made.shape == (3, count)
    assert made.tolist() == [literal(trellis, row.tolist(), count) for row in symbols]
    book = reference().quantizer(*quantizer_to_wire(Quantizer(trellis)))
    assert made[0].tolist() == reference().points(book, symbols[0].astype(int), count).tolist()
    assert np.abs(made).max() <= trellis.peak


def test_trellises_are_numbered_and_of_falling_stride() -> None:
    assert [t.number for t in TRELLISES] == list(range(len(TRELLISES)))
    rates = [t.bits / t.stride for t in TRELLISES]
    assert rates == sorted(rates)
    for trellis in TRELLISES:
        assert all(len(masks) == (len(trellis.levels) - 1).bit_length() for masks in trellis.masks)
        assert sorted(trellis.levels) == [-level for level in sorted(trellis.levels, reverse=True)]
        if trellis.bits == 1:
            assert all(mask & 0x81 == 0x81 for masks in trellis.masks for mask in masks)


@given(
    levels=st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    mask=st.integers(0, 255),
)
def test_dependent_points_follow_the_parities(levels: list[int], mask: int) -> None:
    book = Dependent(mask, (10, 20, 30), (5, 15, 26))
    symbols = np.array([levels]) + 3
    made = dependent_points(book, symbols.astype(np.uint8))[0].tolist()
    wanted = []
    for index, level in enumerate(levels):
        before = [levels[index - age] % 2 if index >= age else 0 for age in range(1, 9)]
        odd = sum(p for age, p in enumerate(before) if mask >> age & 1) % 2
        points = book.odd if odd else book.even
        wanted.append(0 if level == 0 else points[abs(level) - 1] * (1 if level > 0 else -1))
    assert made == wanted
    assert book_points(book, symbols, len(levels))[0].tolist() == wanted
    parsed = reference().quantizer(*quantizer_to_wire(Quantizer(book)))
    assert reference().points(parsed, symbols[0], len(levels)).tolist() == wanted
