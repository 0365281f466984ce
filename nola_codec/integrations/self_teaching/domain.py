"""Texts of an adapter's domain, which the adapter writes itself from nothing: no prompt is needed.

Text that the model with the adapter draws from the first token on is mostly like that of the base model, on which the
adapter says little. So it is drawn away from the base model (`contrast.py`): what the adapter makes more likely is
made more likely still, and soon the text is about the adapter's domain. Most tasks also read something and write
something that depends on it. So half of the texts consist of two: after the first one and a new line, the adapter
writes another one, which repeats, answers or continues it. Where the tokenizer has a chat template, a quarter are
answers to questions that the adapter writes in the turn of the user (`chat_turns.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nola_codec.integrations.self_teaching.chat_turns import ask_oneself
from nola_codec.integrations.text_batches import TokenizedRow

_QUESTIONS = 1 / 4
"""The share of texts that begin with the turn of a user, where there is a chat template."""
LEAST_TOKENS = 8
"""The least tokens of a text; many adapters end a text that begins nowhere at once."""
_ROUNDS = 3
"""The number of times that texts are drawn for those that were too short, or that were there already."""
_ASKING, _ANSWERING, _AGAIN = 90, 92, 93
"""The numbers of the draws of questions, of their answers, and of second texts."""


class Writer(Protocol):
    """Writes with the adapter."""

    def __call__(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Return an answer to each prompt; `number` counts the draws, for the seed."""
        ...


def draw_from_nothing(draw: Writer, tokenizer: Any, count: int) -> list[TokenizedRow]:
    """Return texts of the adapter's domain.

    Each first text comes once. Only where an adapter writes nothing but short texts, or always the same, those fill up.
    Questions are prompts, which are not scored; all else is scored from the second token on.

    Args:
        draw: Writes with the adapter, away from the base model.
        tokenizer: The tokenizer of the base model.
        count: The number of texts.
    """
    questions = ask_oneself(draw, tokenizer, int(_QUESTIONS * count), _ASKING)
    answers = draw(questions, _ANSWERING) if questions else []
    first = _draw_once(draw, [_first_token(tokenizer)], count - len(answers))
    pairs = len(first) // 2
    begins = [_begin_again(ids, tokenizer) for ids, _ in first[:pairs]]
    again = [(ids, 1) for ids, _ in draw(begins, _AGAIN)] if begins else []
    return [*again, *first[pairs:], *answers]


def _draw_once(draw: Writer, begin: Sequence[int], count: int) -> list[TokenizedRow]:
    """Return so many texts of enough tokens, each once; after some rounds, others fill up."""
    found: dict[tuple[int, ...], TokenizedRow] = {}
    left: list[TokenizedRow] = []
    for number in range(_ROUNDS):
        for row in draw([begin] * (count - len(found)), number):
            key = tuple(row[0])
            if len(key) - row[1] >= LEAST_TOKENS and key not in found:
                found[key] = row
            else:
                left.append(row)
        if len(found) >= count:
            break
    return [*found.values(), *left][:count]


def _begin_again(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Return a text without its end, and a new line after it."""
    line = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    text = list(ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids)
    return text if line and text[-len(line) :] == line else [*text, *line]


def _first_token(tokenizer: Any) -> int:
    """Return the token that a text begins with."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0
