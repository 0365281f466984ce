"""Case 10: adapters of the UNets of Stable Diffusion and SDXL under the original names and under those of Diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from image_lora import (
    convert_file,
    file_deltas,
    fused_change,
    kohya_state,
    load,
    peft_state,
    require_equal,
    state_deltas,
    without_component,
)

from nola_codec.errors import AdapterError

Shapes = dict[str, tuple[int, ...]]
# Of the tiny UNets: the sizes of the resolutions, of the text and of the time embedding.
SIZES, TEXT, TIME = (4, 8, 12), 6, 16


def attention(block: str, size: int, depth: int) -> Shapes:
    found: Shapes = {f"{block}.proj_in": (size, size), f"{block}.proj_out": (size, size)}
    for number in range(depth):
        for name, inputs in (("attn1", size), ("attn2", TEXT)):
            leaf = f"{block}.transformer_blocks.{number}.{name}"
            found |= {f"{leaf}.to_q": (size, size), f"{leaf}.to_k": (size, inputs), f"{leaf}.to_v": (size, inputs)}
            found[f"{leaf}.to_out.0"] = (size, size)
        found[f"{block}.transformer_blocks.{number}.ff.net.0.proj"] = (8 * size, size)
        found[f"{block}.transformer_blocks.{number}.ff.net.2"] = (size, 4 * size)
    return found


def resnet(block: str, inputs: int, out: int) -> Shapes:
    found: Shapes = {
        f"{block}.in_layers.2": (out, inputs, 3, 3), f"{block}.emb_layers.1": (out, TIME),
        f"{block}.out_layers.3": (out, out, 3, 3),
    }  # fmt: skip
    return found | ({f"{block}.skip_connection": (out, inputs, 1, 1)} if inputs != out else {})


def sdxl_names(depths: tuple[int, int, int] = (0, 1, 2)) -> Shapes:
    """Return all modules of SDXL's own UNet as `sgm` builds it, with the depth of the attention by resolution."""
    a = SIZES[0]
    found: Shapes = {
        "input_blocks.0.0": (a, 4, 3, 3), "time_embed.0": (TIME, a), "time_embed.2": (TIME, TIME),
        "label_emb.0.0": (TIME, 20), "label_emb.0.2": (TIME, TIME), "out.2": (4, a, 3, 3),
    }  # fmt: skip
    skips, number, width = [a], 0, a
    for level, size in enumerate(SIZES):
        for _ in range(2):
            number += 1
            found |= resnet(f"input_blocks.{number}.0", width, size)
            width = size
            if depths[level]:
                found |= attention(f"input_blocks.{number}.1", size, depths[level])
            skips.append(width)
        if level < 2:
            number += 1
            found[f"input_blocks.{number}.0.op"] = (size, size, 3, 3)
            skips.append(width)
    found |= resnet("middle_block.0", width, width) | attention("middle_block.1", width, depths[2])
    found |= resnet("middle_block.2", width, width)
    number = -1
    for level in (2, 1, 0):
        for layer in range(3):
            number += 1
            found |= resnet(f"output_blocks.{number}.0", width + skips.pop(), SIZES[level])
            width = SIZES[level]
            if depths[level]:
                found |= attention(f"output_blocks.{number}.1", width, depths[level])
            if layer == 2 and level:
                found[f"output_blocks.{number}.2.conv"] = (width, width, 3, 3)
    return found


def text_names(size: int, layers: int = 1) -> Shapes:
    found: Shapes = {}
    for layer in range(layers):
        before = f"text_model.encoder.layers.{layer}"
        found |= {f"{before}.self_attn.{leaf}_proj": (size, size) for leaf in ("q", "k", "v", "out")}
        found |= {f"{before}.mlp.fc1": (2 * size, size), f"{before}.mlp.fc2": (size, 2 * size)}
    return found


def flattened(shapes: Shapes, prefix: str) -> Shapes:
    return {prefix + name.replace(".", "_"): shape for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def sdxl_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=SIZES, layers_per_block=2, norm_num_groups=2, cross_attention_dim=TEXT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=20,
    )  # fmt: skip


def test_all_names_of_sdxl_are_those_that_diffusers_converter_makes(sdxl_unet: Any, tmp_path: Path) -> None:
    """The deltas are those of diffusers' own converter of kohya files, to 1e-6."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    # diffusers' converter cannot read two of the names.
    shapes = {k: v for k, v in sdxl_names().items() if "time_embed" not in k}
    shapes = flattened(shapes, "lora_unet_") | flattened(text_names(8), "lora_te1_")
    shapes |= flattened(text_names(12), "lora_te2_")
    source = kohya_state(shapes)
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(source), unet_config=sdxl_unet.config)
    assert len(alphas) == len(shapes)
    wanted = state_deltas(convert_unet_state_dict_to_peft(state))
    texts = {
        re.sub(r"to_(q|k|v|out)_lora", r"\1_proj", key).replace(".lora_linear_layer", "").replace("down", "lora_A")
        .replace(".up.", ".lora_B."): value
        for key, value in state.items() if key.startswith("text")
    }  # fmt: skip
    wanted = {k: v for k, v in wanted.items() if k.startswith("unet.")} | state_deltas(texts)
    found = file_deltas(convert_file(source, "diffusers", tmp_path))
    require_equal(found, {name: delta / 2 for name, delta in wanted.items()})


def test_a_converted_file_changes_the_unet_of_diffusers(sdxl_unet: Any, tmp_path: Path) -> None:
    """All modules of SDXL's own UNet find their place in the real class, and change its weights by the deltas."""
    from diffusers import StableDiffusionXLPipeline

    path = convert_file(kohya_state(flattened(sdxl_names(), "lora_unet_"), alpha=1.5), "diffusers", tmp_path)

    def apply() -> None:
        state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(path, return_lora_metadata=True)
        StableDiffusionXLPipeline.load_lora_into_unet(state, alphas, sdxl_unet, metadata=metadata)

    changes = fused_change(sdxl_unet, apply)
    assert len(changes) == len(sdxl_names())
    require_equal(changes, without_component(file_deltas(path), "unet"))


