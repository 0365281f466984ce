"""The UNets of Stable Diffusion 1 and 2, of SDXL and of its refiner.

The original code numbers all blocks of a side in one row (``input_blocks.4``), and Diffusers numbers them by resolution
(``down_blocks.1.attentions.0``). In all of these models a resolution has two layers on the way down and three up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import Rule, renamed

_LAYERS = 2
_PLAIN, _CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ATTENTION = (
    "norm", "proj_in", "proj_out",
    *(f"transformer_blocks.{{}}.attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.{}.ff.net.0.proj", "transformer_blocks.{}.ff.net.2",
    *(f"transformer_blocks.{{}}.norm{n}" for n in (1, 2, 3)),
)  # fmt: skip
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip


def _unet_rules(levels: int, attending_down: Collection[int], attending_up: Collection[int]) -> tuple[Rule, ...]:
    """Return the rules of a UNet.

    Args:
        levels: The number of resolutions.
        attending_down: The resolutions of ``down_blocks`` that have attention.
        attending_up: The resolutions of ``up_blocks`` that have attention.
    """
    rules = list(renamed(_OUTSIDE))
    for level in range(levels):
        for layer in range(_LAYERS):
            block = f"input_blocks.{1 + level * (_LAYERS + 1) + layer}"
            rules += _resnet(f"{block}.0", f"down_blocks.{level}.resnets.{layer}")
            if level in attending_down:
                rules += _attention(f"{block}.1", f"down_blocks.{level}.attentions.{layer}")
        if level < levels - 1:
            block = f"input_blocks.{(level + 1) * (_LAYERS + 1)}"
            rules.append(Rule(f"{block}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",)))
    for number, (kind, layer) in enumerate((("resnets", 0), ("attentions", 0), ("resnets", 1))):
        make = _attention if kind == "attentions" else _resnet
        rules += make(f"middle_block.{number}", f"mid_block.{kind}.{layer}")
    for level in range(levels):
        for layer in range(_LAYERS + 1):
            block = f"output_blocks.{level * (_LAYERS + 1) + layer}"
            rules += _resnet(f"{block}.0", f"up_blocks.{level}.resnets.{layer}")
            if level in attending_up:
                rules += _attention(f"{block}.1", f"up_blocks.{level}.attentions.{layer}")
        if level < levels - 1:
            block = f"output_blocks.{(level + 1) * (_LAYERS + 1) - 1}.{2 if level in attending_up else 1}"
            rules.append(Rule(f"{block}.conv", (f"up_blocks.{level}.upsamplers.0.conv",)))
    return tuple(rules)


def _resnet(original: str, diffusers: str) -> Iterator[Rule]:
    yield from renamed(_RESNET, f"{original}.", f"{diffusers}.")


def _attention(original: str, diffusers: str) -> Iterator[Rule]:
    yield from renamed({path: path for path in _ATTENTION}, f"{original}.", f"{diffusers}.")


STABLE_DIFFUSION = Family(
    "Stable Diffusion 1 and 2",
    "unet",
    ("UNet2DConditionModel",),
    r"stable-diffusion-v[12]|\bsd_?(v?[12]|1\.5)",
    _unet_rules(4, (0, 1, 2), (1, 2, 3)),
    {"te1": "text_encoder", "te": "text_encoder"},
    ("unet", "text_encoder"),
    "diffusers",
    (320, 640),
    "ComfyUI and sd-scripts",
    (_CROSS, _CROSS, _CROSS, _PLAIN),
)
SDXL = Family(
    "SDXL",
    "unet",
    ("UNet2DConditionModel",),
    r"stable-diffusion-xl(?!.*refiner)|\bsdxl|illustrious|\bpony",
    _unet_rules(3, (1, 2), (0, 1)),
    {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"},
    ("unet", "text_encoder", "text_encoder_2"),
    "original",
    (640, 1280),
    "ComfyUI and sd-scripts",
    (_PLAIN, _CROSS, _CROSS),
)
SDXL_REFINER = Family(
    "the refiner of SDXL",
    "unet",
    ("UNet2DConditionModel",),
    r"stable-diffusion-xl.*refiner",
    _unet_rules(4, (1, 2), (1, 2)),
    {"te2": "text_encoder_2"},
    ("unet", "text_encoder_2"),
    "original",
    (768, 1536),
    "ComfyUI",
    (_PLAIN, _CROSS, _CROSS, _PLAIN),
)
