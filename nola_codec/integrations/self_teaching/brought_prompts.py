"""Prompts that an adapter brings along: in the model card beside it, and in its metadata.

A card is a stranger's file, and nothing in it has to be there. So what cannot be read is left out without an error.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from nola_codec.integrations.text_rows import Row

_CARD = "README.md"
_LARGEST = 200 << 10
"""The most bytes of a card that is read."""
_MOST, _LONGEST = 64, 4000
"""The most prompts that are taken, and the most characters of one."""
_CODE = 8000
"""The most characters of a code block that are searched."""
_TRIGGERS = ("modelspec.trigger_phrase", "trigger_words")
"""Keys of an adapter's metadata that hold words to begin with."""
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_STRING = r'("""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\')'
_ASSIGNED = re.compile(rf"^[ \t]*(?:prompt|question|instruction|query|input_text)[ \t]*=[ \t]*{_STRING}", re.MULTILINE)
_ASKED = re.compile(rf"""["']role["']\s*:\s*["']user["']\s*,\s*["']content["']\s*:\s*{_STRING}""")
_OF_ALL_CARDS = ("If you had a time machine", "Your prompt", "Your question", "...", "<")
"""Beginnings of prompts that tools write into every card; they tell nothing of an adapter."""


def find_prompts(source: object, metadata: Mapping[str, str], *, with_messages: bool) -> tuple[list[Row], str]:
    """Return the prompts that an adapter brings along, each once, and where they are from, for the report.

    Args:
        source: The adapter: a folder or a file. Any other source has no card.
        metadata: The metadata of the adapter.
        with_messages: True if there is a chat template, so that a prompt may be a conversation.
    """
    card = _read_card(source)
    match = _FRONT_MATTER.match(card)
    found: dict[str, Row] = {}
    origins = []
    for name, rows in (
        ("the model card", [*_widget_rows(match[1] if match else ""), *_code_rows(card)]),
        ("the metadata", [Row(metadata[key], "") for key in _TRIGGERS if metadata.get(key)]),
    ):
        own = [row for row in rows if _is_useful(row) and (with_messages or not row.messages)]
        if own and len(found) < _MOST:
            origins.append(name)
        found |= {_text_of(row): row for row in own[: _MOST - len(found)]}
    return list(found.values()), " and ".join(origins)


def _read_card(source: object) -> str:
    """Return the text of the card beside an adapter; the empty text if there is none."""
    if not isinstance(source, str | os.PathLike):
        return ""
    path = Path(os.fspath(source))
    card = (path if path.is_dir() else path.parent) / _CARD
    try:
        if not card.is_file() or card.stat().st_size > _LARGEST:
            return ""
        return card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _widget_rows(front_matter: str) -> Iterator[Row]:
    """Yield the examples of the card's widget, and the words that start an image model."""
    import yaml

    try:
        fields = yaml.safe_load(front_matter)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if not isinstance(fields, dict):
        return
    widget = fields.get("widget")
    for item in [*(widget if isinstance(widget, list) else []), fields.get("instance_prompt")]:
        text = item.get("text") if isinstance(item, dict) else item
        if isinstance(text, str):
            yield Row(text, "")
        elif isinstance(item, dict):
            messages = item.get("messages")
            asked = messages[-1] if isinstance(messages, list) and messages else None
            if isinstance(asked, dict) and asked.get("role") == "user" and isinstance(asked.get("content"), str):
                yield _question(asked["content"])


def _code_rows(card: str) -> Iterator[Row]:
    """Yield the prompts that the code blocks of a card assign to a name, or that they ask as a user."""
    for block in _code_blocks(card):
        for pattern, make in ((_ASSIGNED, lambda text: Row(text, "")), (_ASKED, _question)):
            for match in pattern.finditer(block[:_CODE]):
                try:
                    text = ast.literal_eval(match[1])
                except (ValueError, SyntaxError):
                    continue
                yield make(text)


def _code_blocks(card: str) -> Iterator[str]:
    """Yield the fenced code blocks of a card."""
    block: list[str] | None = None
    for line in card.split("\n"):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            yield "\n".join(block)
            block = None


def _question(text: str) -> Row:
    """Return the row of a conversation in which the user asks this."""
    return Row("", "", ({"role": "user", "content": text},), 0)


def _text_of(row: Row) -> str:
    return str(row.messages[0]["content"]) if row.messages else row.prompt


def _is_useful(row: Row) -> bool:
    text = _text_of(row)
    return len(text.strip()) > 2 and len(text) <= _LONGEST and not text.strip().startswith(_OF_ALL_CARDS)
