"""Questions that an adapter asks itself: it writes the turn of the user in the chat template, and answers it then.

A template puts marks around each turn. A model that was tuned on conversations writes a likely question after the mark
that begins the turn of a user, as Magpie found (arXiv 2406.08464).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nola_codec.integrations.text_batches import TokenizedRow

_TURN = "NOLA USER TURN"
"""The text that stands for the turn of the user until it is drawn."""


def turn_marks(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """Return the tokens before and after the turn of a user, up to the answer; None without a template for it."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _TURN}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # a template is a program of a stranger, and raises what it likes
        return None
    parts = text.split(_TURN)
    if len(parts) != 2:
        return None
    before, after = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
    return (before, after) if before and after else None


def ask_oneself(
    draw: Callable[[Sequence[Sequence[int]], int], list[TokenizedRow]], tokenizer: Any, count: int, number: int
) -> list[list[int]]:
    """Return prompts whose questions the adapter wrote, at most `count`; none without a chat template.

    Args:
        draw: A function of prompts and of the number of the draw, that returns an answer to each prompt.
        tokenizer: The tokenizer of the base model.
        count: The number of questions that are drawn; empty ones are left out.
        number: The number of the draw.
    """
    marks = turn_marks(tokenizer)
    if marks is None or not count:
        return []
    before, after = marks
    ends = {after[0], tokenizer.eos_token_id}
    found = []
    for ids, start in draw([before] * count, number):
        turn = list(ids[start:])
        turn = turn[: next((place for place, token in enumerate(turn) if token in ends), len(turn))]
        if turn:
            found.append([*before, *turn, *after])
    return found
