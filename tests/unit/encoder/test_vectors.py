"""Tensors coded as vectors, beside modules and alone: rates, objectives, rungs, reports, and what they decode to."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nola_forge import reference, verify

import nola_codec
from nola_codec.api.inspecting import inspect
from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.container.reader import open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor

OPTIONS: dict[str, dict[str, Any]] = {
    "nmse": {"nmse": 0.02},
    "effective": {"error": 0.03},
    "size": {"size": 2500},
    "ladder": {"nmse": 0.05, "rungs": (900, 1500)},
    "effective ladder": {"error": 0.05, "rungs": (700,)},
    "paper": {"num_basis": 40, "bits": 4},
    "paper, dense basis": {"num_basis": 40, "bits": 3, "basis": "rademacher"},
    "shared basis": {"nmse": 0.1, "shared_basis": True},
}


def module(rng: np.random.Generator, name: str, out: int = 32, columns: int = 48, **extra: Any) -> LoraModule:
    lora_b = (rng.standard_normal((out, 3)) * 0.05 * 0.5 ** np.arange(3)).astype(np.float32)
    lora_a = rng.standard_normal((3, columns)).astype(np.float32) * np.float32(0.1)
    return LoraModule(name, lora_a, lora_b, lora_a.shape, lora_b.shape, 2.0, **extra)


def vector(rng: np.random.Generator, name: str, size: float, *shape: int, **extra: Any) -> VectorTensor:
    return VectorTensor(name, (rng.standard_normal(shape) * size).astype(np.float32), **extra)


@pytest.fixture
def adapter() -> Adapter:
    rng = np.random.default_rng(3)
    vectors = (
        vector(rng, "layers.1.up.diff", 0.01, 24, 40),
        vector(rng, "layers.0.up.diff", 0.01, 24, 40),
        vector(rng, "layers.0.conv.diff", 0.02, 8, 6, 3, 3, gain=0.5),
        vector(rng, "layers.0.norm.diff", 0.05, 32),
        vector(rng, "layers.0.bias", 0.02, 7, dtype="F16"),
        vector(rng, "scale", 1.0),
        VectorTensor("zero", np.zeros((3, 5), np.float32)),
    )
    return Adapter("peft", (module(rng, "layers.1.q"), module(rng, "layers.0.q")), vectors=vectors)


def squared(x: Any) -> float:
    return float(np.square(np.asarray(x, np.float64)).sum())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_what_is_reported_is_what_a_reader_gets(adapter: Adapter, options: dict[str, Any]) -> None:
    data, report = encode_adapter(adapter, EncodeOptions(**options), source_bytes=0)
    verify(data)
    assert reference().decode(data)[2] == inspect(data).decoded_sha256
    if "size" in options:
        assert 0.9 * options["size"] < len(data) <= options["size"]
    rows = {t.name: t for t in report.tensors}
    assert [t.name for t in report.tensors] == [
        "layers.0.q", "layers.1.q", "scale", "zero", "layers.0.bias", "layers.0.conv.diff", "layers.0.norm.diff",
        "layers.0.up.diff", "layers.1.up.diff",
    ]  # fmt: skip
    lost = energy = 0.0
    with nola_codec.load(data) as opened:
        tensors = {name: t.numpy() for name, t in opened.state_dict().items()}
        assert opened.names() == ["layers.0.q", "layers.1.q"]
        assert sorted(opened.vector_names()) == sorted(v.name for v in adapter.vectors)
        for item in adapter.vectors:
            made = opened.vector(item.name).numpy()
            assert made.dtype == np.float32
            assert made.shape == item.values.shape
            assert made.tolist() == tensors[item.name].tolist()
            own = item.gain**2 * squared(item.values)
            error = item.gain**2 * squared(item.values - made)
            assert rows[item.name].nmse == pytest.approx(error / own if own else 0.0, rel=1e-6)
            assert rows[item.name].energy == pytest.approx(own)
            assert (rows[item.name].shape, rows[item.name].rank) == (item.values.shape, None)
            lost, energy = lost + error, energy + own
        for m in adapter.modules:
            own = squared(2 * m.lora_B.astype(np.float64) @ m.lora_A)
            b, a = tensors[f"{m.name}.lora_B.weight"], tensors[f"{m.name}.lora_A.weight"]
            lost += squared(2 * (m.lora_B.astype(np.float64) @ m.lora_A - b.astype(np.float64) @ a))
            energy += own
    assert report.nmse == pytest.approx(lost / energy, rel=1e-5)
    if "nmse" in options:
        assert report.nmse <= options["nmse"]
    for rung in range(1, len(report.rungs)):
        assert report.rungs[rung]["nmse"] < report.rungs[rung - 1]["nmse"] or "error" in options


def test_a_gain_moves_bits(adapter: Adapter) -> None:
    """With a gain of four the same tensor is coded better, since its error counts sixteen times in the NMSE."""
    louder = replace(adapter, vectors=tuple(replace(v, gain=4.0) if "0.up" in v.name else v for v in adapter.vectors))
    before, after = (
        {t.name: t for t in encode_adapter(a, EncodeOptions(nmse=0.1), source_bytes=0)[1].tensors}
        for a in (adapter, louder)
    )
    assert after["layers.0.up.diff"].energy == pytest.approx(16 * before["layers.0.up.diff"].energy)
    assert after["layers.0.up.diff"].nmse < 0.5 * before["layers.0.up.diff"].nmse
    assert after["layers.1.up.diff"].nmse > before["layers.1.up.diff"].nmse


def test_a_gain_of_a_module_stands_for_its_scaling(adapter: Adapter) -> None:
    doubled = replace(adapter, modules=tuple(replace(m, gain=1.0) for m in adapter.modules))
    energies = [
        [t.energy for t in encode_adapter(a, EncodeOptions(nmse=0.1), source_bytes=0)[1].tensors[:2]]
        for a in (adapter, doubled)
    ]
    assert energies[0] == pytest.approx([4 * e for e in energies[1]])


def test_noise_is_for_dense_tensors_and_not_for_norms(adapter: Adapter) -> None:
    """In the effective objective, a dense tensor may have more noise than energy, and a norm or a bias hardly any."""
    _, report = encode_adapter(adapter, EncodeOptions(error=0.05), source_bytes=0)
    rows = {t.name: t.nmse for t in report.tensors}
    assert min(rows[n] for n in rows if n.endswith("up.diff")) > 0.3
    assert max(rows[n] for n in ("layers.0.norm.diff", "scale")) < 0.05


def test_only_vectors() -> None:
    rng = np.random.default_rng(0)
    alone = Adapter("peft", (), vectors=(vector(rng, "x", 1.0, 5000), vector(rng, "y", 0.1, 70, 33)))
    data, report = encode_adapter(alone, EncodeOptions(nmse=0.1), source_bytes=0)
    assert len(data) < 1.2 * (0.5 * np.log2(10) * 5000 / 8) + 300  # Gaussian: log2(1 / D) / 2 bits a number
    assert report.nmse <= 0.1


def test_long_tensors_have_scalar_quantizers_alone() -> None:
    """A search with memory goes step by step, which would take minutes for one tensor of a million elements."""
    rng = np.random.default_rng(0)
    long = Adapter("peft", (), vectors=(vector(rng, "w.diff", 0.01, 512, 700),))
    data, report = encode_adapter(long, EncodeOptions(size=30_000), source_bytes=0)
    verify(data)
    assert 0.98 * 30_000 < len(data) <= 30_000
    assert report.seconds < 60


def test_an_empty_tensor_is_refused() -> None:
    alone = Adapter("peft", (), vectors=(VectorTensor("x", np.zeros((0, 4), np.float32)),))
    with pytest.raises(EncodeError) as caught:
        encode_adapter(alone, EncodeOptions(nmse=0.1), source_bytes=0)
    assert caught.value.code == "empty-tensor"


@settings(max_examples=15)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=4),
    size=st.floats(1e-6, 1e6),
    options=st.sampled_from([*OPTIONS.values()]),
    seed=st.integers(0, 2**32),
)
def test_any_shapes(shapes: list[list[int]], size: float, options: dict[str, Any], seed: int) -> None:
    """Every reader gets the same bits: NumPy in any chunks, torch, and the reference decoder."""
    rng = np.random.default_rng(seed)
    vectors = tuple(vector(rng, f"v.{i}", size, *shape) for i, shape in enumerate(shapes))
    parts = Adapter("peft", (module(rng, "q", 5, 6),), vectors=vectors)
    try:
        data, _ = encode_adapter(parts, EncodeOptions(**options, seed=seed), source_bytes=0)
    except EncodeError as error:
        if error.code != "unreachable":  # tensors this small may have no quantizer for a target
            raise
        return
    digest = reference().decode(data)[2]
    for xp, chunk in ((NUMPY, 1), (NUMPY, 1 << 20), (TorchArrays(), 7)):
        with open_container(data) as container:
            Decoder(container, xp, chunk).decode_all()
            assert container.header.decoded_sha256.hex() == digest


@pytest.mark.parametrize("lengths", [(256,), (100,) * 6])
def test_a_larger_size_is_no_worse_where_tables_are_most_of_a_file(lengths: tuple[int, ...]) -> None:
    """The table of the finest quantizer takes more bytes than the symbols, so that the finest plan may not fit."""
    rng = np.random.default_rng(0)
    adapter = Adapter("peft", (), vectors=tuple(vector(rng, f"v{n}", 1.0, each) for n, each in enumerate(lengths)))
    errors = []
    for size in (400, 500, 600, 700, 900):
        data, report = encode_adapter(adapter, EncodeOptions(objective="nmse", size=size), source_bytes=0)
        assert len(data) <= size
        errors.append(report.nmse)
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(errors)), errors
