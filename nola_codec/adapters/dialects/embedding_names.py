"""Tell an embedding from a linear layer by the name of the module, for dialects that write both alike."""

from __future__ import annotations

from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Layout

# The names that the models of mlx-lm and Transformers give to modules of the class Embedding, and to no linear layer.
EMBEDDINGS = frozenset({
    "embed_tokens", "embed_tokens_per_layer", "embed_in", "embed_positions", "embeddings", "embedding", "shared",
    "tok_embeddings", "token_embeddings", "token_embedding", "token_type_embeddings", "tokens_embed", "word_embedding",
    "word_embeddings", "position_embedding", "position_embeddings", "position_embedding_table", "wte", "wpe",
})  # fmt: skip
# The names of linear layers that sound like those of embeddings.
_LINEAR = frozenset({"embed_out", "embedding_projection", "embedding_proj_layer", "embed_proj", "embeddings_project"})


def layout_of(name: str) -> Layout:
    """Return ``embedding`` for a module whose name is that of embeddings, and ``linear`` for others."""
    return "embedding" if name.rpartition(".")[2] in EMBEDDINGS else "linear"


def require_clear_layout(name: str, layout: Layout, dialect: str) -> None:
    """Check that the name of a module tells its layout, so that a conversion does not guess.

    Raises:
        AdapterError: ``not-expressible``: the name may be that of an embedding or of a linear layer.
    """
    leaf = name.rpartition(".")[2]
    unclear = layout_of(name) == "linear" and "emb" in leaf and leaf not in _LINEAR
    if unclear or layout_of(name) != layout:
        message = (
            f"{dialect} writes embeddings and linear layers under the same keys, and the name {leaf} does not tell "
            f"which of them this is; leave the module out of the adapter"
        )
        raise AdapterError(message, code="not-expressible", where=name)
