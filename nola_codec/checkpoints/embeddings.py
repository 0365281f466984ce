"""Input and output embeddings of a checkpoint, and which of the two is tied to the other."""

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
        missing: The name the other one has when it is stored too.
    """

    stored: str
    missing: str


def tied_embeddings(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], paths: Iterable[str]
) -> TiedEmbeddings | None:
    """The tied pair of a checkpoint, or None when it has both weights or no output embeddings.

    A checkpoint that lacks the output embeddings can only be loaded into a generative model by tying them, so that
    and not the flag decides: the flag's default changed between versions of Transformers.

    Args:
        config: ``config.json``.
        shapes: Stored tensors.
        paths: Module paths the adapter changes, as evidence of what the model has.
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
    """Stored input embeddings and output embeddings, known by the last component of their module."""
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    return (
        [name for name in matrices if _leaf(name) in _INPUT_EMBEDDINGS],
        [name for name in matrices if _leaf(name) in _OUTPUT_EMBEDDINGS],
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration: ``text_config`` of a composite model, or the whole."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _leaf(name: str) -> str:
    """``embed_tokens`` of ``model.embed_tokens.weight``; empty for what is not a weight."""
    path, _, last = name.rpartition(".")
    return path.rpartition(".")[2] if last == "weight" else ""


def have_same_leaf(a: str, b: str) -> bool:
    return _leaf(a) == _leaf(b)
