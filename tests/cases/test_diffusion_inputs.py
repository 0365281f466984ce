"""Cases 03, 04, 27 (reading) and their kinds: what ComfyUI, BFL and the trainers of diffusion models write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import deltas, dialect_of, read, write
from nola_codec.errors import AdapterError

State = dict[str, torch.Tensor]
MAKE = torch.Generator().manual_seed(0)


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=MAKE) * 0.1


def down_up(name: str, alpha: float | None = None, out: int = 8, size: int = 8) -> State:
    state = {f"{name}.lora_down.weight": values(2, size), f"{name}.lora_up.weight": values(out, 2)}
    return state if alpha is None else state | {f"{name}.alpha": torch.tensor(alpha)}


def a_b(name: str, alpha: float | None = None, out: int = 8, size: int = 8) -> State:
    state = {f"{name}.lora_A.weight": values(2, size), f"{name}.lora_B.weight": values(out, 2)}
    return state if alpha is None else state | {f"{name}.alpha": torch.tensor(alpha)}


def ends(name: str, down: str, up: str) -> State:
    return {name + down: values(2, 8), name + up: values(8, 2)}


def product(state: State, name: str) -> torch.Tensor:
    down = state.get(f"{name}.lora_down.weight", state.get(f"{name}.lora_A.weight"))
    up = state.get(f"{name}.lora_up.weight", state.get(f"{name}.lora_B.weight"))
    return up.double() @ down.double()


def decoded(state: State, folder: Path) -> tuple[Path, State]:
    """Encode an adapter, decode it, check that no key was lost, and return the `.nola` file and the decoded tensors."""
    save_file(state, folder / "a.safetensors")
    write(read(folder / "a.safetensors"), folder / "same.safetensors")
    same = load_file(folder / "same.safetensors")
    assert same.keys() == state.keys()
    assert all(torch.equal(same[key], value) and same[key].dtype == value.dtype for key, value in state.items())
    nola_codec.encode(folder / "a.safetensors", folder / "a.nola", nmse=0.01)
    nola_codec.decode(folder / "a.nola", folder / "b.safetensors")
    found = load_file(folder / "b.safetensors")
    assert found.keys() == state.keys()
    return folder / "a.nola", found


@pytest.mark.parametrize("pair", [down_up, a_b])
def test_changes_of_single_tensors_beside_pairs_are_merged_as_comfyui_adds_them(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Cases 03, 04: ``.diff``, ``.diff_b``, and ``.diff_m`` of the bare parameter ``modulation``, in both spellings."""
    block = "diffusion_model.blocks.0"
    state = pair(f"{block}.self_attn.q", alpha=6.0) | {f"{block}.self_attn.q.diff_b": values(8)}
    state |= {f"{block}.norm3.diff": values(8), f"{block}.norm3.diff_b": values(8), f"{block}.diff_m": values(1, 6, 8)}
    state |= {"diffusion_model.patch_embedding.diff": values(4, 2, 1, 2, 2)}
    base = {"blocks.0.self_attn.q.weight": values(8, 8), "blocks.0.self_attn.q.bias": values(8)}
    base |= {"blocks.0.norm3.weight": values(8), "blocks.0.norm3.bias": values(8)}
    base |= {"blocks.0.modulation": values(1, 6, 8), "patch_embedding.weight": values(4, 2, 1, 2, 2)}
    file, found = decoded(state, tmp_path)
    save_file(base, tmp_path / "base.safetensors")
    nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    right = {
        "blocks.0.self_attn.q.weight": 3.0 * product(found, f"{block}.self_attn.q"),
        "blocks.0.self_attn.q.bias": found[f"{block}.self_attn.q.diff_b"],
        "blocks.0.norm3.weight": found[f"{block}.norm3.diff"],
        "blocks.0.norm3.bias": found[f"{block}.norm3.diff_b"],
        "blocks.0.modulation": found[f"{block}.diff_m"],
        "patch_embedding.weight": found["diffusion_model.patch_embedding.diff"],
    }
    assert right.keys() == base.keys()
    for key, change in right.items():
        torch.testing.assert_close(merged[key], (base[key].double() + change).float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "state",
    [
        {"lora_unet_down_blocks_0_attn_to_q.diff": values(8, 8), "lora_unet_down_blocks_0_attn_to_q.diff_b": values(8)},
        {
            "lycoris_transformer_blocks_0_norm1.w_norm": values(8),
            "lycoris_transformer_blocks_0_norm1.b_norm": values(8),
        },
        {"diffusion_model.blocks.0.diff_m": values(1, 6, 8)},
        {"transformer_blocks.0.attn.to_q.diff": values(8, 8)},
    ],
)
def test_changes_alone_are_an_adapter(state: State, tmp_path: Path) -> None:
    _, found = decoded(state, tmp_path)
    assert {delta.name for delta in deltas(read(tmp_path / "a.safetensors"))} == set(found)


