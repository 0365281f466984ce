"""Stable Diffusion 3 and 3.5: the blocks of MMDiT."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import Rule, renamed

_IMAGE, _CONTEXT, _AFTER = "joint_blocks.{}.x_block.", "joint_blocks.{}.context_block.", "transformer_blocks.{}."

SD3 = Family(
    "Stable Diffusion 3",
    "transformer",
    ("SD3Transformer2DModel",),
    r"stable-diffusion-v?3|stable-diffusion-3|\bsd3|lora_sd3",
    (
        Rule(f"{_IMAGE}attn.qkv", tuple(f"{_AFTER}attn.to_{leaf}" for leaf in "qkv")),
        Rule(f"{_IMAGE}attn2.qkv", tuple(f"{_AFTER}attn2.to_{leaf}" for leaf in "qkv")),
        Rule(f"{_CONTEXT}attn.qkv", tuple(f"{_AFTER}attn.add_{leaf}_proj" for leaf in "qkv")),
        *renamed(
            {
                "attn.proj": "attn.to_out.0", "attn2.proj": "attn2.to_out.0", "adaLN_modulation.1": "norm1.linear",
                "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
            }, _IMAGE, _AFTER,
        ),
        *renamed(
            {
                "attn.proj": "attn.to_add_out", "mlp.fc1": "ff_context.net.0.proj", "mlp.fc2": "ff_context.net.2",
            }, _CONTEXT, _AFTER,
        ),
        # The context of the last block has only a scale and a shift, which Diffusers stores the other way round.
        Rule(f"{_CONTEXT}adaLN_modulation.1", (f"{_AFTER}norm1_context.linear",), swap="final"),
        *renamed({
            "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder",
            "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
        }),
        Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap="always"),
    ),
    {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"},
    ("transformer", "text_encoder", "text_encoder_2"),
    widths=(1536, 2432),
    readers="ComfyUI and sd-scripts",
)  # fmt: skip
