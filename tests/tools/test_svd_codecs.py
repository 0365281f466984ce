"""Peers of a comparison must be as good as they can be: their errors are checked against dense products."""

from __future__ import annotations

import numpy as np
import pytest
from svd_codecs.columns import RESIZE_RULES, Bank, Component, Mix, component, scores
from svd_codecs.file import FileWriter
from svd_codecs.svd import EVERY_RULE, rounded, svd_peers

from nola_codec.reporting.rounding import Half, Integers

SHAPES = ((96, 64), (64, 64), (33, 130))
RANK = 6


@pytest.fixture(scope="module")
def factors() -> list[tuple[np.ndarray, np.ndarray, float]]:
    rng = np.random.default_rng(3)
    decay = 2.0 ** -np.arange(RANK)
    return [
        (
            (rng.standard_normal((n, RANK)) * decay).astype(np.float32),
            rng.standard_normal((RANK, m)).astype(np.float32),
            scaling,
        )
        for (n, m), scaling in zip(SHAPES, (2.0, -0.5, 8.0), strict=True)
    ]


@pytest.fixture(scope="module")
def components(factors: list[tuple[np.ndarray, np.ndarray, float]]) -> list[Component]:
    return [component(f"m{i}", b, a, scaling) for i, (b, a, scaling) in enumerate(factors)]


def dense(item: tuple[np.ndarray, np.ndarray, float]) -> np.ndarray:
    b, a, scaling = item
    return np.asarray(scaling * b.astype(np.float64) @ a)


def test_components_are_the_delta(
    factors: list[tuple[np.ndarray, np.ndarray, float]], components: list[Component]
) -> None:
    for item, c in zip(factors, components, strict=True):
        np.testing.assert_allclose((c.u * c.s) @ c.v.T, dense(item), rtol=0, atol=1e-5 * np.abs(dense(item)).max())
        assert (np.diff(c.s) <= 0).all()
    short = component("short", np.ones((2, RANK), np.float32), np.ones((RANK, 50), np.float32), 1.0)
    assert short.u.shape == (2, 2)  # no more components than there can be


@pytest.mark.parametrize("threshold", [0.02, 0.5, 20.0])
def test_errors_without_the_dense_product_are_those_with_it(
    threshold: float, factors: list[tuple[np.ndarray, np.ndarray, float]], components: list[Component]
) -> None:
    bank = Bank(components, [Integers(3), Half()])
    labels = Mix("global", {1: 4.0, 0: 1.0}).labels(scores(components, "global"), threshold)
    lost = energy = 0.0
    for item, (b, a) in zip(factors, bank.decoded(labels), strict=True):
        lost += float(((dense(item) - b @ a) ** 2).sum())
        energy += float((dense(item) ** 2).sum())
    assert bank.nmse(labels) == pytest.approx(lost / energy, rel=1e-4, abs=1e-7)  # components are in float32


def test_truncation_loses_what_it_drops(components: list[Component]) -> None:
    bank = Bank(components, [Half()])
    labels = Mix("rank", {0: 1.0}).labels(scores(components, "rank"), 1 / 3)
    assert ((labels == 0).sum(1) == 3).all()
    lost = sum(float((c.s[3:] ** 2).sum()) for c in components) / sum(float((c.s**2).sum()) for c in components)
    assert bank.nmse(labels) == pytest.approx(lost, rel=1e-3)
    numbers = 3 * sum(n + m for n, m in SHAPES)
    assert 2 * numbers < len(bank.write(labels, compress=False)) < 2 * numbers + 100
    assert bank.estimate(labels) == 2 * numbers


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_the_rules_of_resize_lora_look_at_a_module_alone(rule: str, components: list[Component]) -> None:
    score = scores(components, rule)
    louder = [Component(c.name, c.u, c.s * 10**i, c.v) for i, c in enumerate(components)]
    np.testing.assert_allclose(scores(louder, rule), score)
    assert not np.allclose(scores(louder, "global"), scores(components, "global"))
    assert (score[:, 0] == score.max()).all()  # so each module keeps one component before any keeps two


def test_cumulative_and_frobenius_shares(components: list[Component]) -> None:
    """`sv_cumulative 0.7` keeps the fewest leading values whose sum reaches 70% of all; `sv_fro` sums squares."""
    for rule, power in (("cumulative", 1), ("fro", 2)):
        labels = Mix(rule, {0: 1.0}).labels(scores(components, rule), 0.3 + 1e-9)
        for c, row in zip(components, labels, strict=True):
            reached = np.cumsum(c.s**power) / (c.s**power).sum()
            assert (row == 0).sum() == np.searchsorted(reached, 0.7) + 1


@pytest.mark.parametrize("nmse", [0.3, 0.1, 0.03])
def test_a_peer_meets_the_error_and_takes_its_best_rule(nmse: float, components: list[Component]) -> None:
    best = rounded("any", components, [Half()], EVERY_RULE, compress=False).best_at(nmse)
    assert best is not None
    assert 0 < best.nmse <= nmse
    alone = [rounded(rule, components, [Half()], [rule], compress=False).best_at(nmse) for rule in EVERY_RULE]
    assert best.bytes == min(point.bytes for point in alone if point is not None)
    bank = Bank(components, [Half()])
    tried = []
    for rule in EVERY_RULE:
        score = scores(components, rule)
        for threshold in score.ravel():
            labels = Mix(rule, {0: 1.0}).labels(score, threshold)
            if bank.nmse(labels) <= nmse:
                tried.append(len(bank.write(labels, compress=False)))
    assert best.bytes == min(tried)


def test_what_rounding_cannot_reach_is_none(components: list[Component]) -> None:
    made = {name: make() for name, make in svd_peers(components).items()}
    assert all(peer.name == name for name, peer in made.items())
    assert made["SVD int4/64 + zstd"].best_at(1e-4) is None
    fine = made["SVD int8/64 + zstd"].best_at(1e-3)
    coarse = made["SVD int4/64 + zstd"].best_at(0.1)
    half = made["SVD fp16, one threshold"].best_at(0.1)
    assert fine is not None
    assert coarse is not None
    assert half is not None
    assert coarse.bytes < half.bytes
    resized = made["SVD fp16, resize_lora"].best_at(0.1)
    assert resized is not None
    assert "by global" not in resized.setting


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers_fit_their_width(bits: int) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 100))
    rows[2] = 0
    coded = Integers(bits)(rows)
    assert coded.codes is not None
    assert coded.codes.max() < 2**bits
    assert coded.side[0].shape == (5, 2)
    error = ((rows - coded.values) ** 2).sum() / (rows**2).sum()
    assert error < {2: 0.2, 3: 0.05, 4: 0.015, 8: 1e-4}[bits]
    assert not coded.values[2].any()


def test_a_compressed_file_is_no_larger() -> None:
    coded = Integers(4)(np.random.default_rng(2).standard_normal((40, 640)))
    sizes = []
    for compress in (False, True):
        writer = FileWriter(["header"], compress)
        writer.add(coded, np.arange(40))
        sizes.append(len(writer.blob()))
    assert sizes[1] < sizes[0]
    assert sizes[0] >= 40 * 640 // 2 + 40 * 10 * 2
