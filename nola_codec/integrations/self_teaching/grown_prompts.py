"""New prompts from given ones: a dozen prompts hold the parts of many more, which are put together in other ways.

A new prompt is a walk through the given ones: it begins as one of them does, and after every two words it goes on as
one of those prompts goes on in which the same two words follow one another. So fields, phrases and their order stay as
they were, and their combinations are new. Prompts without common phrases give nothing new.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from nola_codec.integrations.text_rows import Row

_KNOWN = 2
"""The number of words that two prompts must have in common for a walk to go from one into the other."""
_LONGEST = 1000
"""The most words of a prompt that is used."""
_TRIES = 8
"""The number of walks for each text that is wanted; most walks through prompts of one kind give a new text."""
_SLACK = 1 / 4
"""The share by which a new text may be shorter or longer than all given ones."""
_WORD = re.compile(r"\s*\S+|\s+")
"""A word with the space before it, or the space at the end of a text."""


def grow_texts(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Return at most `count` new texts from the words of the given ones, each once.

    Args:
        texts: The given texts.
        count: The number of texts that are wanted.
        seed: The seed of the walks.
    """
    words = [found for text in dict.fromkeys(texts) if 0 < len(found := _WORD.findall(text)) <= _LONGEST]
    if len(words) < 2:
        return []
    follows: dict[tuple[str, ...], list[str]] = {}
    for own in words:
        for place, word in enumerate([*own, ""]):  # the empty word ends a text
            follows.setdefault(tuple(own[max(0, place - _KNOWN) : place]), []).append(word)
    lengths = [sum(map(len, own)) for own in words]
    least, most = min(lengths) * (1 - _SLACK), max(lengths) * (1 + _SLACK)
    draw, there = random.Random(seed), set(texts)
    grown: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(grown) == count:
            break
        walk: list[str] = []
        while (word := draw.choice(follows[tuple(walk[-_KNOWN:])])) and len(walk) < _LONGEST:
            walk.append(word)
        text = "".join(walk)
        if not word and least <= len(text) <= most and text not in there:
            grown[text] = None
    return list(grown)


def grow_rows(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return at most `count` new prompts like the given ones. In a conversation the last message of the user is new.

    Args:
        write: The model.
        rows: The given prompts, at least one. Those of the other sort than the first one (texts or conversations), and
            conversations that do not end with a text of the user, are left out.
        count: The number of prompts that are wanted.
        seed: The seed.
    """
    used = [(row, text) for row in rows if (text := _text_of(row)) and bool(row.messages) == bool(rows[0].messages)]
    draw = random.Random(seed)
    return [_with_text(draw.choice(used)[0], text) for text in grow_texts([text for _, text in used], count, seed)]


def _text_of(row: Row) -> str:
    """Return the text of a prompt, or the last message of a user; the empty text for other conversations."""
    if not row.messages:
        return row.prompt
    last = row.messages[-1]
    content = last.get("content")
    return content if last["role"] == "user" and isinstance(content, str) else ""


def _with_text(row: Row, text: str) -> Row:
    if not row.messages:
        return Row(text, "")
    return replace(row, messages=(*row.messages[:-1], {**row.messages[-1], "content": text}))
