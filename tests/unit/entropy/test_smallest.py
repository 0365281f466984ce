"""The choice among codecs: the shortest, the lowest id among equals, and no work that cannot win."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.entropy import CODECS, decode_many, rans, smallest
from nola_codec.model.quantizers import Runs, SymbolModel

MODELS = [SymbolModel(4, rans.normalize(np.array([9, 1, 1, 1]))), SymbolModel(4), SymbolModel(3, (1365, 1366, 1365))]


def section(seed: int, model: int, count: int) -> tuple[npt.NDArray[Any], Runs]:
    """Return the symbols of one run, most of them 0."""
    rng = np.random.default_rng(seed)
    symbols = (rng.integers(0, MODELS[model].size, count) * (rng.random(count) < 0.4)).astype(np.uint16)
    return symbols, Runs(np.array([model]), np.array([count]))


@given(
    sections=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2), st.integers(0, 300)), min_size=1, max_size=4),
    allowed=st.sampled_from([(0,), (0, 2)]),
)
def test_the_shortest_wins_and_the_lowest_id_among_equals(
    sections: list[tuple[int, int, int]], allowed: tuple[int, ...]
) -> None:
    streams, runs = zip(*(section(*each) for each in sections), strict=True)
    chosen = smallest(streams, runs, MODELS, allowed)
    for symbols, own, (codec, data) in zip(streams, runs, chosen, strict=True):
        every = [(len(CODECS[n].encode(symbols, own, MODELS)), n) for n in allowed if CODECS[n].pays(own, MODELS)]
        assert (len(data), codec) == min(every)
    for symbols, back in zip(streams, decode_many(chosen, runs, MODELS), strict=True):
        assert back.tolist() == symbols.tolist()


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda c: c.name)
def test_least_size_is_a_lower_bound(codec: Any) -> None:
    symbols, runs = section(1, 0, 1000)
    assert codec.least_size(runs, MODELS) <= len(codec.encode(symbols, runs, MODELS))


def test_rans_alone_cannot_code_runs_without_frequencies() -> None:
    symbols, runs = section(0, 1, 10)
    with pytest.raises(ValueError, match="no allowed codec"):
        smallest([symbols], [runs], MODELS, allowed=(2,))
