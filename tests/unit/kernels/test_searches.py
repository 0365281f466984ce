"""The compiled searches of the encoder find the same symbols as NumPy, and wrong arguments never reach C."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import COMPILED

from nola_codec.array_types import Float32Array, LevelArray
from nola_codec.fit.coders import MASK, DependentCoder, coders
from nola_codec.fit.viterbi import LevelSearch, encode_dependent, encode_trellis, gain_terms, level_tables
from nola_codec.kernels.loading import Library, load
from nola_codec.kernels.searches import search_dependent, search_trellis
from nola_codec.quant.trellis import TRELLISES, window_table

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")
DEPENDENT = [coder for coder in coders() if isinstance(coder, DependentCoder)]


def compiled(variant: str) -> Library:
    lib = load(variant).library
    assert lib is not None
    return lib


def rough(rng: np.random.Generator, vectors: int, count: int) -> Float32Array:
    """Values with ties: many are equal, zero or very large."""
    values = rng.standard_normal((vectors, count)).astype(np.float32)
    kind = rng.integers(0, 4, values.shape)
    values = np.where(kind == 0, np.rint(values), values)
    values[(kind == 1) & (rng.random(values.shape) < 0.1)] *= 1000
    return np.asarray(values, np.float32)


def by_path(path: str, mask: int, searches: list[LevelSearch]) -> list[LevelArray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOLA_KERNELS", path)
        return encode_dependent(mask, searches)


@pytest.mark.parametrize("trellis", TRELLISES, ids=lambda trellis: f"{trellis.bits}:{trellis.stride}")
def test_terms_make_the_inner_products_with_all_points(trellis: object) -> None:
    terms, points = gain_terms(trellis), window_table(trellis).astype(np.float64)  # type: ignore[arg-type]
    windows = np.arange(terms.windows)
    made = np.zeros((terms.windows, terms.stride))
    for mask, column, weight in zip(terms.masks, terms.columns, terms.weights, strict=True):
        parity = np.array([int(window & mask).bit_count() & 1 for window in windows])
        made[:, column] += weight * (1.0 - 2.0 * parity)
    scale = np.abs(made).max() / np.abs(points).max()
    assert np.allclose(made, scale * (points[0::2] if terms.is_mirrored else points), rtol=1e-6)
    if terms.is_mirrored:
        assert (points[0::2] == -points[1::2]).all()


@pytest.mark.parametrize("number", range(len(TRELLISES)))
@pytest.mark.parametrize(("vectors", "count"), [(1, 1), (3, 30), (17, 97), (40, 300), (2, 2000)])
def test_trellis_search(number: int, vectors: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rough(np.random.default_rng(number + count), vectors, count)
    monkeypatch.setenv("NOLA_KERNELS", "off")
    expected = encode_trellis(TRELLISES[number], values)
    for variant in COMPILED:
        monkeypatch.setenv("NOLA_KERNELS", variant)
        found = encode_trellis(TRELLISES[number], values)
        assert found.dtype == expected.dtype == np.uint8
        assert np.array_equal(found, expected), variant


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), mask=st.sampled_from([MASK, 0b11, 0b101, 0b11011, 0b10000001, 0b11111111]))
def test_dependent_search_of_many_shapes(seed: int, mask: int) -> None:
    rng = np.random.default_rng(seed)
    searches = []
    for _ in range(int(rng.integers(1, 5))):
        coder = DEPENDENT[int(rng.integers(len(DEPENDENT)))]
        values = rough(rng, int(rng.integers(1, 20)), int(rng.integers(1, 200)))
        points, bits = coder.first_tables()
        points = points * rng.uniform(0.8, 1.2, points.shape)
        points[:, 0] = 0
        points = np.maximum.accumulate(points, axis=1)  # points may be equal
        searches.append(LevelSearch(values, points, bits * rng.uniform(0.5, 2.0, bits.shape), coder.step**2 / 2))
    expected = by_path("off", mask, searches)
    for variant in COMPILED:
        for own, other in zip(by_path(variant, mask, searches), expected, strict=True):
            assert own.dtype == other.dtype == np.int8
            assert np.array_equal(own, other), variant


@pytest.mark.parametrize("coder", DEPENDENT[::5], ids=lambda coder: f"{coder.step}")
def test_dependent_search_past_many_settled_blocks(coder: DependentCoder) -> None:
    values = rough(np.random.default_rng(3), 33, 1000)
    search = coder.search(values, coder.first_tables())
    (expected,) = by_path("off", MASK, [search])
    for variant in COMPILED:
        (found,) = by_path(variant, MASK, [search])
        assert np.array_equal(found, expected), variant


@pytest.mark.parametrize("variant", COMPILED)
def test_nothing_to_search(variant: str) -> None:
    lib, coder = compiled(variant), DEPENDENT[0]
    assert search_dependent(lib, MASK, [], []) == []
    empty = coder.search(np.empty((0, 7), np.float32), coder.first_tables())
    (levels,) = search_dependent(lib, MASK, [empty.values], [level_tables(empty)])
    assert levels.shape == (0, 7)
    assert search_trellis(lib, gain_terms(TRELLISES[0]), np.empty((0, 48), np.float32), 1).shape == (0, 2)


def test_wrong_arguments_are_refused() -> None:
    lib, terms, values = compiled(COMPILED[-1]), gain_terms(TRELLISES[10]), np.zeros((2, 8), np.float32)
    search = DEPENDENT[0].search(values, DEPENDENT[0].first_tables())
    tables = level_tables(search)
    for wrong in (
        (terms, values, 3),
        (terms, values[:, :7], 1),
        (terms, values.astype(np.float64), 1),
        (replace(terms, masks=terms.masks + 128), values, 1),
        (replace(terms, columns=terms.columns + 1), values, 1),
        (replace(terms, bits=3), values, 1),
        (replace(terms, weights=terms.weights[:1]), values, 1),
    ):
        with pytest.raises(ValueError, match="a kernel was given"):
            search_trellis(lib, *wrong)
    for mask, own, table in (
        (0b100, values, tables),
        (1 << 8 | 1, values, tables),
        (MASK, values.astype(np.float64), tables),
        (MASK, values, tables._replace(places=[part[1:] for part in tables.places])),
        (MASK, values, tables._replace(levels=[part + 126 for part in tables.levels])),
    ):
        with pytest.raises(ValueError, match="a kernel was given"):
            search_dependent(lib, mask, [own], [table])
