"""The input and output embeddings of a checkpoint, and the tie between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "tokens_embed", "shared")
_OUTPUT_EMBEDDINGS = ("lm_head", "embed_out")
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")


@dataclass(frozen=True)
class TiedEmbeddings:
    """Input and output embeddings of which only one is stored.

    Attributes:
        stored: The tensor that serves as both.
        missing: The name that the other one has in checkpoints that store both.
    """

    stored: str
    missing: str


def tied_embeddings(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], paths: Iterable[str]
) -> TiedEmbeddings | None:
    """Return the tied pair of a checkpoint; None if it stores both weights, or if the model has no output embeddings.

    A generative model whose checkpoint lacks the output embeddings can only be loaded by tying them to the input
    embeddings. So a missing weight decides, unless ``tie_word_embeddings`` is False. A true flag does not count,
    because its default changed between versions of Transformers.

    Args:
        config: The parsed ``config.json``.
        shapes: The shape of each stored tensor, by name.
        paths: The module paths that the adapter changes, as evidence of the model's modules.
    """
    if text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings")) is False:
        return None
    paths = list(paths)
    inputs, outputs = embedding_names(shapes)
    if not outputs and len(inputs) == 1:
        targeted = [path for path in paths if path.rpartition(".")[2] in _OUTPUT_EMBEDDINGS]
        architectures = config.get("architectures") or []
        generative = any(isinstance(name, str) and name.endswith(_GENERATIVE) for name in architectures)
        if targeted or generative:
            default = "embed_out" if config.get("model_type") in ("gpt_neox", "gpt_neox_japanese") else "lm_head"
            return TiedEmbeddings(inputs[0], (targeted[0] if targeted else default) + ".weight")
    if not inputs and len(outputs) == 1:
        targeted = [path for path in paths if path.rpartition(".")[2] in _INPUT_EMBEDDINGS]
        if targeted:
            return TiedEmbeddings(outputs[0], targeted[0] + ".weight")
    return None


def embedding_names(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """Return the names of the stored input embeddings, and those of the output embeddings.

    The last component of the module path tells which they are.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    return (
        [name for name in matrices if _leaf(name) in _INPUT_EMBEDDINGS],
        [name for name in matrices if _leaf(name) in _OUTPUT_EMBEDDINGS],
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a configuration: ``text_config`` of a composite model, or the whole."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _leaf(name: str) -> str:
    """Return ``embed_tokens`` for ``model.embed_tokens.weight``; an empty string if the tensor is not a weight."""
    path, _, last = name.rpartition(".")
    return path.rpartition(".")[2] if last == "weight" else ""


def have_same_leaf(a: str, b: str) -> bool:
    """Return True if two weights belong to modules whose paths end in the same component."""
    return _leaf(a) == _leaf(b)
