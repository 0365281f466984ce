"""Texts of an adapter's domain, which the adapter writes itself from nothing: no prompt is needed.

Text that the model with the adapter draws from the first token on is mostly like that of the base model, on which the
adapter says little. So it is drawn away from the base model (`contrast.py`): what the adapter makes more likely is
made more likely still, and soon the text is about the adapter's domain. Nobody knows what the prompts of the task look
like, so three kinds of texts are made:

- Two texts: after the first one and a new line, the adapter writes another one, which repeats, answers or continues it,
  since most tasks read something and write something that depends on it.
- A beginning that the base model writes, of any kind, and a text of the adapter after it.
- Where the tokenizer has a chat template, answers to questions that the adapter writes itself in the turn of the user
  (`chat_turns.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nola_codec.integrations.self_teaching.chat_turns import ask_oneself
from nola_codec.integrations.text_batches import TokenizedRow

_QUESTIONS = 1 / 4
"""The share of texts that begin with the turn of a user, where there is a chat template. The other kinds share the
rest."""
LEAST_TOKENS = 8
"""The least tokens of a text; many adapters end a text that begins nowhere at once."""
_ROUNDS = 3
"""The number of times that texts are drawn for those that were too short, or that were there already."""
_ASKING, _ANSWERING, _AGAIN, _BEGINNING, _GOING_ON = 90, 92, 93, 94, 95
"""The numbers of the draws of questions, of their answers, of second texts, of beginnings and of what follows them."""


class Writer(Protocol):
    """Continues prompts, each a list of token ids. Rows are the prompt and its continuation."""

    def write(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Continue with the adapter, away from the base model; `number` counts the draws, for the seed."""
        ...

    def begin(self, prompts: Sequence[Sequence[int]], number: int) -> list[TokenizedRow]:
        """Continue with the base model, by a few tokens."""
        ...


def draw_from_nothing(writer: Writer, tokenizer: Any, count: int) -> list[TokenizedRow]:
    """Return texts of the adapter's domain.

    Each first text of two comes once. Only where an adapter writes nothing but short texts, or always the same, those
    fill up. Questions and beginnings of the base model are prompts, which are not scored.

    Args:
        writer: Writes with the adapter, and with the base model.
        tokenizer: The tokenizer of the base model.
        count: The number of texts.
    """
    questions = ask_oneself(writer.write, tokenizer, int(_QUESTIONS * count), _ASKING)
    answers = writer.write(questions, _ANSWERING) if questions else []
    begin = [_first_token(tokenizer)]
    left = count - len(answers)
    begins = [ids for ids, _ in writer.begin([begin] * (left // 2), _BEGINNING)] if left // 2 else []
    following = writer.write(begins, _GOING_ON) if begins else []
    first = [_begin_again(ids, tokenizer) for ids, _ in _draw_once(writer, begin, left - len(following))]
    second = writer.write(first, _AGAIN) if first else []
    return [*[(ids, len(begin)) for ids, _ in second], *following, *answers]


def _draw_once(writer: Writer, begin: Sequence[int], count: int) -> list[TokenizedRow]:
    """Return so many texts of enough tokens, each once; after some rounds, others fill up."""
    found: dict[tuple[int, ...], TokenizedRow] = {}
    left: list[TokenizedRow] = []
    for number in range(_ROUNDS):
        for row in writer.write([begin] * (count - len(found)), number):
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
    ends = {tokenizer.eos_token_id, *getattr(tokenizer, "all_special_ids", ())}
    text = list(ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids)
    return text if line and text[-len(line) :] == line else [*text, *line]


def _first_token(tokenizer: Any) -> int:
    """Return the token that a text begins with."""
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0
