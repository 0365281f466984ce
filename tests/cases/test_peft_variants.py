"""Adapters with unusual options and layers are merged as PEFT merges them, on one model of many kinds of layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

import nola_codec

LOST = 1e-3
QV = ["q_proj", "v_proj"]
Edit = Callable[[Path], object]


class Attention(torch.nn.Module):
    """Linear layers stored (out, in), and one stored (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(24, 16)
        self.v_proj = torch.nn.Linear(24, 16, bias=False)
        self.c_attn = Conv1D(20, 24)


class Model(torch.nn.Module):
    """A layer of each kind that PEFT adapts, some with odd names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(30, 12)
        self.layers = torch.nn.ModuleList([Attention(), Attention()])
        self.conv = torch.nn.Conv2d(8, 12, 3, stride=2)
        self.point = torch.nn.Conv2d(8, 12, 1)
        self.conv1d = torch.nn.Conv1d(8, 10, 5)
        self.conv3d = torch.nn.Conv3d(4, 6, (1, 3, 3))
        self.lora_proj = torch.nn.Linear(24, 8)
        self.alpha = torch.nn.ModuleDict({"0": torch.nn.Linear(24, 8), "weight": torch.nn.Linear(24, 8)})
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_file(Model().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def drop(*options: str) -> Edit:
    """Take options out of the configuration, which then means PEFT's defaults."""

    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in config.items() if name not in options}))

    return edit


def add_pickle(folder: Path) -> None:
    """Put other weights in a pickle beside the safetensors file, which PEFT prefers."""
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save({key: 3 * tensor for key, tensor in tensors.items()}, folder / "adapter_model.bin")


def split_pickle(folder: Path) -> None:
    """Store the weights as two pickles with an index."""
    tensors = load_file(folder / "adapter_model.safetensors")
    keys = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((keys[:3], keys[3:]), 1):
        name = f"adapter_model-0000{number}-of-00002.bin"
        torch.save({key: tensors[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "adapter_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "adapter_model.safetensors").unlink()


def widen(folder: Path) -> None:
    """Store one factor of each pair as float64."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: t.double() if "lora_A" in key else t for key, t in tensors.items()}, path)


def nest(folder: Path) -> None:
    """Put a second adapter, with other weights, into a folder inside, as PEFT does for adapters with names."""
    (folder / "other").mkdir()
    shutil.copy(folder / "adapter_config.json", folder / "other")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: 2 * tensor for key, tensor in tensors.items()}, folder / "other" / "adapter_model.safetensors")


VARIANTS: dict[str, tuple[str, dict[str, Any], Edit | None]] = {
    "rsLoRA with patterns": ("Lora", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": QV,
        "rank_pattern": {r"layers\.0\.v_proj": 3, "q_proj": 5}, "alpha_pattern": {"v_proj": 7},
    }, None),
    "patterns with alternatives": ("Lora", {
        "r": 3, "target_modules": r".*layers\.\d+\.(q|v)_proj", "rank_pattern": {r"layers.0.(q|v)_proj": 2},
        "alpha_pattern": {r"^layers\.1\.q_proj$": 3},
    }, None),
    "convolutions with a stride": ("Lora", {"r": 2, "lora_alpha": 3, "target_modules": ["conv", "point"]}, None),
    "convolutions of one and three dimensions": ("Lora", {"r": 2, "target_modules": ["conv1d", "conv3d"]}, None),
    "an embedding": ("Lora", {"r": 3, "lora_alpha": 5, "target_modules": ["embed"]}, None),
    "both orders of stored weights": ("Lora", {"r": 3, "target_modules": ["q_proj", "c_attn"]}, None),
    "biases of factors": ("Lora", {"r": 3, "target_modules": ["q_proj"], "lora_bias": True}, None),
    "a head that is saved": ("Lora", {"r": 3, "target_modules": ["q_proj"], "modules_to_save": ["head"]}, None),
    "one layer": ("Lora", {
        "r": 3, "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, None),
    "no alpha": ("Lora", {"r": 4, "lora_alpha": 8, "target_modules": QV}, drop("lora_alpha")),
    "no rank": ("Lora", {"r": 8, "lora_alpha": 16, "target_modules": QV}, drop("r")),
    "a fraction as alpha": ("Lora", {"r": 4, "lora_alpha": 16.5, "target_modules": QV}, None),
    "a negative alpha": ("Lora", {"r": 4, "lora_alpha": -8, "target_modules": QV}, None),
    "alpha zero": ("Lora", {"r": 4, "lora_alpha": 0, "target_modules": QV}, None),
    "names of modules that look like keys": ("Lora", {
        "r": 3, "target_modules": ["lora_proj", "alpha.0", "alpha.weight"]}, None),
    "an old pickle beside": ("Lora", {"r": 3, "target_modules": QV}, add_pickle),
    "pickles with an index": ("Lora", {"r": 3, "target_modules": QV}, split_pickle),
    "two dtypes": ("Lora", {"r": 3, "target_modules": QV}, widen),
    "another adapter inside": ("Lora", {"r": 3, "target_modules": QV}, nest),
    "VeRA": ("Vera", {"r": 4, "target_modules": QV, "d_initial": 0.3}, None),
    "LoHa with kernels": ("LoHa", {
        "r": 2, "alpha": 3, "target_modules": ["conv", "q_proj"], "use_effective_conv2d": True}, None),
    "LoKr without factors": ("LoKr", {"r": 64, "alpha": 3, "target_modules": ["q_proj"]}, None),
    "RandLoRA": ("RandLora", {"r": 3, "randlora_alpha": 7, "target_modules": ["q_proj"]}, None),
    "FourierFT on the other order": ("FourierFT", {
        "n_frequency": 20, "target_modules": ["c_attn"], "fan_in_fan_out": True}, None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of PEFT, about options that do not fit
@pytest.mark.parametrize("variant", VARIANTS)
def test_merges_as_peft_does(variant: str, base: Path, tmp_path: Path) -> None:
    method, options, edit = VARIANTS[variant]
    tuned = peft.get_peft_model(Model(), getattr(peft, f"{method}Config")(**options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    tuned.save_pretrained(str(tmp_path / "adapter"))
    if edit is not None:
        edit(tmp_path / "adapter")
    named = {key.replace("base_layer.", ""): tensor for key, tensor in tuned.merge_and_unload().state_dict().items()}

    nola_codec.encode_bytes(tmp_path / "adapter", tmp_path / "task.nola", nmse=LOST)
    nola_codec.merge([tmp_path / "task.nola"], base, tmp_path / "merged")
    before, merged = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    lost = whole = 0.0
    for name, weight in before.items():
        expected = named[name] - weight
        lost += float((merged[name] - weight - expected).square().sum())
        whole += float(expected.square().sum())
        # A wrong scaling, or a delta in a wrong place, shows in each weight, also where the coding keeps little.
        assert float((merged[name] - weight).norm()) == pytest.approx(float(expected.norm()), rel=0.1, abs=1e-3), name
    assert lost <= 1.1 * LOST * whole + 1e-9
