"""Which of two tied embeddings a checkpoint stores."""

from __future__ import annotations

from typing import Any

import pytest

from nola_codec.checkpoints.embeddings import TiedEmbeddings, tied_embeddings

EMBED = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)}
LLAMA = {"architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "shapes", "paths", "wanted"),
    [
        (LLAMA, EMBED, [], TiedEmbeddings("model.embed_tokens.weight", "lm_head.weight")),
        (LLAMA | {"tie_word_embeddings": False}, EMBED, [], None),
        (LLAMA | {"text_config": {"tie_word_embeddings": False}}, EMBED, [], None),
        (LLAMA, EMBED | {"lm_head.weight": (9, 4)}, [], None),
        ({"architectures": ["LlamaModel"]}, EMBED, [], None),
        ({}, EMBED, ["x.lm_head"], TiedEmbeddings("model.embed_tokens.weight", "x.lm_head.weight")),
        (
            {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"},
            {"gpt_neox.embed_in.weight": (9, 4)},
            [],
            TiedEmbeddings("gpt_neox.embed_in.weight", "embed_out.weight"),
        ),
        (
            LLAMA,
            {"lm_head.weight": (9, 4)},
            ["model.embed_tokens"],
            TiedEmbeddings("lm_head.weight", "model.embed_tokens.weight"),
        ),
    ],
)
def test_tied_embeddings(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], paths: list[str], wanted: TiedEmbeddings | None
) -> None:
    assert tied_embeddings(config, shapes, paths) == wanted
