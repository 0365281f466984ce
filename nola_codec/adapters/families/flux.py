"""Flux 1 of Black Forest Labs, Chroma, which kept its names, and Flux 2.

Diffusers keeps q, k, v and the mlp of a block apart, which the original code has in one weight.
"""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import Rule, renamed

_DOUBLE, _SINGLE = "double_blocks.{}.", "single_blocks.{}."
_DOUBLE_AFTER, _SINGLE_AFTER = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_PROJECTIONS = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
_ATTENTION = (
    *(
        Rule(f"{_DOUBLE}{stream}_attn.qkv", tuple(f"{_DOUBLE_AFTER}attn.{leaf}" for leaf in leaves))
        for stream, leaves in _PROJECTIONS.items()
    ),
    *renamed({"img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out"}, _DOUBLE, _DOUBLE_AFTER),
    # The norms serve merges alone.
    *renamed(
        {
            "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
            "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
        }, _DOUBLE, _DOUBLE_AFTER,
    ),
    *renamed({f"norm.{name}_norm": f"attn.norm_{name[0]}" for name in ("query", "key")}, _SINGLE, _SINGLE_AFTER),
)  # fmt: skip
# Of these weights, the shapes tell Flux 1 and 2 apart: the mlp is four times as wide, or twice three times.
_MLP = (
    *renamed(
        {"img_mlp.0": "ff.net.0.proj", "txt_mlp.0": "ff_context.net.0.proj"}, _DOUBLE, _DOUBLE_AFTER, ratio=(4, 1)
    ),
    *renamed({"img_mlp.2": "ff.net.2", "txt_mlp.2": "ff_context.net.2"}, _DOUBLE, _DOUBLE_AFTER, ratio=(1, 4)),
)
_SINGLE_BLOCK = (
    Rule(
        f"{_SINGLE}linear1",
        tuple(f"{_SINGLE_AFTER}{leaf}" for leaf in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        "block",
    ),
    Rule(f"{_SINGLE}linear2", (f"{_SINGLE_AFTER}proj_out",), ratio=(1, 5)),
)
# XLabs trains processors of attention; that of a single block has the rows of q, k and v alone.
_XLABS = (
    *(
        Rule(
            f"{_DOUBLE}processor.qkv_lora{number}",
            tuple(f"{_DOUBLE_AFTER}attn.{leaf}" for leaf in _PROJECTIONS[stream]), is_alias=True,
        )
        for number, stream in ((1, "img"), (2, "txt"))
    ),
    Rule(f"{_DOUBLE}processor.proj_lora1", (f"{_DOUBLE_AFTER}attn.to_out.0",), is_alias=True),
    Rule(f"{_DOUBLE}processor.proj_lora2", (f"{_DOUBLE_AFTER}attn.to_add_out",), is_alias=True),
    Rule(
        f"{_SINGLE}processor.qkv_lora", tuple(f"{_SINGLE_AFTER}attn.to_{leaf}" for leaf in "qkv"), ratio=(3, 1),
        is_alias=True,
    ),
    Rule(f"{_SINGLE}processor.proj_lora", (f"{_SINGLE_AFTER}proj_out",), ratio=(1, 5), is_alias=True),
)  # fmt: skip
_OUTSIDE = renamed({"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"})
_EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
_TEXT_ENCODERS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_2"}

FLUX = Family(
    "Flux 1",
    "transformer",
    ("FluxTransformer2DModel",),
    r"flux-?1|flux\.1|lora_flux|\bflux(?!.?2)",
    (
        *_ATTENTION,
        *_MLP,
        *_SINGLE_BLOCK,
        *_XLABS,
        *_OUTSIDE,
        *renamed({"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}, _DOUBLE, _DOUBLE_AFTER),
        *renamed({"modulation.lin": "norm.linear"}, _SINGLE, _SINGLE_AFTER),
        *(
            Rule(f"{original}.{layer}", (f"time_text_embed.{diffusers}.linear_{number}",))
            for original, diffusers in _EMBEDDERS.items()
            for number, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap="always"),
    ),
    _TEXT_ENCODERS,
    ("transformer", "text_encoder"),
    widths=(3072,),
    readers="ComfyUI and sd-scripts",
)
CHROMA = Family(
    "Chroma",
    "transformer",
    ("ChromaTransformer2DModel",),
    r"chroma",
    (
        *_ATTENTION,
        *_MLP,
        *_SINGLE_BLOCK,
        *_OUTSIDE,
        *renamed(
            {
                "in_proj": "in_proj", "out_proj": "out_proj", "layers.{}.in_layer": "layers.{}.linear_1",
                "layers.{}.out_layer": "layers.{}.linear_2",
            }, "distilled_guidance_layer.", "distilled_guidance_layer.",
        ),
    ),
    {"te3": "text_encoder"},
    widths=(3072,),
    readers="ComfyUI and sd-scripts",
)  # fmt: skip
FLUX_2 = Family(
    "Flux 2",
    "transformer",
    ("Flux2Transformer2DModel",),
    r"flux.?2|klein",
    (
        *_ATTENTION,
        *_OUTSIDE,
        *renamed(
            {"img_mlp.0": "ff.linear_in", "txt_mlp.0": "ff_context.linear_in"}, _DOUBLE, _DOUBLE_AFTER, ratio=(6, 1)
        ),
        *renamed(
            {"img_mlp.2": "ff.linear_out", "txt_mlp.2": "ff_context.linear_out"}, _DOUBLE, _DOUBLE_AFTER,
            ratio=(1, 3),
        ),
        # The mlp is three times as wide as the block, and gated, which takes twice the rows.
        Rule(f"{_SINGLE}linear1", (f"{_SINGLE_AFTER}attn.to_qkv_mlp_proj",), ratio=(9, 1)),
        Rule(f"{_SINGLE}linear2", (f"{_SINGLE_AFTER}attn.to_out",), ratio=(1, 4)),
        *(
            Rule(f"{original}.{layer}", (f"time_guidance_embed.{diffusers}.linear_{number}",))
            for original, diffusers in _EMBEDDERS.items() if original != "vector_in"
            for number, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        *renamed(
            {f"{name}.lin": f"{name}.linear" for name in (
                "single_stream_modulation", "double_stream_modulation_img", "double_stream_modulation_txt"
            )}
        ),
        Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap="always"),
    ),
    widths=(3072, 4096, 6144),
)  # fmt: skip
