"""The searches find what an exhaustive search finds, or nearly, and come close to the rates they are designed for."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nola_codec.fit.coders import (
    MASK,
    DependentCoder,
    TrellisCoder,
    coders,
    dependent_statistics,
    find_levels,
    fit_tables,
    stride_limit,
)
from nola_codec.fit.viterbi import LevelSearch, encode_dependent, encode_trellis, pack_side_by_side
from nola_codec.model.quantizers import Dependent, Trellis
from nola_codec.quant.trellis import TRELLISES, dependent_points, trellis_points


def gaussian(vectors: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((vectors, count)).astype(np.float32)


@pytest.mark.parametrize("number", [5, 10, 9])
def test_trellis_search_against_all_codes(number: int) -> None:
    """The search finds the largest inner product of all codes whose ring closes at the state that it chose."""
    trellis = TRELLISES[number]
    steps, held = 12 // trellis.bits, 8 // trellis.bits
    count = steps * trellis.stride
    values = gaussian(24, count)
    every = np.array(list(product(range(trellis.size), repeat=steps)), np.uint8)
    reached = values @ trellis_points(trellis, every, count).T.astype(np.float32)
    symbols = encode_trellis(trellis, values)
    found = (values * trellis_points(trellis, symbols, count)).sum(axis=1)
    for row, own, value in zip(reached, symbols, found, strict=True):
        rivals = (every[:, -held:] == own[-held:]).all(axis=1)
        assert value == pytest.approx(row[rivals].max(), abs=1e-3)


def test_dependent_search_against_all_levels() -> None:
    points = np.array([[0.0, 1.0, 2.0], [0.0, 0.5, 1.5]])
    bits = np.array([1.0, 2.0, 4.0])
    values = gaussian(12, 6)
    book = Dependent(0b101, (10, 20), (5, 15))
    every = np.array(list(product(range(5), repeat=6)), np.uint8)
    reached = dependent_points(book, every) / 10
    price = 0.2 * bits[np.abs(every.astype(int) - 2)].sum(axis=1)
    (found,) = encode_dependent(0b101, [LevelSearch(values, points, bits, 0.2)])
    for value, levels in zip(values, found, strict=True):
        cost = ((value - reached) ** 2).sum(axis=1) + price
        made = int((every == (levels + 2).astype(np.uint8)).all(axis=1).argmax())
        assert cost[made] == pytest.approx(cost.min(), abs=1e-4)


def test_searches_side_by_side_find_what_each_finds_alone() -> None:
    """Vectors of other lengths and other tables beside them change nothing, even past the step that settles costs."""
    chosen = [c for c in coders() if isinstance(c, DependentCoder)][2::9]
    samples = [(coder, gaussian(3 + n, 50 + 70 * (n % 2))) for n, coder in enumerate(chosen)]
    together = fit_tables(samples)
    searches = [coder.search(values, tables) for (coder, values), tables in zip(samples, together, strict=True)]
    assert len({search.values.shape for search in searches}) == len(searches) >= 3
    for sample, tables, search, levels in zip(
        samples, together, searches, encode_dependent(MASK, searches), strict=True
    ):
        (alone,) = fit_tables([sample])
        assert [each.tolist() for each in alone] == [each.tolist() for each in tables]
        (expected,) = encode_dependent(MASK, [search])
        assert levels.tolist() == expected.tolist()


def test_packs_hold_each_search_once_and_no_more_than_fit() -> None:
    shapes = [(40, 576), (96, 100), (7, 1536), (50, 576), (500, 8), (1, 1)]
    packs = pack_side_by_side(shapes)
    assert sorted(index for pack in packs for index in pack) == list(range(len(shapes)))
    assert packs == [[2, 0], [3], [1], [4], [5]]


@pytest.mark.parametrize("coder", [c for c in coders() if isinstance(c, TrellisCoder)], ids=lambda c: f"{c.rate:.3f}")
def test_trellises_reach_their_cosine(coder: TrellisCoder) -> None:
    values = gaussian(24, 4608)
    points = trellis_points(coder.trellis, coder.symbols(values), 4608).astype(np.float64)
    cosine2 = ((values * points).sum(axis=1) ** 2 / ((values**2).sum(axis=1) * (points**2).sum(axis=1))).mean()
    assert cosine2 == pytest.approx(coder.cosine2, rel=0.03)
    assert -0.5 * np.log2(1 - cosine2) > 0.8 * coder.rate


def test_dependent_quantizers_beat_scalar_ones() -> None:
    values = gaussian(24, 1024)
    chosen = [c for c in coders() if isinstance(c, DependentCoder)][3::6]
    assert len(chosen) >= 4
    for coder in chosen:
        (tables,) = fit_tables([(coder, values[:8])])
        (levels,) = find_levels([coder.search(values, tables)])
        counts, sums = (part.sum(axis=0) for part in dependent_statistics(levels, values, coder.most))
        share = np.concatenate((counts.sum(axis=0)[:1], np.repeat(counts.sum(axis=0)[1:] / 2, 2))) / values.size
        rate = -(share[share > 0] * np.log2(share[share > 0])).sum()
        centroids = sums / np.maximum(counts, 1)
        cosine2 = (centroids * sums).sum() / (values**2).sum()
        assert rate == pytest.approx(coder.rate, rel=0.04)
        assert cosine2 == pytest.approx(coder.cosine2, rel=0.02, abs=1e-4)
        # An ideal scalar quantizer with entropy coding is 0.25 bits above the bound at these rates.
        assert rate + 0.5 * np.log2(1 - cosine2) < 0.2


def test_short_vectors_get_short_strides() -> None:
    assert [stride_limit(n) for n in (8, 24, 72, 192, 575, 576, 11008)] == [0, 1, 3, 8, 8, 24, 24]
    assert isinstance(TRELLISES[0], Trellis)
