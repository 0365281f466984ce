"""LoHa, LoKr and Tucker: the reported error is that of the delta, and targets hold for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nola_codec import compare, decode, encode
from nola_codec.adapters import deltas, read
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import write_tensors


def floats(*shape: int, seed: int) -> RawTensor:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return RawTensor("F32", shape, values.tobytes())


def adapter_file(path: Path, *kinds: str) -> Path:
    tensors = {}
    for number, kind in enumerate(kinds):
        stem = f"lora_unet_down_blocks_{number}_attentions_0_proj_in"
        if kind == "plain":
            shapes = {"lora_down.weight": (4, 96), "lora_up.weight": (64, 4)}
        elif kind == "loha":
            shapes = {f"hada_w{n}_{s}": (64, 4) if s == "a" else (4, 96) for n in "12" for s in "ab"}
        elif kind == "lokr":
            shapes = {"lokr_w1": (8, 8), "lokr_w2_a": (32, 4), "lokr_w2_b": (4, 48)}
        else:
            shapes = {
                "lora_down.weight": (6, 32, 1, 1),
                "lora_mid.weight": (6, 6, 3, 3),
                "lora_up.weight": (48, 6, 1, 1),
            }
        tensors |= {f"{stem}.{part}": floats(*shape, seed=number) for part, shape in shapes.items()}
        tensors[f"{stem}.alpha"] = RawTensor("F32", (), np.float32(2).tobytes())
    return write_tensors(path, tensors, {"ss_network_dim": "4"})


@pytest.mark.parametrize("kinds", [("loha",), ("lokr",), ("tucker",), ("plain", "loha", "lokr", "tucker")])
def test_the_reported_error_is_the_deltas(kinds: tuple[str, ...], tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", *kinds)
    report = encode(source, tmp_path / "out.nola", nmse=0.05)
    decoded = {
        delta.name: delta.dense() for delta in deltas(read(decode(tmp_path / "out.nola", tmp_path / "o.safetensors")))
    }
    lost = energy = 0.0
    for delta in deltas(read(source)):
        lost += float(np.square(delta.dense() - decoded[delta.name]).sum())
        energy += float(np.square(delta.dense()).sum())
    assert report.nmse == pytest.approx(lost / energy, rel=1e-6)
    assert report.nmse <= 0.05
    assert report.nmse == pytest.approx(compare(source, tmp_path / "out.nola").nmse, rel=1e-6)


def test_the_effective_target_counts_all_parts(tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "loha", "plain")
    report = encode(source, tmp_path / "out.nola", error=0.05)
    assert report.effective_error is not None
    assert report.effective_error <= 0.05


@pytest.mark.parametrize("rate", [{"size": 6000}, {"num_basis": 200, "bits": 4}, {"size": 6000, "progressive": True}])
def test_every_rate_option(rate: dict[str, int], tmp_path: Path) -> None:
    source = adapter_file(tmp_path / "in.safetensors", "plain", "loha", "lokr", "tucker")
    report = encode(source, tmp_path / "out.nola", **rate)
    assert report.nmse == pytest.approx(compare(source, tmp_path / "out.nola").nmse, rel=1e-6)
    again = read(decode(tmp_path / "out.nola", tmp_path / "o.safetensors"))
    assert again.metadata == {"ss_network_dim": "4"}
