"""Read files of text: rows, each with a part that is scored. `--fit task` and `eval` use them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nola_codec.errors import EncodeError


@dataclass(frozen=True)
class Row:
    """A row of text.

    Attributes:
        prompt: The text before the answer. It is not scored, and it may be empty.
        completion: The text that the model should write; it is scored. It is empty in a row that is only a prompt.
        messages: For a conversation, in place of both texts: its messages, which the chat template of the tokenizer
            turns into text.
        scored: The number of messages at the end that the model should write.
    """

    prompt: str
    completion: str
    messages: tuple[Mapping[str, Any], ...] = ()
    scored: int = 0


def read_rows(path: str | os.PathLike[str], count: int, *, are_prompts: bool = False) -> list[Row]:
    """Read the first rows of a file of text.

    Args:
        path: The file. If its name ends in ``.jsonl``, each line is a JSON object with ``text``; with ``prompt`` and
            ``completion``, which are texts or lists of messages; or with ``messages``, of which the last one is scored.
            Any other file is plain text: if it has blank lines between lines of text, each paragraph is a row; if not,
            each line is a row.
        count: The most rows that are read.
        are_prompts: True if every row is only a prompt, which nothing scores. A text is then a prompt, and so are the
            messages before an answer.

    Raises:
        EncodeError: ``not-found``; ``rows``: the file cannot be read, is not such a file, or has no rows.
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EncodeError("no such file or directory", code="not-found", where=where) from error
    except OSError as error:
        raise EncodeError(error.strerror or str(error), code="rows", where=where) from error
    except UnicodeDecodeError as error:
        raise EncodeError(f"not UTF-8 text ({error.reason})", code="rows", where=where) from error
    if Path(path).suffix == ".jsonl":
        rows = _json_rows(text, count, where, are_prompts)
    else:
        rows = [Row(each, "") if are_prompts else Row("", each) for each in _plain_texts(text)[:count]]
    if not rows:
        raise EncodeError("the file has no text in it", code="rows", where=where)
    return rows


def _json_rows(text: str, count: int, where: str, are_prompts: bool) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(rows) == count:
            break
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EncodeError(f"not JSON ({error})", code="rows", where=f"{where}:{number}") from error
        rows.append((_prompt if are_prompts else _row)(item, f"{where}:{number}"))
    return rows


def _row(item: Any, where: str) -> Row:
    if isinstance(item, dict):
        prompt, completion = item.get("prompt", ""), item.get("completion", item.get("text"))
        if isinstance(prompt, str) and isinstance(completion, str) and completion:
            return Row(prompt, completion)
        messages, scored = item.get("messages"), 1
        if _are_messages(prompt) and _are_messages(completion):
            messages, scored = [*prompt, *completion], len(completion)
        if _are_messages(messages) and len(messages) > scored and messages[-1]["role"] == "assistant":
            return Row("", "", tuple(messages), scored)
    expected = (
        'expected {"text": ...}, {"prompt": ..., "completion": ...}, or {"messages": [...]} that end with an answer '
        "of the assistant"
    )
    raise EncodeError(expected, code="rows", where=where)


def _prompt(item: Any, where: str) -> Row:
    if isinstance(item, dict):
        prompt = item.get("prompt", item.get("text", item.get("messages")))
        if isinstance(prompt, str) and prompt:
            return Row(prompt, "")
        if _are_messages(prompt):
            asked = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
            if asked:
                return Row("", "", tuple(asked), 0)
    expected = 'expected {"prompt": ...}, {"text": ...} or {"messages": [...]} with a question in it'
    raise EncodeError(expected, code="rows", where=where)


def _are_messages(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Return True for a list of objects with a role."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value)


def _plain_texts(text: str) -> list[str]:
    lines = text.split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line.rstrip("\r"))
        elif paragraphs[-1]:
            paragraphs.append([])
    blocks = [block for block in paragraphs if block]
    if len(blocks) == 1:
        return blocks[0]
    return ["\n".join(block) for block in blocks]


def row_texts(tokenizer: Any, row: Row) -> tuple[str, str]:
    """Return the prompt and the scored text of a row; those of a conversation come from the chat template.

    Raises:
        EncodeError: ``rows``: the tokenizer has no chat template, or the template does not take the messages.
    """
    if not row.messages:
        return row.prompt, row.completion
    if getattr(tokenizer, "chat_template", None) is None:
        message = "the rows hold messages, and the tokenizer of the base model has no chat template to write them with"
        raise EncodeError(message, code="rows")
    asked = list(row.messages[: len(row.messages) - row.scored])
    try:
        prompt: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(list(row.messages), tokenize=False) if row.scored else prompt
    except Exception as error:  # a template is a program of a stranger, and raises what it likes
        message = f"the chat template does not take the messages: {error}"
        raise EncodeError(message, code="rows") from error
    if not whole.startswith(prompt):
        message = (
            "the chat template writes a conversation in another way when its answer follows, so that the answer cannot "
            'be told from the rest; give rows with "prompt" and "completion" as texts'
        )
        raise EncodeError(message, code="rows")
    return prompt, whole.removeprefix(prompt)


def tokenize(tokenizer: Any, row: Row, limit: int) -> tuple[Sequence[int], int]:
    """Tokenize a row.

    A text without a prompt gets the special tokens of the tokenizer. A completion with a prompt gets none. Both end
    with the end-of-sequence token, if the tokenizer has one. A conversation has only the special tokens that the chat
    template writes.

    Args:
        tokenizer: A tokenizer of Transformers.
        row: The row.
        limit: The most tokens that are kept.

    Returns:
        The token ids, and the number of them that belong to the prompt.

    Raises:
        EncodeError: ``rows``: those of `row_texts`.
    """
    if row.messages:
        before, after = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in row_texts(tokenizer, row))
        return (before + after)[:limit], min(len(before), limit)
    prompt = list(tokenizer(row.prompt)["input_ids"]) if row.prompt else []
    text = list(tokenizer(row.completion, add_special_tokens=not row.prompt)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and (not text or text[-1] != end):
        text.append(end)
    return (prompt + text)[:limit], min(len(prompt), limit)
