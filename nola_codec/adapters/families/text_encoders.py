"""The text encoders beside image models: CLIP in the layouts of Transformers and of open_clip, and T5."""

from __future__ import annotations

from nola_codec.adapters.families.rule import Match, Rule, RuleTable, renamed, unchanged

_LAYER, _BLOCK = "text_model.encoder.layers.{}.", "transformer.resblocks.{}."

_OPEN_CLIP: tuple[Rule, ...] = (
    Rule(f"{_BLOCK}attn.in_proj", tuple(f"{_LAYER}self_attn.{leaf}_proj" for leaf in "qkv")),
    *renamed({"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}, _BLOCK, _LAYER),
    Rule("token_embedding", ("text_model.embeddings.token_embedding",)),
)
_CLIP_LEAVES = (*(f"self_attn.{leaf}_proj" for leaf in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
# Transformers 5 leaves `text_model` out of the names of a CLIP without a projection.
_CLIP_WITHOUT_PREFIX = (
    *renamed({leaf: leaf for leaf in _CLIP_LEAVES}, "encoder.layers.{}.", _LAYER),
    Rule("embeddings.token_embedding", ("text_model.embeddings.token_embedding",)),
)
_T5_FEED_FORWARD = tuple(
    f"encoder.block.{{}}.layer.1.DenseReluDense.{leaf}" for leaf in ("wi", "wi_0", "wi_1", "wo")
)  # fmt: skip

CLIP = RuleTable((*_OPEN_CLIP, *_CLIP_WITHOUT_PREFIX, *unchanged(("text_projection",))))
"""CLIP: the path in Diffusers is that of Transformers before version 5."""

T5 = RuleTable(
    (
        *unchanged(tuple(f"encoder.block.{{}}.layer.0.SelfAttention.{leaf}" for leaf in "qkvo")),
        *unchanged((*_T5_FEED_FORWARD, "shared")),
    )
)
"""The encoder of T5."""


def find_in_text_encoder(name: str, *, is_flat: bool) -> tuple[str, Match] | None:
    """Return ``"clip"`` or ``"t5"`` and the match of a module of a text encoder, or None.

    Args:
        name: The path without prefixes.
        is_flat: True if underscores stand for dots.
    """
    for kind, table in (("clip", CLIP), ("t5", T5)):
        match = table.find(name, is_flat=is_flat)
        if match is not None:
            return kind, match
    return None
