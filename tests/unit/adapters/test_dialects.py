"""Every dialect: what is read and written again is the file that came, and the deltas are the tools' own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nola_codec.adapters import DIALECTS, deltas, dialect_of, read, write
from nola_codec.adapters.sources import open_source
from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import write_tensors

REAL = {
    "gpt2_tigrinya": "peft",
    "smollm2_e2e": "peft",
    "roberta_base_lora_mnli.bin": "loralib",
    "sam_vitb_rank4.safetensors": "sam_lora",
    "sam_vitb_rank16.safetensors": "sam_lora",
    "sd15_analog_svd_rank4.safetensors": "cloneofsimo",
    "sd15_disney_rank1.safetensors": "cloneofsimo",
    "sd15_catundchat": "diffusers-old",
    "mlx_qwen05b/0000100_adapters.safetensors": "mlx",
    "mlx_qwen05b/0000200_adapters.safetensors": "mlx",
}


def floats(*shape: int, seed: int = 0, dtype: str = "F32") -> RawTensor:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return RawTensor(dtype, shape, values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes())


def scalar(value: float, dtype: str = "<f4", name: str = "F32") -> RawTensor:
    return RawTensor(name, (), np.array(value, dtype).tobytes())


def save(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None) -> Path:
    return write_tensors(path, tensors, metadata or {})


LINEAR = "lora_unet_down_blocks_0_attentions_0_proj_in"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
PAIR = {f"{LINEAR}.lora_down.weight": floats(2, 6), f"{LINEAR}.lora_up.weight": floats(5, 2)}

FILES: dict[str, tuple[str, dict[str, RawTensor]]] = {
    "kohya": ("kohya", {**PAIR, f"{LINEAR}.alpha": scalar(1.0)}),
    "kohya, conv, half, alphas of two kinds": ("kohya", {
        **PAIR, f"{LINEAR}.alpha": scalar(1.0, "<f2", "F16"),
        f"{CONV}.lora_down.weight": floats(4, 3, 3, 3, dtype="F16"),
        f"{CONV}.lora_up.weight": floats(7, 4, 1, 1, dtype="F16"),
        f"{CONV}.alpha": scalar(3.0),
    }),
    "kohya, one alpha missing": ("kohya", {
        **PAIR, "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": floats(2, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": floats(4, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": scalar(0.3),
    }),
    "CP decomposition": ("kohya", {
        f"{CONV}.lora_down.weight": floats(2, 6, 1, 1), f"{CONV}.lora_mid.weight": floats(2, 2, 3, 3),
        f"{CONV}.lora_up.weight": floats(5, 2, 1, 1), f"{CONV}.alpha": scalar(1.0),
    }),
    "LoHa": ("kohya", {f"{LINEAR}.hada_w{n}_{s}": floats(*((5, 2) if s == "a" else (2, 6)), seed=int(n))
                       for n in "12" for s in "ab"} | {f"{LINEAR}.alpha": scalar(1.0)}),
    "LoHa, Tucker": ("kohya", {
        **{f"{CONV}.hada_w{n}_{s}": floats(2, 5 if s == "a" else 6, seed=int(n)) for n in "12" for s in "ab"},
        f"{CONV}.hada_t1": floats(2, 2, 3, 3), f"{CONV}.hada_t2": floats(2, 2, 3, 3, seed=1),
    }),
    "LoKr, both whole": ("kohya", {f"{LINEAR}.lokr_w1": floats(2, 3), f"{LINEAR}.lokr_w2": floats(4, 5),
                                   f"{LINEAR}.alpha": scalar(4.0)}),
    "LoKr, second a product": ("kohya", {
        f"{LINEAR}.lokr_w1": floats(2, 3), f"{LINEAR}.lokr_w2_a": floats(4, 2), f"{LINEAR}.lokr_w2_b": floats(2, 5),
        f"{LINEAR}.alpha": scalar(1.0)}),
    "LoKr, both products": ("kohya", {
        f"{LINEAR}.lokr_w1_a": floats(2, 2), f"{LINEAR}.lokr_w1_b": floats(2, 3), f"{LINEAR}.lokr_w2_a": floats(4, 2),
        f"{LINEAR}.lokr_w2_b": floats(2, 5)}),
    "LoKr, Tucker": ("kohya", {
        f"{CONV}.lokr_w1": floats(2, 3), f"{CONV}.lokr_t2": floats(2, 2, 3, 3), f"{CONV}.lokr_w2_a": floats(2, 4),
        f"{CONV}.lokr_w2_b": floats(2, 5), f"{CONV}.alpha": scalar(1.0)}),
    "full deltas and norms": ("kohya", {
        f"{LINEAR}.diff": floats(5, 6), f"{LINEAR}.diff_b": floats(5), "lora_unet_conv_norm_out.w_norm": floats(6),
        "lora_unet_conv_norm_out.b_norm": floats(6, seed=2)}),
    "DoRA of kohya": ("kohya", {**PAIR, f"{LINEAR}.dora_scale": floats(5, 1), f"{LINEAR}.alpha": scalar(2.0)}),
    "ComfyUI, up and down": ("kohya", {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": floats(2, 6),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": floats(5, 2),
        "diffusion_model.blocks.0.self_attn.q.alpha": scalar(2.0)}),
    "diffusers": ("diffusers", {
        "transformer.blocks.0.attn.to_q.lora_A.weight": floats(2, 6),
        "transformer.blocks.0.attn.to_q.lora_B.weight": floats(5, 2),
        "unet.conv_in.lora_A.weight": floats(2, 4, 3, 3), "unet.conv_in.lora_B.weight": floats(5, 2, 1, 1),
        "unet.conv_in.alpha": scalar(4.0)}),
    "ComfyUI, A and B": ("diffusers", {
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": floats(2, 6),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": floats(5, 2)}),
    "diffusers, old": ("diffusers-old", {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": floats(2, 6),
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": floats(5, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": floats(2, 6),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": floats(5, 2)}),
    "XLabs": ("diffusers-old", {
        "double_blocks.0.processor.qkv_lora1.down.weight": floats(2, 6),
        "double_blocks.0.processor.qkv_lora1.up.weight": floats(5, 2)}),
    "mistral-finetune": ("mistral", {
        "layers.0.attention.wq.lora_A.weight": floats(2, 6), "layers.0.attention.wq.lora_B.weight": floats(5, 2),
        "layers.0.attention_norm.weight": floats(6)}),
    "torchtune": ("torchtune", {
        "layers.0.attn.q_proj.lora_a.weight": floats(2, 6), "layers.0.attn.q_proj.lora_b.weight": floats(5, 2),
        "layers.0.attn.q_proj.magnitude": floats(5)}),
    "MLX": ("mlx", {"model.layers.0.mlp.up_proj.lora_a": floats(6, 2),
                    "model.layers.0.mlp.up_proj.lora_b": floats(2, 5),
                    "model.layers.0.mlp.up_proj.m": floats(5)}),
    "loralib": ("loralib", {"encoder.q.lora_A": floats(2, 6), "encoder.q.lora_B": floats(5, 2),
                            "classifier.dense.weight": floats(3, 3), "classifier.dense.bias": floats(3)}),
    "Sam_LoRA": ("sam_lora", {f"w_{s}_{n:03d}": floats(*((2, 6) if s == "a" else (5, 2)), seed=n)
                              for n in range(12) for s in "ab"}),
    "cloneofsimo": ("cloneofsimo", {"unet:0:down": floats(2, 6), "unet:0:up": floats(5, 2), "<s1>": floats(6),
                                    "text_encoder:10:down": floats(1, 4), "text_encoder:10:up": floats(4, 1)}),
}  # fmt: skip


def contents(path: Path) -> dict[str, RawTensor]:
    with open_source(path) as source:
        return {key: source.file.read(key) for key in source.file.tensors}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_read_and_written_to_the_bit(case: str, tmp_path: Path) -> None:
    dialect, tensors = FILES[case]
    source = save(tmp_path / "in.safetensors", tensors, {"about": "this file"})
    adapter = read(source)
    assert adapter.dialect == dialect
    written = write(adapter, tmp_path / "out.safetensors")
    assert contents(written) == tensors
    with safe_open(written, "np") as file:
        assert file.metadata() == {"about": "this file"}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_and_written_to_the_bit(name: str, real_adapter: Callable[[str], Path]) -> None:
    adapter = read(real_adapter(name))
    assert adapter.dialect == REAL[name]
    assert dialect_of(adapter).tensors(adapter) == contents(real_adapter(name))


def test_each_dialect_has_a_file_here() -> None:
    covered = {dialect for dialect, _ in FILES.values()} | set(REAL.values())
    elsewhere = {"gguf", "delta", "parameters"}
    assert covered == set(DIALECTS) - elsewhere, "see test_reload.py, test_dense.py, training/test_network_files.py"


def lycoris(
    kind: str, layer: torch.nn.Module, **options: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A LyCORIS module with random weights: its state dict, an input, and what the module adds to the layer's output.

    Its `get_diff_weight` multiplies by the scale twice, which its own forward pass does not.
    """
    from lycoris import modules

    made = getattr(modules, kind)(LINEAR, layer, 1.0, alpha=3, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = {
        f"{LINEAR}.{key}": torch.as_tensor(value).detach().clone() for key, value in made.custom_state_dict().items()
    }
    conv = isinstance(layer, torch.nn.Conv2d)
    inputs = torch.randn((1, layer.in_channels, 5, 5) if conv else (7, layer.in_features))
    with torch.no_grad():
        return state, inputs, made.eval()(inputs) - layer(inputs)


LYCORIS: dict[str, tuple[str, Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "LoCon": ("LoConModule", lambda: torch.nn.Linear(12, 8), {"lora_dim": 2}),
    "LoCon, conv": ("LoConModule", lambda: torch.nn.Conv2d(4, 6, 3), {"lora_dim": 2}),
    "LoCon, Tucker": ("LoConModule", lambda: torch.nn.Conv2d(4, 6, 3), {"lora_dim": 2, "use_tucker": True}),
    "LoHa": ("LohaModule", lambda: torch.nn.Linear(12, 8), {"lora_dim": 2}),
    "LoHa, conv": ("LohaModule", lambda: torch.nn.Conv2d(4, 6, 3), {"lora_dim": 2}),
    "LoHa, Tucker": ("LohaModule", lambda: torch.nn.Conv2d(4, 6, 3), {"lora_dim": 2, "use_tucker": True}),
    "LoHa, scalar": ("LohaModule", lambda: torch.nn.Linear(12, 8), {"lora_dim": 2, "use_scalar": True}),
    "LoKr": ("LokrModule", lambda: torch.nn.Linear(24, 32), {"lora_dim": 2, "factor": 4}),
    "LoKr, whole": ("LokrModule", lambda: torch.nn.Linear(12, 8), {"lora_dim": 10000, "factor": 4}),
    "LoKr, both": ("LokrModule", lambda: torch.nn.Linear(64, 64), {"lora_dim": 1, "decompose_both": True}),
    "LoKr, conv": ("LokrModule", lambda: torch.nn.Conv2d(16, 16, 3), {"lora_dim": 1, "factor": 4}),
    "LoKr, Tucker": ("LokrModule", lambda: torch.nn.Conv2d(16, 16, 3),
                     {"lora_dim": 1, "factor": 4, "use_tucker": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", LYCORIS)
def test_deltas_are_those_of_lycoris(case: str, tmp_path: Path) -> None:
    kind, layer, options = LYCORIS[case]
    state, inputs, wanted = lycoris(kind, layer(), **options)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "in.safetensors")
    adapter = read(tmp_path / "in.safetensors")
    (delta,) = deltas(adapter)
    made = delta.dense()
    weight = torch.from_numpy(made).float()
    if inputs.ndim == 2:
        found = torch.nn.functional.linear(inputs, weight)
    else:
        found = torch.nn.functional.conv2d(inputs, weight.reshape(wanted.shape[1], inputs.shape[1], 3, 3))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    if delta.composite is not None:  # an error of a part, times its gain, is the delta's
        parts = [(m.name, np.linalg.norm(m.lora_B @ m.lora_A), m.gain) for m in adapter.modules]
        parts += [(v.name, np.linalg.norm(v.values), v.gain) for v in adapter.vectors]
        assert len(parts) == len(delta.composite.parts)
        for name, norm, gain in parts:
            assert norm * gain == pytest.approx(np.linalg.norm(made), rel=1e-5), name


def test_scalings(tmp_path: Path) -> None:
    metadata = json.dumps(
        {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"mid": 3}, "unet.rank_pattern": {}}
    )
    tensors = {
        f"unet.{m}.lora_{s}.weight": floats(*((2, 6) if s == "A" else (5, 2))) for m in ("in", "mid") for s in "AB"
    }
    path = save(tmp_path / "d.safetensors", tensors, {"lora_adapter_metadata": metadata})
    assert {m.name: m.scaling for m in read(path).modules} == {"unet.in": 4.0, "unet.mid": 1.5}
    path = save(tmp_path / "k.safetensors", FILES["kohya"][1])
    assert [m.scaling for m in read(path).modules] == [0.5]
    mlx = tmp_path / "mlx"
    mlx.mkdir()
    save(mlx / "adapters.safetensors", FILES["MLX"][1])
    parameters = {"rank": 2, "scale": 7.5, "dropout": 0.0}
    config = {"fine_tune_type": "dora", "num_layers": 1, "lora_parameters": parameters}
    (mlx / "adapter_config.json").write_text(json.dumps(config))
    adapter = read(mlx)
    assert [m.scaling for m in adapter.modules] == [7.5]
    again = write(adapter, tmp_path / "again")
    assert json.loads((again / "adapter_config.json").read_text()) == config
    assert contents(again) == FILES["MLX"][1]


def test_hashes_in_the_metadata_are_made_true(tmp_path: Path) -> None:
    metadata = {
        "sshs_model_hash": "0" * 64,
        "sshs_legacy_hash": "0" * 8,
        "modelspec.hash_sha256": "0x00",
        "ss_v2": "False",
    }
    adapter = read(save(tmp_path / "in.safetensors", FILES["kohya"][1], metadata))
    written = write(adapter, tmp_path / "out.safetensors")
    data = written.read_bytes()
    content = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    with safe_open(written, "np") as file:
        found = file.metadata()
    assert found["sshs_model_hash"] == content
    assert found["modelspec.hash_sha256"] == "0x" + content
    assert found["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]  # files under 1 MiB all have this one
    assert found["ss_v2"] == "False"


REFUSED: dict[str, tuple[str, dict[str, RawTensor], str]] = {
    "up missing": ("missing-partner", {f"{LINEAR}.lora_down.weight": floats(2, 6)}, "lora_up.weight is missing"),
    "half a LoHa": ("missing-partner",
                    {f"{LINEAR}.hada_w1_a": floats(5, 2), f"{LINEAR}.hada_w1_b": floats(2, 6)}, "hada_w2"),
    "half a LoKr": ("missing-partner", {f"{LINEAR}.lokr_w1": floats(5, 2)}, "lokr_w2"),
    "ranks": ("rank-mismatch", {**PAIR, f"{LINEAR}.lora_up.weight": floats(5, 3)}, "lora_up"),
    "LoHa of two shapes": ("bad-shape", {**FILES["LoHa"][1], f"{LINEAR}.hada_w2_a": floats(4, 2)}, "do not fit"),
    "alpha of nothing": ("unknown-key", {**PAIR, "lora_unet_x.alpha": scalar(1)}, "lora_unet_x.alpha"),
    "alpha that is a vector": ("bad-alpha", {**PAIR, f"{LINEAR}.alpha": floats(2)}, "alpha"),
    "alpha without a value": ("bad-alpha", {**PAIR, f"{LINEAR}.alpha": scalar(float("nan"))}, "nan"),
    "two dialects": ("unknown-key", {**PAIR, **FILES["MLX"][1]}, "looks like MLX"),
    "unknown": ("unknown-key", {**PAIR, "something": floats(2)}, "something"),
    "OFT": ("multiplicative", {"lora_unet_q.oft_blocks": floats(2, 3, 3)}, "orthogonal"),
    "IA3": ("multiplicative", {"lora_unet_q.weight": floats(2), "lora_unet_q.on_input": scalar(1)}, "activations"),
    "GLoRA": ("glora", {**PAIR, "lora_unet_q.a1.weight": floats(2, 2)}, "base weight"),
    "MLX experts": ("rank-mismatch", {"m.lora_a": floats(2, 6, 2), "m.lora_b": floats(2, 2, 5)}, "rank"),
    "NaN": ("not-finite",
            {**PAIR, f"{LINEAR}.lora_up.weight": RawTensor("F32", (5, 2), bytes([0, 0, 192, 127] * 10))}, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    code, tensors, message = REFUSED[case]
    with pytest.raises(AdapterError, match=message.replace(".", r"\.")) as e:
        read(save(tmp_path / "in.safetensors", tensors))
    assert e.value.code == code


def test_unknown_tensors_are_carried_when_asked(tmp_path: Path) -> None:
    tensors = {**PAIR, "something": floats(2)}
    adapter = read(save(tmp_path / "in.safetensors", tensors), carry_unknown=True)
    assert set(adapter.raw) == {"something"}
    assert contents(write(adapter, tmp_path / "out.safetensors")) == tensors


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".npz"])
def test_containers(suffix: str, tmp_path: Path) -> None:
    tensors = FILES["kohya, conv, half, alphas of two kinds"][1]
    written = write(read(save(tmp_path / "in.safetensors", tensors)), tmp_path / f"out{suffix}")
    assert contents(written) == tensors
    if suffix == ".safetensors":
        assert set(load_file(written)) == set(tensors)
    elif suffix == ".npz":
        with np.load(written, allow_pickle=False) as file:
            assert set(file) == set(tensors)
    else:
        assert set(torch.load(written, weights_only=True)) == set(tensors)
