"""A vocabulary that grows: an adapter brings embeddings with more rows than the base model has.

Tokens were added before the training, so that the input embeddings, the output embeddings, or both were resized and
saved whole with the adapter. The merged model gets the larger matrices, and its configuration their number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from nola_codec.checkpoints.embeddings import embedding_names
from nola_codec.errors import AdapterError


def is_resized(name: str, base: tuple[int, ...], brought: tuple[int, ...]) -> bool:
    """Return True if a tensor is an embedding of the base model with another number of rows.

    Args:
        name: The name of the weight, or of the bias of output embeddings.
        base: Its shape in the base model.
        brought: The shape that the adapter brings.
    """
    if len(base) != len(brought) or not base or not brought[0] or base[1:] != brought[1:]:
        return False
    matrix = (*base, 1)[:2]
    return any(embedding_names({f"{name.rpartition('.')[0]}.weight": matrix}))


def merged_vocabulary(
    shapes: Mapping[str, tuple[int, ...]], brought: Mapping[str, tuple[int, ...]], untied: Mapping[str, str], where: str
) -> int | None:
    """Return the number of rows of the merged embeddings; None if it is that of the base model.

    Args:
        shapes: The shape of each weight of the base model.
        brought: The shapes of the tensors that take the place of weights, by the name of the weight.
        untied: The stored weight that a weight was tied to, for each weight that is now written separately.
        where: The base model, for messages.

    Raises:
        AdapterError: ``vocabulary``: the input and the output embeddings would have different numbers of rows.
    """
    resized = {name: shape[0] for name, shape in brought.items() if is_resized_from(name, shape, shapes, untied)}
    if not resized:
        return None
    first, rows = next(iter(resized.items()))
    before = shapes[untied.get(first, first)][0]
    whole = {**shapes, **{name: shapes[source] for name, source in untied.items()}}
    inputs, outputs = embedding_names(whole)
    for name in (*inputs, *outputs):
        own = brought.get(name, whole[name])[0]
        if own != rows and whole[name][0] == before:
            message = (
                f"the adapter has {rows} rows of {first}, the base {before}, and {name} would keep {own}: its further "
                "rows are not in the adapter. Resize the base model first, or save both with the adapter"
            )
            raise AdapterError(message, code="vocabulary", where=where)
    return rows


def is_resized_from(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], untied: Mapping[str, str]
) -> bool:
    """Return True if a tensor that is brought has another shape than the weight that it replaces."""
    source = untied.get(name, name)
    return source in shapes and shapes[source] != shape


def require_no_delta(changed: Iterable[str], rows: int | None, resized: Iterable[str], where: str) -> None:
    """Refuse a delta on an embedding that is resized as well, since their rows do not correspond.

    Raises:
        AdapterError: ``vocabulary``.
    """
    both = set(changed) & set(resized)
    if both:
        message = f"an adapter changes {min(both)}, and its rows become {rows}. Resize the base model first"
        raise AdapterError(message, code="vocabulary", where=where)


def config_of(config: Mapping[str, Any], *, unties: bool, vocabulary: int | None) -> dict[str, Any]:
    """Return a copy of ``config.json`` for a merged model.

    Args:
        config: The configuration of the base model.
        unties: True if the embeddings are no longer tied.
        vocabulary: The new number of rows of the embeddings, or None.
    """
    result: dict[str, Any] = json.loads(json.dumps(config))
    inner = result.get("text_config")
    parts = [result, *([inner] if isinstance(inner, dict) else [])]
    for part in parts:
        if unties:
            part["tie_word_embeddings"] = False
        if vocabulary is not None and ("vocab_size" in part or part is parts[-1]):
            part["vocab_size"] = vocabulary
    return result
