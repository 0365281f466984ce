"""Merging in every dialect that names its modules: base + delta with one rounding, however the delta is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import deltas, read
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.stores.tensor_files import write_tensors

STEM = "lora_unet_down_blocks_0_attn_to_q"


def floats(*shape: int, seed: int = 0) -> RawTensor:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return RawTensor("F32", shape, values.tobytes())


def base_model(path: Path, weights: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None = None) -> Path:
    path.mkdir()
    torch.manual_seed(0)
    save_file({name: torch.randn(shape).bfloat16() for name, shape in weights.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def merged(tensors: Mapping[str, RawTensor], base: Path, tmp_path: Path) -> dict[str, RawTensor]:
    """Names of the changed weights of a merge, and their values."""
    source = write_tensors(tmp_path / "in.safetensors", tensors, {})
    nola_codec.encode(source, tmp_path / "a.nola", nmse=0.01)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    with SafetensorsFile(tmp_path / "merged" / "model.safetensors") as file:
        found = {name: file.read(name) for name in file.tensors}
    with SafetensorsFile(base / "model.safetensors") as file:
        return {name: tensor for name, tensor in found.items() if tensor != file.read(name)}


def wanted(base: Path, weight: str, delta: np.ndarray) -> RawTensor:
    with SafetensorsFile(base / "model.safetensors") as file:
        stored = file.read(weight)
    return from_float64(to_float64(stored) + delta.reshape(stored.shape), "BF16")


WEIGHT = "down_blocks.0.attn.to_q.weight"
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, RawTensor], dict[str, str]]] = {
    "kohya": ({WEIGHT: (8, 6)}, {f"{STEM}.lora_down.weight": floats(2, 6), f"{STEM}.lora_up.weight": floats(8, 2)},
              {WEIGHT: STEM}),
    "kohya, conv": ({WEIGHT: (8, 6, 3, 3)},
                    {f"{STEM}.lora_down.weight": floats(2, 6, 3, 3), f"{STEM}.lora_up.weight": floats(8, 2, 1, 1),
                     f"{STEM}.alpha": RawTensor("F32", (), np.float32(3).tobytes())}, {WEIGHT: STEM}),
    "CP": ({WEIGHT: (8, 6, 3, 3)},
           {f"{STEM}.lora_down.weight": floats(2, 6, 1, 1), f"{STEM}.lora_mid.weight": floats(2, 2, 3, 3),
            f"{STEM}.lora_up.weight": floats(8, 2, 1, 1)}, {WEIGHT: STEM}),
    "LoHa, conv": ({WEIGHT: (8, 6, 3, 3)},
                   {f"{STEM}.hada_w{n}_{s}": floats(*((8, 2) if s == "a" else (2, 54)), seed=int(n))
                    for n in "12" for s in "ab"}, {WEIGHT: STEM}),
    "LoKr": ({WEIGHT: (8, 6)}, {f"{STEM}.lokr_w1": floats(2, 2), f"{STEM}.lokr_w2": floats(4, 3)}, {WEIGHT: STEM}),
    "full and norm": ({WEIGHT: (8, 6), "down_blocks.0.attn.to_q.bias": (8,), "norm.weight": (8,), "norm.bias": (8,)},
                      {f"{STEM}.diff": floats(8, 6), f"{STEM}.diff_b": floats(8), "lora_unet_norm.w_norm": floats(8),
                       "lora_unet_norm.b_norm": floats(8, seed=1)},
                      {WEIGHT: f"{STEM}.diff", "down_blocks.0.attn.to_q.bias": f"{STEM}.diff_b",
                       "norm.weight": "lora_unet_norm.w_norm", "norm.bias": "lora_unet_norm.b_norm"}),
    "MLX": ({"model.layers.0.q_proj.weight": (8, 6)},
            {"model.layers.0.q_proj.lora_a": floats(6, 2), "model.layers.0.q_proj.lora_b": floats(2, 8)},
            {"model.layers.0.q_proj.weight": "model.layers.0.q_proj"}),
    "diffusers": ({WEIGHT: (8, 6)},
                  {f"unet.{WEIGHT.removesuffix('.weight')}.lora_A.weight": floats(2, 6),
                   f"unet.{WEIGHT.removesuffix('.weight')}.lora_B.weight": floats(8, 2)},
                  {WEIGHT: f"unet.{WEIGHT.removesuffix('.weight')}"}),
    "loralib": ({"encoder.q.weight": (8, 6)}, {"encoder.q.lora_A": floats(2, 6), "encoder.q.lora_B": floats(8, 2)},
                {"encoder.q.weight": "encoder.q"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_base_plus_delta_rounded_once(case: str, tmp_path: Path) -> None:
    weights, tensors, places = CASES[case]
    base = base_model(tmp_path / "base", {**weights, "other.weight": (4, 4)})
    found = merged(tensors, base, tmp_path)
    decoded = {d.name: d for d in deltas(read(nola_codec.decode(tmp_path / "a.nola", tmp_path / "a.safetensors")))}
    assert set(found) == set(places)
    for weight, name in places.items():
        assert found[weight] == wanted(base, weight, decoded[name].dense()), weight


REFUSED: dict[str, tuple[str, dict[str, RawTensor]]] = {
    "DoRA": ("merge-dora", {**CASES["kohya"][1], f"{STEM}.dora_scale": floats(8, 1)}),
    "two components": ("merge-components", {
        **CASES["kohya"][1], "lora_te_x.lora_down.weight": floats(2, 6), "lora_te_x.lora_up.weight": floats(8, 2)}),
    "no such module": ("base-mismatch", {k.replace("to_q", "to_x"): v for k, v in CASES["kohya"][1].items()}),
    "numbered": ("not-expressible", {"unet:0:down": floats(2, 6), "unet:0:up": floats(8, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_whole(case: str, tmp_path: Path) -> None:
    code, tensors = REFUSED[case]
    base = base_model(tmp_path / "base", {WEIGHT: (8, 6)})
    with pytest.raises(AdapterError) as e:
        merged(tensors, base, tmp_path)
    assert e.value.code == code
    assert not (tmp_path / "merged").exists()


def test_a_pipeline(tmp_path: Path) -> None:
    """Each component gets its own deltas, the rest is copied, and the same bits as for components alone."""
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    (pipeline / "tokenizer").mkdir()
    (pipeline / "tokenizer" / "vocab.json").write_text("{}")
    base_model(pipeline / "unet", {WEIGHT: (8, 6)})
    base_model(pipeline / "text_encoder", {"text_model.layers.0.fc1.weight": (8, 6)})
    unet = CASES["kohya"][1]
    text = {f"lora_te_text_model_layers_0_fc1.lora_{s}.weight": floats(*shape, seed=5)
            for s, shape in (("down", (2, 6)), ("up", (8, 2)))}  # fmt: skip
    source = write_tensors(tmp_path / "in.safetensors", {**unet, **text}, {})
    nola_codec.encode(source, tmp_path / "a.nola", nmse=0.01)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=pipeline)
    assert (tmp_path / "merged" / "tokenizer" / "vocab.json").exists()
    assert (tmp_path / "merged" / "model_index.json").exists()
    decoded = {d.name: d for d in deltas(read(nola_codec.decode(tmp_path / "a.nola", tmp_path / "a.safetensors")))}
    for component, weight, name in (
        ("unet", WEIGHT, STEM),
        ("text_encoder", "text_model.layers.0.fc1.weight", "lora_te_text_model_layers_0_fc1"),
    ):
        with SafetensorsFile(tmp_path / "merged" / component / "model.safetensors") as file:
            assert file.read(weight) == wanted(pipeline / component, weight, decoded[name].dense())
    with pytest.raises(AdapterError) as e:
        nola_codec.merge([tmp_path / "a.nola"], pipeline, tmp_path / "other", keep_undo=True)
    assert e.value.code == "needs-component"
    (pipeline / "text_encoder").rename(pipeline / "text_encoder_2")
    with pytest.raises(AdapterError) as e:
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "other", base=pipeline)
    assert e.value.code == "base-mismatch"
    assert not (tmp_path / "other").exists()


class Experts(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(count, 6, 10))
        self.down_proj = torch.nn.Parameter(torch.randn(count, 5, 6))
        self.is_transposed = True  # (experts, in, out), as in Llama 4 and gpt-oss

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eio->beo", x, self.gate_up_proj)


class Mixture(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"experts": Experts(count)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp["experts"](x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [3, 12])  # 10 comes before 2 in the order of names
def test_experts_of_peft(count: int, tmp_path: Path) -> None:
    """Encoded nearly without loss, the experts' factors come back to PEFT, and merge to what PEFT merges."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(0)
    model = Mixture(count)
    base = tmp_path / "base"
    base.mkdir()
    save_file(model.state_dict(), base / "model.safetensors")
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "lora")
    adapter = read(tmp_path / "lora")
    assert len(adapter.modules) == 2 * count
    state = get_peft_model_state_dict(wrapped)
    written = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    again = PEFT.tensors(adapter)
    assert {key: torch.frombuffer(bytearray(t.data), dtype=torch.float32).tolist() for key, t in again.items()} == {
        key: value.reshape(-1).tolist() for key, value in written.items()
    }
    report = nola_codec.encode(tmp_path / "lora", tmp_path / "a.nola", nmse=5e-4)
    assert report.nmse <= 5e-4
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    assert set(load_file(tmp_path / "decoded" / "adapter_model.safetensors")) == set(state)
    with nola_codec.load(tmp_path / "a.nola") as file:
        assert {key: value.shape for key, value in file.state_dict().items()} == {k: v.shape for k, v in state.items()}
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, value in wrapped.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0.3)
