"""Words, signs and subsets have random access and no state, and are the same in NumPy and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.errors import FormatError
from nola_codec.prng import PHILOX, RADEMACHER, SIGNS, SUBSET, UNIFORM, generator_name, signs, subset, words

TORCH = TorchArrays()


@given(
    seed=st.integers(0, (1 << 64) - 1),
    stream=st.integers(0, (1 << 32) - 1),
    purpose=st.integers(0, 4),
    start=st.one_of(st.integers(0, 100), st.integers(0, 1 << 40)),
    count=st.integers(0, 70),
)
def test_any_range_of_words_can_be_had_alone(seed: int, stream: int, purpose: int, start: int, count: int) -> None:
    key = {"seed": seed, "stream": stream, "purpose": purpose}
    made = words(PHILOX, **key, start=start, count=count, xp=NUMPY)
    wide = words(PHILOX, **key, start=max(0, start - 7), count=count + 14, xp=NUMPY)
    skip = start - max(0, start - 7)
    assert made.tolist() == wide[skip : skip + count].tolist()
    assert made.tolist() == words(PHILOX, **key, start=start, count=count, xp=TORCH).tolist()
    assert made.dtype == np.int64
    assert all(0 <= word < 1 << 32 for word in made.tolist())


def test_every_part_of_the_key_counts() -> None:
    base = {"seed": 1, "stream": 2, "purpose": 3, "start": 0}
    changes = [{}, {"seed": 2}, {"seed": 1 + (1 << 32)}, {"stream": 3}, {"purpose": 2}, {"start": 1 << 34}]
    seen = {tuple(words(PHILOX, **{**base, **change}, count=4, xp=NUMPY).tolist()) for change in changes}
    assert len(seen) == len(changes)


def test_words_are_evenly_spread() -> None:
    """Each bit is set in half the words, within five standard deviations."""
    made = words(PHILOX, seed=3, stream=0, purpose=UNIFORM, start=0, count=20_000, xp=NUMPY)
    share = ((made[:, None] >> np.arange(32)) & 1).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(len(made))


def test_signs_are_the_bits_of_the_words() -> None:
    packed = words(PHILOX, seed=9, stream=1, purpose=SIGNS, start=1, count=2, xp=NUMPY).tolist()
    wanted = [1 - 2 * (packed[i // 32] >> (i % 32) & 1) for i in range(50)]
    made = signs(PHILOX, seed=9, stream=1, purpose=SIGNS, start=32, count=50, xp=NUMPY)
    assert made.tolist() == wanted
    assert made.dtype == np.int64


def test_signs_are_used_from_any_multiple_of_32() -> None:
    key = {"seed": 5, "stream": 1, "purpose": RADEMACHER, "xp": NUMPY}
    whole = signs(PHILOX, **key, start=0, count=200)
    assert signs(PHILOX, **key, start=96, count=104).tolist() == whole[96:].tolist()


@given(population=st.integers(1, 300), data=st.data())
def test_subset_takes_the_smallest_words(population: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, population))
    made = subset(PHILOX, seed=4, stream=2, population=population, size=size, xp=NUMPY)
    draws = words(PHILOX, seed=4, stream=2, purpose=SUBSET, start=0, count=population, xp=NUMPY).tolist()
    wanted = sorted(sorted(range(population), key=lambda i: (draws[i], i))[:size])
    assert made.tolist() == wanted
    assert subset(PHILOX, seed=4, stream=2, population=population, size=size, xp=TORCH).tolist() == wanted


def test_names() -> None:
    assert generator_name(PHILOX) == "philox4x32-10"
    with pytest.raises(FormatError) as caught:
        generator_name(3)
    assert caught.value.code == "generator"
