"""Singular components are those of the dense SVD, but the dense product is never made."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from nola_codec.fit.components import delta_energy, delta_inner, singular_components, squared_error


def factors(out: int, columns: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    decay = 2.0 ** -np.arange(rank)
    return (
        (rng.standard_normal((out, rank)) * decay).astype(np.float32),
        rng.standard_normal((rank, columns)).astype(np.float32),
    )


def product(lora_B: np.ndarray, lora_A: np.ndarray) -> np.ndarray:
    return lora_B.astype(np.float64) @ lora_A.astype(np.float64)


@pytest.mark.parametrize(("out", "columns", "rank"), [(40, 24, 6), (7, 53, 4), (1, 9, 1), (5, 30, 8), (30, 3, 6)])
def test_equals_the_dense_svd(out: int, columns: int, rank: int) -> None:
    b, a = factors(out, columns, rank)
    parts = singular_components(b, a)
    assert parts.u.shape == (rank, out)
    assert parts.v.shape == (rank, columns)
    exists = min(out, columns, rank)
    dense = np.linalg.svd(product(b, a), compute_uv=False)
    np.testing.assert_allclose(parts.s[:exists], dense[:exists], rtol=1e-6)
    assert not parts.s[exists:].any()
    assert not parts.u[exists:].any()
    assert not parts.v[exists:].any()
    np.testing.assert_allclose((parts.u.T * parts.s) @ parts.v, product(b, a), atol=1e-5 * dense[0])
    for rows in (parts.u[:exists], parts.v[:exists]):
        np.testing.assert_allclose(rows @ rows.T, np.eye(exists), atol=1e-5)


def test_a_deficient_rank_leaves_zero_singular_values() -> None:
    b, a = factors(20, 30, 5)
    b[:, 3] = b[:, 1]
    a[4] = 0
    parts = singular_components(b, a)
    assert (parts.s > 1e-6 * parts.s[0]).sum() == 3
    np.testing.assert_allclose((parts.u.T * parts.s) @ parts.v, product(b, a), atol=1e-5 * parts.s[0])


def test_zero_factors_are_zero_and_finite() -> None:
    _, a = factors(12, 10, 4)
    parts = singular_components(np.zeros((12, 4), np.float32), a)
    assert not parts.s.any()
    assert np.isfinite(parts.u).all()
    assert np.isfinite(parts.v).all()


def test_equal_deltas_have_equal_components() -> None:
    b, a = factors(20, 30, 3)
    mixing = np.array([[2.0, 1.0, 0.0], [0.0, -1.0, 0.5], [0.0, 0.0, 4.0]])
    first = singular_components(b, a)
    second = singular_components((b @ mixing).astype(np.float32), np.linalg.solve(mixing, a).astype(np.float32))
    np.testing.assert_allclose(first.s, second.s, rtol=1e-5)
    np.testing.assert_allclose(first.u, second.u, atol=1e-4)
    np.testing.assert_allclose(first.v, second.v, atol=1e-4)


def test_the_product_is_never_formed() -> None:
    b, a = factors(200_000, 200_000, 2)
    other = (b * np.float32(0.9)).astype(np.float32)
    tracemalloc.start()
    try:
        parts = singular_components(b, a)
        lost = squared_error(b, a, other, a) / delta_energy(b, a)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # the product would take 160 GB
    assert parts.s[0] > parts.s[1] > 0
    assert lost == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("other_rank", [1, 4, 9])
def test_squared_error_is_the_dense_one(other_rank: int) -> None:
    b, a = factors(31, 17, 4)
    d, c = factors(31, 17, other_rank, seed=1)
    assert squared_error(b, a, d, c) == pytest.approx(((product(b, a) - product(d, c)) ** 2).sum(), rel=1e-9)
    assert delta_energy(b, a) == pytest.approx((product(b, a) ** 2).sum(), rel=1e-9)
    pairs = [(b, a), (d, c)]
    assert delta_inner(pairs, [(d, c)]) == pytest.approx(
        ((product(b, a) + product(d, c)) * product(d, c)).sum(), rel=1e-9
    )


def test_squared_error_of_equals_is_nearly_zero_and_never_negative() -> None:
    b, a = factors(64, 64, 8)
    assert 0 <= squared_error(b, a, b, a) < 1e-13 * delta_energy(b, a)
