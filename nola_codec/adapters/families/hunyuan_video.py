"""HunyuanVideo. Its names differ from those of Flux in dots and underscores alone, until they are flattened."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import Rule, renamed

_DOUBLE, _SINGLE, _REFINER = "double_blocks.{}.", "single_blocks.{}.", "txt_in.individual_token_refiner.blocks.{}."
_DOUBLE_AFTER, _SINGLE_AFTER = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_REFINER_AFTER = "context_embedder.token_refiner.refiner_blocks.{}."

HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    "transformer",
    ("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
    r"hunyuan-?_?video|framepack",
    (
        Rule(f"{_DOUBLE}img_attn_qkv", tuple(f"{_DOUBLE_AFTER}attn.to_{leaf}" for leaf in "qkv")),
        Rule(f"{_DOUBLE}txt_attn_qkv", tuple(f"{_DOUBLE_AFTER}attn.add_{leaf}_proj" for leaf in "qkv")),
        *renamed(
            {
                "img_attn_proj": "attn.to_out.0", "txt_attn_proj": "attn.to_add_out", "img_mod.linear": "norm1.linear",
                "txt_mod.linear": "norm1_context.linear", "img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2",
                "txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2",
            }, _DOUBLE, _DOUBLE_AFTER,
        ),
        Rule(
            f"{_SINGLE}linear1",
            tuple(f"{_SINGLE_AFTER}{leaf}" for leaf in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")), "block",
        ),
        Rule(f"{_SINGLE}linear2", (f"{_SINGLE_AFTER}proj_out",), ratio=(1, 5)),
        *renamed({"modulation.linear": "norm.linear"}, _SINGLE, _SINGLE_AFTER),
        Rule(f"{_REFINER}self_attn_qkv", tuple(f"{_REFINER_AFTER}attn.to_{leaf}" for leaf in "qkv")),
        *renamed(
            {
                "self_attn_proj": "attn.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
                "adaLN_modulation.1": "norm_out.linear",
            }, _REFINER, _REFINER_AFTER,
        ),
        *renamed({
            "txt_in.input_embedder": "context_embedder.proj_in",
            "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
            "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
            "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
            "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
            "img_in.proj": "x_embedder.proj",
            "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
        }),
        Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap="always"),
    ),
    widths=(3072,),
)  # fmt: skip
