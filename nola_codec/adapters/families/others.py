"""Families with few differences or none: Qwen-Image, LTX-Video, LTX-2, Lumina 2, Z-Image and HiDream."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import Rule, renamed, unchanged

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

QWEN_IMAGE = Family(
    "Qwen-Image",
    "transformer",
    ("QwenImageTransformer2DModel",),
    r"qwen",
    (
        *unchanged(
            (
                *(f"attn.{leaf}" for leaf in _ATTENTION),
                "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
                *(f"{stream}_{leaf}" for stream in ("img", "txt") for leaf in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
            ), "transformer_blocks.{}.",
        ),
        *unchanged((
            "img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2",
        )),
    ),
    trained_as="diffusers",
    widths=(3072,),
)  # fmt: skip
LTX_VIDEO = Family(
    "LTX-Video",
    "transformer",
    ("LTXVideoTransformer3DModel",),
    r"ltx-?_?v",
    (
        *unchanged(
            (*(f"attn{n}.{leaf}" for n in (1, 2) for leaf in _ATTENTION), "ff.net.0.proj", "ff.net.2"),
            "transformer_blocks.{}.",
        ),
        *unchanged(("proj_out", "caption_projection.linear_1", "caption_projection.linear_2")),
        *renamed({
            "patchify_proj": "proj_in",
            "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
            "adaln_single.emb.timestep_embedder.linear_2": "time_embed.emb.timestep_embedder.linear_2",
            "adaln_single.linear": "time_embed.linear",
        }),
    ),
    trained_as="original",
    widths=(2048, 4096),
    readers="ComfyUI",
)  # fmt: skip
_LTX_2_ADALN = {
    "adaln_single": "time_embed", "audio_adaln_single": "audio_time_embed", "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}  # fmt: skip
LTX_2 = Family(
    "LTX-2",
    "transformer",
    ("LTX2VideoTransformer3DModel",),
    r"ltx-?_?2",
    (
        *unchanged(
            (
                *(
                    f"{attention}.{leaf}"
                    for attention in (
                        "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"
                    )
                    for leaf in (*_ATTENTION, "to_gate_logits")
                ),
                *(f"{ff}.net.{leaf}" for ff in ("ff", "audio_ff") for leaf in ("0.proj", "2")),
            ), "transformer_blocks.{}.",
        ),
        *unchanged((
            "proj_out", "audio_proj_out",
            *(f"{name}caption_projection.linear_{n}" for name in ("", "audio_") for n in (1, 2)),
        )),
        *renamed({"patchify_proj": "proj_in", "audio_patchify_proj": "audio_proj_in"}),
        *renamed({
            f"{original}.{leaf}": f"{diffusers}.{leaf}" for original, diffusers in _LTX_2_ADALN.items()
            for leaf in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
        }),
    ),
    trained_as="original",
    widths=(4096,),
    readers="ComfyUI",
)  # fmt: skip


def _lumina_blocks() -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for blocks in ("noise_refiner", "context_refiner", "layers"):
        before = f"{blocks}.{{}}."
        parts = tuple(f"{before}attn.to_{leaf}" for leaf in "qkv")
        rules.append(Rule(f"{before}attention.qkv", parts, "grouped"))
        rules += renamed(
            {"attention.out": "attn.to_out.0", **{f"feed_forward.w{n}": f"feed_forward.linear_{n}" for n in (1, 2, 3)}},
            before, before,
        )  # fmt: skip
        if blocks != "context_refiner":
            rules.append(Rule(f"{before}adaLN_modulation.1", (f"{before}norm1.linear",)))
    return tuple(rules)


LUMINA_2 = Family(
    "Lumina 2",
    "transformer",
    ("Lumina2Transformer2DModel",),
    r"lumina",
    (
        *_lumina_blocks(),
        *renamed({
            "cap_embedder.1": "time_caption_embed.caption_embedder.1", "x_embedder": "x_embedder",
            "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
            "final_layer.adaLN_modulation.1": "norm_out.linear_1", "final_layer.linear": "norm_out.linear_2",
        }),
    ),
    widths=(2304,),
    readers="ComfyUI and sd-scripts",
)  # fmt: skip


def _z_image_blocks() -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for blocks in ("noise_refiner", "context_refiner", "layers"):
        before = f"{blocks}.{{}}."
        rules.append(Rule(f"{before}attention.qkv", tuple(f"{before}attention.to_{leaf}" for leaf in "qkv")))
        rules.append(Rule(f"{before}attention.out", (f"{before}attention.to_out.0",)))
        rules += unchanged(("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"), before)
    return tuple(rules)


Z_IMAGE = Family(
    "Z-Image",
    "transformer",
    ("ZImageTransformer2DModel",),
    r"z-?_?image",
    (
        *_z_image_blocks(),
        *renamed({
            "x_embedder": "all_x_embedder.2-1", "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
            "cap_embedder.1": "cap_embedder.1", "t_embedder.mlp.0": "t_embedder.mlp.0",
            "t_embedder.mlp.2": "t_embedder.mlp.2",
        }),
    ),
    widths=(3840,),
)  # fmt: skip
_HIDREAM_ATTENTION = tuple(f"attn1.to_{leaf}{end}" for leaf in ("q", "k", "v", "out") for end in ("", "_t"))
HIDREAM = Family(
    "HiDream",
    "transformer",
    ("HiDreamImageTransformer2DModel",),
    r"hidream",
    (
        *unchanged(
            (
                *_HIDREAM_ATTENTION, "adaLN_modulation.1",
                *(f"ff_i.{part}w{n}" for part in ("shared_experts.", "experts.{}.") for n in (1, 2, 3)),
                *(f"ff_t.w{n}" for n in (1, 2, 3)),
            ), "double_stream_blocks.{}.block.",
        ),
        *unchanged(
            (
                *_HIDREAM_ATTENTION, "adaLN_modulation.1",
                *(f"ff_i.{part}w{n}" for part in ("shared_experts.", "experts.{}.") for n in (1, 2, 3)),
            ), "single_stream_blocks.{}.block.",
        ),
    ),
    trained_as="diffusers",
    widths=(2560,),
    readers="ComfyUI",
)  # fmt: skip
