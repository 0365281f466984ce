"""Rows of calibration files, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nola_codec.errors import EncodeError
from nola_codec.integrations.calibration_data import Row, read_rows, tokenize


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"prompt": "two", "completion": " three"}\n{"text": "four"}\n')
    assert read_rows(path, 9) == [Row("", "one"), Row("two", " three"), Row("", "four")]
    assert len(read_rows(path, 2)) == 2


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("\n\n one\r\n", [" one"]),
    ],
)
def test_plain_text(text: str, rows: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(text.encode())
    assert read_rows(path, 9) == [Row("", row) for row in rows]
    assert read_rows(path, 1) == [Row("", rows[0])]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"label": 3}', r"a\.jsonl:1: expected"),
        ("a.jsonl", b'{"text": ""}', r"a\.jsonl:1: expected"),
        ("a.txt", b" \n\n", "no text in it"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", None, "No such file"),
    ],
)
def test_refused(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(EncodeError, match=message) as caught:
        read_rows(tmp_path / name, 9)
    assert caught.value.code == "calibration"


class Letters:
    """A token a letter; 1 begins a text and 2 ends it."""

    eos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def test_tokens() -> None:
    assert tokenize(Letters(), Row("", "ab"), 99) == ([1, 97, 98, 2], 0)
    assert tokenize(Letters(), Row("ab", "c"), 99) == ([1, 97, 98, 99, 2], 3)
    assert tokenize(Letters(), Row("ab", "c"), 2) == ([1, 97], 2)