def test_the_norms_of_bfl_s_control_lora_are_carried_and_merged(tmp_path: Path) -> None:
    """Case 27: whole norms replace those of the model, and ``lora_B.bias`` adds to a bias."""
    block = "double_blocks.0.img_attn"
    state = a_b(f"{block}.qkv") | {f"{block}.qkv.lora_B.bias": values(8), f"{block}.norm.key_norm.scale": values(4)}
    base = {
        f"{block}.qkv.weight": values(8, 8),
        f"{block}.qkv.bias": values(8),
        f"{block}.norm.key_norm.scale": values(4),
    }
    file, found = decoded(state, tmp_path)
    notes = read(tmp_path / "a.safetensors").notes
    assert any("norm.key_norm.scale" in note and "carried exactly" in note for note in notes)
    save_file(base, tmp_path / "base.safetensors")
    nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert torch.equal(merged[f"{block}.norm.key_norm.scale"], state[f"{block}.norm.key_norm.scale"])
    torch.testing.assert_close(
        merged[f"{block}.qkv.bias"], base[f"{block}.qkv.bias"] + state[f"{block}.qkv.lora_B.bias"]
    )
    right = base[f"{block}.qkv.weight"].double() + product(found, f"{block}.qkv")
    torch.testing.assert_close(merged[f"{block}.qkv.weight"], right.float(), rtol=1e-6, atol=1e-7)


def test_a_control_lora_is_not_merged_into_a_model_with_fewer_inputs(tmp_path: Path) -> None:
    """Case 27: ``img_in`` of a control LoRA takes two images, so its input is twice as wide."""
    file, _ = decoded(a_b("img_in", size=16) | a_b("double_blocks.0.img_attn.qkv"), tmp_path)
    base = {"img_in.weight": values(8, 8), "double_blocks.0.img_attn.qkv.weight": values(8, 8)}
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match=r"img_in.*16.*8") as caught:
        nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    assert caught.value.code == "base-mismatch"
    assert not (tmp_path / "merged.safetensors").exists()


