"""Rivals must be as good as their methods allow: files decode to what the papers say, and errors fall with bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rivals.d_qrelo import DQReLO
from rivals.delta_come import DeltaCome
from rivals.dense import DenseChange
from rivals.loraquant import LoraQuant, RangeLevels, refine
from rivals.sign_factors import SignFactors, amplified, best_gain
from rivals.ultra_delta import UltraDelta
from svd_codecs.columns import Component, component

SHAPES = ((96, 64), (64, 64), (96, 64), (130, 200))
RANK = 6


@pytest.fixture(scope="module")
def components() -> list[Component]:
    rng = np.random.default_rng(3)
    decay = 1.6 ** -np.arange(RANK)
    return [
        component(
            f"m{i}",
            (rng.standard_normal((n, RANK)) * decay).astype(np.float32),
            rng.standard_normal((RANK, m)).astype(np.float32),
            2.0,
        )
        for i, (n, m) in enumerate(SHAPES)
    ]


def lost(components: list[Component], deltas: dict[str, tuple[Any, Any]]) -> float:
    error = energy = 0.0
    for c in components:
        whole = (c.u * c.s) @ c.v.T
        b, a = deltas[c.name]
        error += float(((whole - b @ a) ** 2).sum())
        energy += float((whole**2).sum())
    return error / energy


@pytest.fixture(scope="module")
def change() -> DenseChange:
    rng = np.random.default_rng(5)
    found = {}
    for i, (n, m) in enumerate(((192, 256), (256, 192), (200, 200))):
        left = rng.standard_normal((n, 60)) * 1.2 ** -np.arange(60)
        found[f"m{i}"] = (left @ rng.standard_normal((60, m)) * 10.0**i).astype(np.float32)
        found[f"norm{i}"] = rng.standard_normal(20).astype(np.float32)
    return DenseChange(found)


def error_of(change: DenseChange, made: Any) -> float:
    assert set(made) == set(change.found)
    share = [((made[name] - delta) ** 2).sum() / (delta**2).sum() for name, delta in change.matrices.items()]
    assert all(np.allclose(made[name], vector, rtol=1e-3) for name, vector in change.vectors.items())
    return float(np.mean(share))


def test_loraquant_at_many_bits_is_the_adapter(components: list[Component]) -> None:
    count, deltas = LoraQuant(1.0, 8, RANK)(components)
    assert lost(components, deltas) < 2e-4
    numbers = RANK * sum(n + m for n, m in SHAPES)
    assert 0.9 * numbers < count < 1.2 * numbers


def test_loraquant_spends_bits_on_the_strong_components(components: list[Component]) -> None:
    files = [LoraQuant(share, 2, RANK)(components) for share in (0.5, 0.9, 1.0)]
    sizes, errors = [file[0] for file in files], [lost(components, file[1]) for file in files]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    count, deltas = LoraQuant(0.9, 2, 2)(components)
    assert count < sizes[0]
    assert all(b.shape[1] == 2 for b, _ in deltas.values())


def test_refinement_never_loses(components: list[Component]) -> None:
    u, v = components[3].u.T.copy(), components[3].v.T.copy()
    keep = RangeLevels(2)

    def errors(x: Any, y: Any) -> Any:
        p, q = keep(x).values, keep(y).values
        return 1 - 2 * (u * p).sum(1) * (v * q).sum(1) + (p * p).sum(1) * (q * q).sum(1)

    plain, refined = errors(u, v), errors(*refine(u, v, keep, 50))
    assert (refined <= plain + 1e-6).all()
    assert refined.mean() < 0.8 * plain.mean()


def test_range_levels_hold_zero_and_the_ends() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 300)).astype(np.float32)
    rows[1] = 0
    coded = RangeLevels(3)(rows)
    assert coded.codes is not None
    assert coded.codes.max() < 8
    assert not coded.values[1].any()
    for group in (slice(0, 128), slice(128, 256), slice(256, 300)):
        assert len(np.unique(coded.values[0, group])) <= 8
    fine = RangeLevels(8)(rows)
    assert np.abs(fine.values - rows).max() < np.ptp(rows) / 255


def test_sign_factors_are_signs_with_scales(components: list[Component]) -> None:
    plain, deltas = SignFactors(RANK, envelopes=False, steps=40)(components)
    for b, a in deltas.values():
        assert set(np.unique(a)) <= {-1.0, 1.0}
        assert all(len(np.unique(np.abs(column))) == 1 for column in b.T)
    numbers = RANK * sum(n + m for n, m in SHAPES)
    assert numbers / 8 < plain < numbers / 8 + 12 * RANK * len(SHAPES) + 200
    channels, finer = SignFactors(RANK, envelopes=True, steps=40)(components)
    assert plain < channels
    assert lost(components, finer) < lost(components, deltas) < 0.6


def test_fitting_sign_factors_helps(components: list[Component]) -> None:
    start, fitted = (SignFactors(RANK, envelopes=True, steps=steps)(components)[1] for steps in (0, 60))
    assert lost(components, fitted) < 0.9 * lost(components, start)


def test_the_gain_is_the_best_of_those_tried(components: list[Component]) -> None:
    whole = {c.name: (c.u * (0.5 * c.s), c.v.T) for c in components}
    gain, losses = best_gain(whole, (1.0, 2.0, 3.0), lambda deltas: lost(components, deltas))
    assert gain == 2.0
    assert losses[2.0] == pytest.approx(0, abs=1e-9)
    assert losses[3.0] == pytest.approx(lost(components, amplified(whole, 3.0)))


@pytest.mark.parametrize("ratio", [8, 32])
def test_files_for_dense_changes_fit(ratio: int, change: DenseChange) -> None:
    limit = 2 * sum(delta.size for delta in change.found.values()) // ratio
    for file in (DeltaCome(change)(limit), UltraDelta(4)(change, limit), DQReLO(0.5)(change, limit)):
        assert 0.8 * limit < file.bytes <= limit, file.what
    errors = [error_of(change, DeltaCome(change)(size).changes) for size in (limit, 4 * limit)]
    assert errors[1] < errors[0] < 0.6


def test_ultra_delta_with_everything_kept_is_rounding(change: DenseChange) -> None:
    file = UltraDelta(8)(change, 10**9)
    assert "100.0% kept" in file.what
    assert error_of(change, file.changes) < 2e-3
    for name, delta in change.matrices.items():
        step = np.abs(delta).max() / 127
        assert np.abs(file.changes[name] - delta).max() < 0.51 * step


def test_ultra_delta_enlarges_what_stays(change: DenseChange) -> None:
    limit = 20_000
    one, two, other = (
        UltraDelta(4, seed, factor)(change, limit).changes for seed, factor in ((0, 1.0), (0, 0.5), (1, 1.0))
    )
    for name, delta in change.matrices.items():
        kept = one[name] != 0
        np.testing.assert_allclose(two[name], one[name] / 2, rtol=1e-5)
        assert 0.01 < kept.mean() < 0.9
        assert (kept != (other[name] != 0)).any()
        expected = (one[name] * delta).sum() / (delta**2).sum()
        assert 0.6 < expected < 1.4  # the dropped share is made up for


def test_d_qrelo_is_signs_and_what_they_miss(change: DenseChange) -> None:
    file = DQReLO(None)(change, 0)
    for name, delta in change.matrices.items():
        scale = float(np.float16(np.abs(delta).mean()))
        np.testing.assert_allclose(np.abs(file.changes[name]), scale, rtol=1e-3)
        assert ((file.changes[name] < 0) == (delta < 0)).all()
    finer = DQReLO(None)(change, 30_000)
    assert 0 < finer.bytes - file.bytes <= 30_000
    assert error_of(change, finer.changes) < 0.6 * error_of(change, file.changes)
