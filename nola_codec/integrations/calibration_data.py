"""Calibration files: rows of text, of which a part is scored."""

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
    """A prompt, which is not scored and may be empty, and the text that the model should have written."""

    prompt: str
    completion: str


def read_rows(path: str | os.PathLike[str], count: int) -> list[Row]:
    """The first rows of a calibration file.

    Args:
        path: If its name ends in ``.jsonl``: JSON Lines of objects with ``text``, or ``prompt`` and ``completion``.
            Else plain text: a row is a paragraph if there are blank lines between lines of text, else a line.
        count: The most rows that are read.

    Raises:
        EncodeError: ``calibration``: the file cannot be read, holds something else, or holds nothing.
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
    """At most `limit` token ids of a row, and the number of them that belong to the prompt.

    A text without a prompt is tokenized with special tokens. A completion follows its prompt without any. Both end
    with the end-of-sequence token, if there is one.
    """
    prompt = list(tokenizer(row.prompt)["input_ids"]) if row.prompt else []
    text = list(tokenizer(row.completion, add_special_tokens=not row.prompt)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and (not text or text[-1] != end):
        text.append(end)
    return (prompt + text)[:limit], min(len(prompt), limit)
