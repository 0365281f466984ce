"""Wan 2.1 and 2.2, for video."""

from __future__ import annotations

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.rule import renamed

_LEAVES = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}

WAN = Family(
    "Wan",
    "transformer",
    ("WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel"),
    r"\bwan|lora_wan",
    (
        *renamed({f"self_attn.{a}": f"attn1.{b}" for a, b in _LEAVES.items()}, "blocks.{}.", "blocks.{}."),
        *renamed({f"cross_attn.{a}": f"attn2.{b}" for a, b in _LEAVES.items()}, "blocks.{}.", "blocks.{}."),
        *renamed(
            {
                "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj",
                "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
            }, "blocks.{}.", "blocks.{}.",
        ),
        # The layer norm with weights is the second one of a block in Diffusers, and the third one in Wan's own code.
        *renamed({"norm3": "norm2"}, "blocks.{}.", "blocks.{}."),
        *renamed({
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "patch_embedding": "patch_embedding", "head.head": "proj_out",
        }),
    ),
    loaded_by_diffusers=("transformer", "transformer_2"),
    widths=(1536, 3072, 5120),
)  # fmt: skip
