"""The factor form keeps the energy that mathematics promises."""

from __future__ import annotations

import numpy as np
import pytest

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES, BasisKey, basis_by_id
from nola_codec.fit.projection import FactorBasis, fit_projection
from nola_codec.model.quantizers import Codebook
from nola_codec.prng import PHILOX
from nola_codec.quant.codebooks import integer_codebook, lloyd_max_codebook

OUT, COLUMNS, RANK = 24, 40, 3
BASES = ("hadamard", "rademacher", "uniform")


def factors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    decay = 0.6 ** np.arange(RANK)
    return (
        (rng.standard_normal((OUT, RANK)) * decay).astype(np.float32),
        rng.standard_normal((RANK, COLUMNS)).astype(np.float32),
    )


def bases(name: str, counts: tuple[int, int], rank: int = RANK) -> tuple[FactorBasis, FactorBasis]:
    lengths = (OUT * rank, rank * COLUMNS)
    first, second = (
        FactorBasis(NAMES[name], BasisKey(PHILOX, 5, side), lengths[side], counts[side]) for side in (0, 1)
    )
    return first, second


def rows_of(name: str, length: int, count: int, side: int) -> np.ndarray:
    identity = np.eye(count, dtype=np.int64)[None]
    made = basis_by_id(NAMES[name]).synthesize(identity, length, (BasisKey(PHILOX, 5, side),), 1, NUMPY)
    return np.asarray(made[0], np.float64)


def best_projections(name: str, counts: tuple[int, int]) -> float:
    """Return the energy that is kept if each balanced factor is projected on the span of its basis."""
    b, a = (f.astype(np.float64) for f in factors())
    u, s, vt = np.linalg.svd(b @ a, full_matrices=False)
    balanced = (u[:, :RANK] * np.sqrt(s[:RANK]), np.sqrt(s[:RANK])[:, None] * vt[:RANK])
    near = []
    for side, factor in enumerate(balanced):
        rows = rows_of(name, factor.size, counts[side], side)
        found = np.linalg.lstsq(rows.T, factor.reshape(-1), rcond=None)[0]
        near.append((found @ rows).reshape(factor.shape))
    return float(1 - ((b @ a - near[0] @ near[1]) ** 2).sum() / ((b @ a) ** 2).sum())


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("counts", [(12, 20), (30, 50), (60, 100)])
def test_at_least_the_energy_of_the_best_projections(name: str, counts: tuple[int, int]) -> None:
    fit = fit_projection(*factors(), RANK, bases(name, counts), lloyd_max_codebook(4))
    assert fit.energy_kept >= fit.energy_bound
    assert fit.energy_kept >= best_projections(name, counts)
    assert fit.energy_kept < 1


@pytest.mark.parametrize(("name", "least"), [("hadamard", 1 - 1e-6), ("rademacher", 0.98), ("uniform", 0.98)])
def test_a_full_basis_keeps_everything(name: str, least: float) -> None:
    fit = fit_projection(*factors(), RANK, bases(name, (OUT * RANK, RANK * COLUMNS)), integer_codebook(16))
    assert least <= fit.energy_kept <= 1 + 1e-9


def test_more_coefficients_keep_more() -> None:
    kept = [
        fit_projection(*factors(), RANK, bases("hadamard", (k, k)), lloyd_max_codebook(4)).energy_kept
        for k in (4, 16, 40, 72)
    ]
    assert kept == sorted(kept)
    assert kept[-1] - kept[0] > 0.5


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(
    "codebook", [lloyd_max_codebook(4), lloyd_max_codebook(8), integer_codebook(16)], ids=["4", "8", "16"]
)
def test_what_is_quantized_is_near_what_was_fitted(name: str, codebook: Codebook) -> None:
    counts = (50, 80)
    fit = fit_projection(*factors(), RANK, bases(name, counts), codebook)
    made = []
    for side, shape in enumerate(((OUT, RANK), (RANK, COLUMNS))):
        rows = rows_of(name, shape[0] * shape[1], counts[side], side)
        rows /= np.sqrt(basis_by_id(NAMES[name]).norm2(rows.shape[1]))
        values = fit.scales[side] * np.array(codebook.points, np.float64)[fit.symbols[side]]
        made.append((values @ rows).reshape(shape))
    b, a = (f.astype(np.float64) for f in factors())
    kept = 1 - ((b @ a - made[0] @ made[1]) ** 2).sum() / ((b @ a) ** 2).sum()
    # A small basis scales the factors badly, so that rounding costs more than the 1% of a Gaussian for each.
    loss = {16: 0.15, 256: 2e-3, 65536: 1e-5}[codebook.size]
    assert fit.energy_kept - loss < kept <= fit.energy_kept + 0.01


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_other_ranks_are_fitted(rank: int) -> None:
    counts = (OUT * rank, rank * COLUMNS)
    fit = fit_projection(*factors(), rank, bases("hadamard", counts, rank), integer_codebook(16))
    b, a = (f.astype(np.float64) for f in factors())
    s = np.linalg.svd(b @ a, compute_uv=False)
    assert fit.energy_kept == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum(), abs=1e-5)


def test_a_zero_delta_is_zero() -> None:
    b, a = factors()
    fit = fit_projection(np.zeros_like(b), a, RANK, bases("hadamard", (10, 10)), integer_codebook(9))
    assert (fit.energy_kept, fit.energy_bound) == (1.0, 1.0)
    assert {integer_codebook(9).points[s] for side in fit.symbols for s in side} == {0}


def test_a_dense_basis_is_kept_or_refused() -> None:
    key = BasisKey(PHILOX, 5, 0)
    with pytest.raises(MemoryError, match="does not fit in 256 MiB"):
        FactorBasis(NAMES["rademacher"], key, 1 << 20, 1 << 10).synthesize(np.zeros(1 << 10))
