"""Read calibration files: rows of text, each with a part that is scored."""

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
    """A row of text.

    Attributes:
        prompt: The text before the answer. It is not scored, and it may be empty.
        completion: The text that the model should write; it is scored.
    """

    prompt: str
    completion: str


def read_rows(path: str | os.PathLike[str], count: int) -> list[Row]:
    """Read the first rows of a calibration file.

    Args:
        path: The file. If its name ends in ``.jsonl``, each line is a JSON object with ``text``, or with ``prompt`` and
            ``completion``. Any other file is plain text: if it has blank lines between lines of text, each paragraph is
            a row; if not, each line is a row.
        count: The most rows that are read.

    Raises:
        EncodeError: ``calibration``: the file cannot be read, is not such a file, or has no rows.
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
        raise EncodeError("the file has no text in it", code="calibration", where=where)
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
    """Tokenize a row.

    A text without a prompt gets the special tokens of the tokenizer. A completion with a prompt gets none. Both end
    with the end-of-sequence token, if the tokenizer has one.

    Args:
        tokenizer: A tokenizer of Transformers.
        row: The row.
        limit: The most tokens that are kept.

    Returns:
        The token ids, and the number of them that belong to the prompt.
    """
    prompt = list(tokenizer(row.prompt)["input_ids"]) if row.prompt else []
    text = list(tokenizer(row.completion, add_special_tokens=not row.prompt)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and (not text or text[-1] != end):
        text.append(end)
    return (prompt + text)[:limit], min(len(prompt), limit)
