"""Wan 2.1 and 2.2 and VACE, for video. The norms and modulations serve merges; no tool trains a LoRA of them."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import renamed

_BLOCK = {
    **{f"self_attn.{a}": f"attn1.{b}" for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    **{f"cross_attn.{a}": f"attn2.{b}" for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    **{f"{a}.norm_{x}": f"{b}.norm_{x}" for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2")) for x in "qk"},
    "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    # The layer norm with weights is the second one of a block in Diffusers, and the third one in Wan's own code.
    "norm3": "norm2", "modulation": "scale_shift_table",
}  # fmt: skip

WAN = Family(
    "Wan",
    "transformer",
    ("WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel"),
    r"\bwan|lora_wan",
    (
        *renamed(_BLOCK, "blocks.{}.", "blocks.{}."),
        *renamed(
            {**_BLOCK, "before_proj": "proj_in", "after_proj": "proj_out"}, "vace_blocks.{}.", "vace_blocks.{}."
        ),
        *renamed({
            "vace_patch_embedding": "vace_patch_embedding",
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
            "patch_embedding": "patch_embedding", "head.head": "proj_out", "head.modulation": "scale_shift_table",
        }),
    ),
    loaded_by_diffusers=("transformer", "transformer_2"),
    widths=(1536, 3072, 5120),
)  # fmt: skip
