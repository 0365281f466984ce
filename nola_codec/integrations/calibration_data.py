"""Calibration files: rows of text, some of it scored."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nola_codec.errors import EncodeError


@dataclass(frozen=True)
class Row:
    """A prompt, not scored and perhaps empty, and the text that the model should have written."""

    prompt: str
    completion: str


def read_rows(path: str | os.PathLike[str], count: int) -> list[Row]:
    """The first rows of a calibration file.

    Args:
        path: JSON Lines of objects with ``text``, or ``prompt`` and ``completion``, if its name ends in ``.jsonl``;
            else plain text, of paragraphs where blank lines part them and of lines where none do.
        count: Rows wanted at most.

    Raises:
        EncodeError: the file cannot be read, holds something else, or holds nothing (code ``calibration``).
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise EncodeError(error.strerror or str(error), code="calibration", where=where) from error
    except UnicodeDecodeError as error:
        raise EncodeError(f"not UTF-8 text ({error.reason})", code="calibration", where=where) from error
    rows = _json_rows(text, count, where) if Path(path).suffix == ".jsonl" else _plain_rows(text)[:count]
    if not rows:
        raise EncodeError("no text in it", code="calibration", where=where)
    return rows


def _json_rows(text: str, count: int, where: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(rows) == count:
            break
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise EncodeError(f"not JSON ({error})", code="calibration", where=f"{where}:{number}") from error
        rows.append(_row(item, f"{where}:{number}"))
    return rows


def _row(item: Any, where: str) -> Row:
    if isinstance(item, dict):
        prompt, completion = item.get("prompt", ""), item.get("completion", item.get("text"))
        if isinstance(prompt, str) and isinstance(completion, str) and completion:
            return Row(prompt, completion)
    raise EncodeError('expected {"text": ...} or {"prompt": ..., "completion": ...}', code="calibration", where=where)


def _plain_rows(text: str) -> list[Row]:
    lines = text.split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line.rstrip("\r"))
        elif paragraphs[-1]:
            paragraphs.append([])
    blocks = [block for block in paragraphs if block]
    if len(blocks) == 1:
        return [Row("", line) for line in blocks[0]]
    return [Row("", "\n".join(block)) for block in blocks]


def tokenize(tokenizer: Any, row: Row, limit: int) -> tuple[Sequence[int], int]:
    """Token ids of a row, at most `limit`, and how many of them are the prompt's.

    A text is tokenized as the tokenizer does it, special tokens included; a completion follows its prompt without any,
    and both end with the end-of-sequence token, where there is one.
    """
    prompt = list(tokenizer(row.prompt)["input_ids"]) if row.prompt else []
    text = list(tokenizer(row.completion, add_special_tokens=not row.prompt)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and (not text or text[-1] != end):
        text.append(end)
    return (prompt + text)[:limit], min(len(prompt), limit)
