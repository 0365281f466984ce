"""Points of peers, against dense products and the encoder's own objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nola_codec.fit.allocation import EFFECTIVE
from nola_codec.fit.canonical_form import LORA_A, LORA_B
from nola_codec.fit.components import singular_components
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.reporting.peers import PeerPoint, measure_peers
from nola_codec.reporting.rounding import Integers


def module(seed: int, rank: int, scaling: float = 2.0) -> LoraModule:
    rng = np.random.default_rng(seed)
    lora_A = rng.standard_normal((rank, 96)).astype(np.float32)
    lora_B = (rng.standard_normal((128, rank)) * 0.7 ** np.arange(rank)).astype(np.float32)
    return LoraModule(f"layers.{seed}.q_proj", lora_A, lora_B, lora_A.shape, lora_B.shape, scaling)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(dialect="peft", modules=(module(0, 8), module(1, 3, -0.5)))


@pytest.fixture(scope="module")
def points(adapter: Adapter) -> dict[tuple[str, int], PeerPoint]:
    return {(each.name, each.rank): each for each in measure_peers(adapter)}


def test_ranks_are_powers_of_two(points: dict[tuple[str, int], PeerPoint]) -> None:
    assert sorted({rank for _, rank in points}) == [1, 2, 4, 8]
    assert len(points) == 12


def test_a_truncated_svd_loses_what_it_drops(adapter: Adapter, points: dict[tuple[str, int], PeerPoint]) -> None:
    values = [np.linalg.svd(m.scaling * m.lora_B @ m.lora_A, compute_uv=False).astype(float) for m in adapter.modules]
    energy = sum((s**2).sum() for s in values)
    for rank in (1, 2, 4):
        lost = sum((s[rank:] ** 2).sum() for s in values) / energy
        point = points["SVD in fp16", rank]
        assert point.nmse == pytest.approx(lost, rel=1e-3)
        assert point.effective_error == pytest.approx(lost, rel=1e-3)
        assert point.bytes == 2 * (rank + min(rank, 3)) * (128 + 96)
        assert point.ratio == 2 * adapter.parameters / point.bytes
    assert points["SVD in fp16", 8].nmse < 1e-6


def test_a_rounded_svd_against_dense_products(adapter: Adapter, points: dict[tuple[str, int], PeerPoint]) -> None:
    lost = energy = 0.0
    for m in adapter.modules:
        parts = singular_components(m.lora_B, m.lora_A)
        root = np.sqrt(parts.s[:2, None])
        left, right = (Integers(2, 64)((side[:2] * root).astype(np.float32)).values for side in (parts.u, parts.v))
        exact = m.lora_B.astype(float) @ m.lora_A
        lost += m.scaling**2 * np.square(exact - left.T.astype(float) @ right).sum()
        energy += m.scaling**2 * np.square(exact).sum()
    assert points["SVD in 2 bits", 2].nmse == pytest.approx(lost / energy, rel=1e-6)


def test_the_effective_error_is_that_of_the_encoder() -> None:
    """A gain t would make it 1 - 2 t signal + t^2 felt; at the best t that is the encoder's 1 - A_u A_v."""
    m = module(5, 1, 1.0)
    point = next(each for each in measure_peers(Adapter(dialect="peft", modules=(m,))) if "2 bits" in each.name)
    parts = singular_components(m.lora_B, m.lora_A)
    survival, signal = 1.0, 1 / parts.s[0]
    for role, unit in ((LORA_B, parts.u[0]), (LORA_A, parts.v[0])):
        stored = Integers(2, 64)((unit * np.sqrt(parts.s[0])).astype(np.float32)[None]).values[0].astype(float)
        survival *= float(EFFECTIVE.survival(np.array((unit @ stored) ** 2 / (stored @ stored)), role))
        signal *= float(unit @ stored)
    felt = point.effective_error - 1 + 2 * signal
    assert signal**2 / felt == pytest.approx(survival, rel=1e-5)
    assert point.effective_error < point.nmse / 5  # most of the error is noise


def test_fewer_bits_are_fewer_bytes(points: dict[tuple[str, int], PeerPoint]) -> None:
    sizes = [points[name, 4].bytes for name in ("SVD in 2 bits", "SVD in 4 bits", "SVD in fp16")]
    assert sizes == sorted(sizes)
    assert sizes[1] < 2 * sizes[2] / 5


def test_other_tensors_count_in_fp16(adapter: Adapter, points: dict[tuple[str, int], PeerPoint]) -> None:
    vector = VectorTensor("layers.0.bias", np.ones(64, np.float32), "F32")
    found = {(each.name, each.rank): each for each in measure_peers(replace(adapter, vectors=(vector,)))}
    for key, point in found.items():
        assert point.bytes == points[key].bytes + 128
        assert point.nmse < points[key].nmse


def test_no_peers_without_whole_deltas(adapter: Adapter) -> None:
    part = replace(adapter.modules[0], gain=3.0)
    assert measure_peers(replace(adapter, modules=(part,))) == ()
    assert measure_peers(replace(adapter, modules=())) == ()
    zero = replace(adapter.modules[0], lora_B=np.zeros_like(adapter.modules[0].lora_B))
    assert measure_peers(replace(adapter, modules=(zero,))) == ()