@pytest.mark.parametrize("pair", [down_up, a_b])
def test_set_weight_replaces_a_weight(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = pair("diffusion_model.blocks.0.q") | {"diffusion_model.blocks.0.norm_q.set_weight": values(8)}
    file, _ = decoded(state, tmp_path)
    assert "replaces one of the model" in read(tmp_path / "a.safetensors").notes[0]
    save_file({"blocks.0.q.weight": values(8, 8), "blocks.0.norm_q.weight": values(8)}, tmp_path / "base.safetensors")
    nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert torch.equal(merged["blocks.0.norm_q.weight"], state["diffusion_model.blocks.0.norm_q.set_weight"])


@pytest.mark.parametrize("pair", [down_up, a_b])
def test_reshape_weight_is_carried_and_not_merged(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = pair("diffusion_model.img_in", size=16) | {"diffusion_model.img_in.reshape_weight": torch.tensor([8, 16])}
    file, _ = decoded(state, tmp_path)
    assert "cannot be merged" in read(tmp_path / "a.safetensors").notes[0]
    save_file({"img_in.weight": values(8, 8)}, tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match="img_in") as caught:
        nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    assert caught.value.code in ("merge-reshape", "base-mismatch")


TEXT = "text_encoder.text_model.encoder.layers.0"
FLAT = "lora_unet_double_blocks_0_img_attn_qkv"
READ: dict[str, tuple[State, str, list[str]]] = {
    # name: tensors, dialect, the path of each delta that the name tells, in the order of the names
    "kohya, text encoders": (
        down_up("lora_te1_text_model_encoder_layers_0_mlp_fc1", 1.0)
        | down_up("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1.0)
        | down_up("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 1.0),
        "kohya",
        [
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
            "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
        ],
    ),
    "kohya, pivotal tuning": (
        down_up("lora_te_text_model_encoder_layers_0_mlp_fc1", 1.0) | {"emb_params": values(2, 8)},
        "kohya",
        ["text_encoder.text_model.encoder.layers.0.mlp.fc1"],
    ),
    "OneTrainer, dotted prefixes": (
        down_up("lora_unet.down_blocks.0.attentions.0.proj_in", 1.0) | down_up("lora_te1.text_model.final", 1.0),
        "kohya",
        ["text_encoder.text_model.final", "unet.down_blocks.0.attentions.0.proj_in"],
    ),
    "OneTrainer, components and embeddings": (
        down_up("unet.output_blocks.0.1.proj_in", 1.0)
        | {"bundle_emb.tok.clip_l": values(2, 8), "bundle_emb.tok.string_to_param.*": values(2, 8)},
        "kohya",
        ["unet.output_blocks.0.1.proj_in"],
    ),
    "OneTrainer, transformer": (
        down_up("lora_transformer_single_transformer_blocks_0_attn_to_q", 1.0),
        "kohya",
        ["transformer.single_transformer_blocks.0.attn.to_q"],
    ),
    "Stable Cascade": (
        down_up("lora_prior_te_text_model_encoder_layers_0_mlp_fc1", 1.0)
        | down_up("lora_prior_unet_down_blocks_0_attn_to_q", 1.0),
        "kohya",
        ["text_encoder.text_model.encoder.layers.0.mlp.fc1", "prior.down_blocks.0.attn.to_q"],
    ),
    "Wan Fun": (down_up("lora_unet__single_blocks_0_linear1", 1.0), "kohya", ["unet.single_blocks.0.linear1"]),
    "musubi-tuner": (down_up(FLAT, 1.0), "kohya", ["unet.double_blocks.0.img_attn.qkv"]),
    "ComfyUI, with text encoders": (
        down_up("diffusion_model.double_blocks.0.img_attn.qkv", 1.0)
        | down_up("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.k", 1.0),
        "kohya",
        [
            "diffusion_model.double_blocks.0.img_attn.qkv",
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.k",
        ],
    ),
    "LyCORIS of any model": (
        {f"lycoris_transformer_blocks_0_attn_to_q.lokr_w{n}": values(2 * n, 2 * n) for n in (1, 2)},
        "kohya",
        ["transformer_blocks.0.attn.to_q"],
    ),
    "ai-toolkit, LoKr": (
        {"diffusion_model.x.qkv.lokr_w1": values(2, 2), "diffusion_model.x.qkv.lokr_w2_a": values(4, 2),
         "diffusion_model.x.qkv.lokr_w2_b": values(2, 4), "diffusion_model.x.qkv.alpha": torch.tensor(2.0)},
        "kohya",
        ["diffusion_model.x.qkv"],
    ),
    "ai-toolkit": (a_b("transformer.single_transformer_blocks.0.norm.linear"), "diffusers",
                   ["transformer.single_transformer_blocks.0.norm.linear"]),
    "ai-toolkit, ComfyUI's names": (a_b("diffusion_model.layers.0.attention.qkv"), "diffusers",
                                    ["diffusion_model.layers.0.attention.qkv"]),
    "SimpleTuner": (
        a_b("transformer.transformer_blocks.0.attn.to_q")
        | {"transformer.transformer_blocks.0.attn.to_q.alpha": torch.tensor(2)},
        "diffusers",
        ["transformer.transformer_blocks.0.attn.to_q"],
    ),
    "no component": (
        a_b("single_transformer_blocks.0.proj_out"), "diffusers", ["single_transformer_blocks.0.proj_out"]),
    "DoRA of ComfyUI": (a_b("diffusion_model.x.y", 1.0) | {"diffusion_model.x.y.dora_scale": values(8, 1)}, "diffusers",
                        ["diffusion_model.x.y"]),
    "norms of Diffusers' control LoRA": (
        a_b("transformer.x_embedder", size=16)
        | {"transformer.x_embedder.lora_B.bias": values(8)}
        | {"transformer.transformer_blocks.0.attn.norm_added_k.weight": values(8)},
        "diffusers",
        ["transformer.x_embedder"],
    ),
    "SD3, text encoder in the old spelling": (
        a_b("transformer.transformer_blocks.0.attn.to_q")
        | ends(f"{TEXT}.self_attn.q_proj.lora_linear_layer", ".down.weight", ".up.weight"),
        "diffusers",
        [f"{TEXT}.self_attn.q_proj", "transformer.transformer_blocks.0.attn.to_q"],
    ),
    "Mochi": (
        ends("transformer_blocks.0.attn1.to_q", ".lora_A", ".lora_B"), "loralib", ["transformer_blocks.0.attn1.to_q"]),
    "Z-Image": (ends("diffusion_model.layers.0.attention.qkv.lora", ".down.weight", ".up.weight"), "diffusers-old",
                ["diffusion_model.layers.0.attention.qkv"]),
    "motion LoRA of AnimateDiff": (
        ends("down_blocks.0.motion_modules.0.attention_blocks.0.processor.to_q_lora", ".down.weight", ".up.weight"),
        "diffusers-old",
        ["unet.down_blocks.0.motion_modules.0.attention_blocks.0.to_q"],
    ),
    "fal's Kontext": (a_b("base_model.model.double_blocks.0.img_attn.qkv"), "peft", ["double_blocks.0.img_attn.qkv"]),
}  # fmt: skip


@pytest.mark.parametrize("tool", READ)
def test_what_a_trainer_writes_is_read_and_comes_back(tool: str, tmp_path: Path) -> None:
    state, name, paths = READ[tool]
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    dialect = dialect_of(adapter)
    assert adapter.dialect == name
    assert [dialect.path_of(delta.name) for delta in deltas(adapter)] == paths
    tensors = dialect.tensors(adapter)
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert tensors[key].shape == tuple(value.shape)
        assert tensors[key].data == value.numpy().tobytes()


REFUSED: dict[str, tuple[State, str, str]] = {
    "ControlNet-LLLite": (
        {"lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight": values(2, 8)}, "not-an-adapter", "LLLite"),
    "ControlNet-LLLite of a transformer": (
        {"lllite_dit_blocks_0_self_attn_q.down.0.weight": values(2, 8)}, "not-an-adapter", "LLLite"),
    "Control-LoRA of Stability AI": (
        {"lora_controlnet": torch.zeros(1), "input_blocks.1.0.in_layers.2.down": values(2, 8)},
        "not-an-adapter", "Control-LoRA"),
    "textual inversion, kohya": ({"emb_params": values(2, 8)}, "not-an-adapter", "textual inversion"),
    "textual inversion, SDXL": (
        {"clip_l": values(2, 8), "clip_g": values(2, 8)}, "not-an-adapter", "textual inversion"),
    "textual inversion, webui": ({"string_to_param.*": values(2, 8)}, "not-an-adapter", "textual inversion"),
    "textual inversion, diffusers": ({"<cat-toy>": values(8)}, "not-an-adapter", "textual inversion"),
    "IP-Adapter": (
        {"image_proj.proj.weight": values(8, 8), "ip_adapter.1.to_k_ip.weight": values(8, 8)},
        "not-an-adapter", "IP-Adapter"),
    "IP-Adapter with LoRA": (
        ends("ip_adapter.0.to_q_lora", ".down.weight", ".up.weight") | {"ip_adapter.0.to_k_ip.weight": values(8, 8)},
        "not-an-adapter", "IP-Adapter"),
    "hypernetwork": ({"768.0.linear.weight": values(8, 8)}, "not-an-adapter", "hypernetwork"),
    "OFT of OneTrainer": ({"lora_unet_x.oft_R.weight": values(2, 6)}, "multiplicative", "multiplies the base weight"),
    "OFT of OneTrainer, dotted": (
        {"unet.x.oft_R.weight": values(2, 6)}, "multiplicative", "multiplies the base weight"),
    "(IA)^3 under LyCORIS' own prefix": (
        {"lycoris_x.weight": values(8, 1), "lycoris_x.on_input": torch.tensor(0.0)}, "multiplicative", "activations"),
    "GLoRA, dotted": ({"diffusion_model.x.a1.weight": values(2, 8), "diffusion_model.x.a2.weight": values(8, 2)},
                      "glora", "depends on the base weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_lora_is_refused_by_name(what: str, tmp_path: Path) -> None:
    state, code, reason = REFUSED[what]
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=reason) as caught:
        nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola")
    assert caught.value.code == code
    assert not (tmp_path / "a.nola").exists()


def test_dense_changes_of_encode_delta_are_no_adapter(tmp_path: Path) -> None:
    save_file({"model.layers.0.mlp.up_proj.weight.diff": values(8, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError) as caught:
        read(tmp_path / "a.safetensors")
    assert caught.value.code == "empty-adapter"


def test_a_product_is_alpha_over_r_in_both_spellings(tmp_path: Path) -> None:
    for pair in (down_up, a_b):
        state = pair("diffusion_model.x", alpha=3.0)
        save_file(state, tmp_path / "a.safetensors")
        (delta,) = deltas(read(tmp_path / "a.safetensors"))
        np.testing.assert_allclose(delta.dense(), 1.5 * product(state, "diffusion_model.x").numpy(), rtol=1e-14)