@pytest.mark.parametrize("with_projection", [False, True])
@pytest.mark.parametrize("alpha", [2.0, 0.7])
def test_text_encoders_are_loaded(with_projection: bool, alpha: float, tmp_path: Path) -> None:
    """Transformers names the modules of CLIP with and without ``text_model``; the scaling arrives in both."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size, component = (12, "text_encoder_2") if with_projection else (8, "text_encoder")
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=size, intermediate_size=2 * size, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)
    shapes = flattened(text_names(8, 2), "lora_te1_") | flattened(text_names(12, 2), "lora_te2_")
    source = kohya_state(shapes, alpha=alpha)
    # Another rank for one module gives the configuration a pattern.
    other = kohya_state({"lora_te1_text_model_encoder_layers_1_mlp_fc1": (16, 8)}, rank=3, alpha=alpha)
    path = convert_file(source | other, "diffusers", tmp_path)

    def apply() -> None:
        state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(path, return_lora_metadata=True)
        StableDiffusionXLPipeline.load_lora_into_text_encoder(state, alphas, model, component, metadata=metadata)

    changes = fused_change(model, apply)
    assert len(changes) == 12
    found = {f"text_model.{name.removeprefix('text_model.')}": change for name, change in changes.items()}
    require_equal(found, without_component(file_deltas(path), component))


def diffusers_names(original: Shapes) -> Shapes:
    """Return modules under the names of Diffusers, by the rules of sd-scripts' own table, for the attention alone."""
    found = {}
    for name, shape in original.items():
        match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.1\.(.+)", name)
        if match is not None:
            number = int(match[2]) - (match[1] == "input")
            side = "down" if match[1] == "input" else "up"
            found[f"{side}_blocks.{number // 3}.attentions.{number % 3}.{match[3]}"] = shape
        elif name.startswith("middle_block.1."):
            found[f"mid_block.attentions.0.{name.removeprefix('middle_block.1.')}"] = shape
    return found


def test_an_sdxl_adapter_of_diffusers_gets_the_names_of_sd_scripts(tmp_path: Path) -> None:
    """sd-scripts, ComfyUI and diffusers' converter read the names of SDXL's own UNet in a kohya file."""
    from diffusers import StableDiffusionXLPipeline

    shapes = diffusers_names(sdxl_names())
    source = peft_state({f"unet.{name}": shape for name, shape in shapes.items()})
    source |= peft_state({f"text_encoder_2.{name}": shape for name, shape in text_names(12).items()})
    path = convert_file(source, "kohya", tmp_path)
    names = {key.partition(".")[0] for key in load(path)}
    wanted = {n for n in flattened(sdxl_names(), "lora_unet_") if re.search(r"put_blocks_\d+_1_|middle_block_1_", n)}
    assert names == wanted | set(flattened(text_names(12), "lora_te2_"))
    again = convert_file(load(path), "diffusers", tmp_path / "again")
    require_equal(file_deltas(again), state_deltas(source))
    StableDiffusionXLPipeline.lora_state_dict(load(path), unet_config=type("Config", (), {"layers_per_block": 2}))


def test_a_unet_that_is_not_known_needs_the_base(tmp_path: Path) -> None:
    """sd-scripts has Diffusers' names for Stable Diffusion, and the original ones for SDXL: nothing is guessed."""
    source = peft_state({"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (12, 12)})
    with pytest.raises(AdapterError) as refused:
        convert_file(source, "kohya", tmp_path / "bare")
    assert refused.value.code == "needs-base"
    assert "SDXL" in str(refused.value)
    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    for types, name in (
        ([plain, cross, cross], "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"),
        ([cross, cross, cross, plain], "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"),
    ):
        base = {"_class_name": "UNet2DConditionModel", "down_block_types": types}
        path = convert_file(source, "kohya", tmp_path / str(len(types)), base=base)
        assert f"{name}.alpha" in load(path)
    with pytest.raises(AdapterError) as refused:
        convert_file(source, "kohya", tmp_path / "other", base={"_class_name": "FluxTransformer2DModel"})
    assert refused.value.code == "base-mismatch"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("output_blocks_8_2_conv", "up_blocks.2.upsamplers.0.conv"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),  # no attention comes before it
        ("output_blocks_11_1_proj_out", "up_blocks.3.attentions.2.proj_out"),
        ("up_blocks_3_attentions_2_proj_out", "up_blocks.3.attentions.2.proj_out"),
    ],
)
def test_names_of_stable_diffusion(name: str, wanted: str, tmp_path: Path) -> None:
    """Stable Diffusion 1 has four resolutions, and no attention at the smallest."""
    shape = (8, 8, 3, 3) if "conv" in name or "op" in name.split("_") else (8, 8, 1, 1)
    path = convert_file(kohya_state({f"lora_unet_{name}": shape}), "diffusers", tmp_path)
    assert list(file_deltas(path)) == [f"unet.{wanted}"]
