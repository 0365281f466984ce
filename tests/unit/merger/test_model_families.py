"""The family of a model is told from the names of its modules, whichever library made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nola_codec.merger.model_families import family_of


def transformers_model(kind: str) -> torch.nn.Module:
    import transformers

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    sizes = {"GPT2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 8},
             "T5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 8}}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes.get(kind, small))
    with torch.device("meta"):
        return getattr(transformers, f"{kind}Model")(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("Llama", "Llama or a relative of it"),
        ("GPT2", "GPT-2"),
        ("GPTNeoX", "GPT-NeoX"),
        ("Bert", "BERT"),
        ("T5", "T5"),
    ],
)
def test_models_of_transformers(kind: str, family: str) -> None:
    assert family_of(name for name, _ in transformers_model(kind).named_parameters()) == family


def unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip


def flux() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1, joint_attention_dim=8,
        pooled_projection_dim=8, in_channels=4, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def wan() -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, text_dim=8, freq_dim=8
    )


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (unet, "Stable Diffusion as diffusers names it"),
        (flux, "Flux as diffusers names it"),
        (wan, "Wan as diffusers names it"),
    ],
)
def test_models_of_diffusers(make: Callable[[], torch.nn.Module], family: str) -> None:
    with torch.device("meta"):
        names = [name for name, _ in make().named_parameters()]
    assert family_of(names) == family
    assert family_of([name.replace(".", "_") for name in names]) == family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "Stable Diffusion in the original layout"),
        ("model.diffusion_model.input_blocks.7.1.transformer_blocks.9.attn1.to_q", "SDXL in the original layout"),
        ("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q", "SDXL as diffusers names it"),
        ("double_blocks.0.img_attn.qkv", "Flux in BFL's layout"),
        ("lora_unet_double_blocks_0_img_mod_linear", "HunyuanVideo in the original layout"),
        ("joint_blocks.0.x_block.attn.qkv", "SD3 in the original layout"),
        ("transformer_blocks.0.img_mod.1", "Qwen-Image"),
        ("diffusion_model.blocks.0.self_attn.q", "Wan in the original layout"),
        ("text_model.encoder.layers.0.mlp.fc1", "CLIP's text encoder"),
        ("layers.0.attention.wq", "Llama or Mistral in the original layout"),
        ("some.other.module", ""),
    ],
)
def test_names_of_other_tools(name: str, family: str) -> None:
    assert family_of([name]) == family
