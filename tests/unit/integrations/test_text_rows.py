"""Files of rows, and their tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nola_codec.errors import EncodeError
from nola_codec.integrations.text_rows import Row, read_rows, row_texts, tokenize


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
        ("a.txt", None, "no such file or directory"),
    ],
)
def test_refused(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(EncodeError, match=message) as caught:
        read_rows(tmp_path / name, 9)
    assert caught.value.code == ("not-found" if data is None else "rows")


class Letters:
    """A token a letter; 1 begins a text and 2 ends it."""

    eos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def test_tokens() -> None:
    assert tokenize(Letters(), Row("", "ab"), 99) == ([1, 97, 98, 2], 0)
    assert tokenize(Letters(), Row("ab", "c"), 99) == ([1, 97, 98, 99, 2], 3)
    assert tokenize(Letters(), Row("ab", "c"), 2) == ([1, 97], 2)


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.fixture(scope="module")
def chat() -> Any:
    """A tokenizer of characters with a chat template, and the special token <s> at the start of a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(["<s>", *map(chr, range(10, 127))])}
    core = Tokenizer(models.WordLevel(letters, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<s>", chat_template=CHAT)


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_conversations(chat: Any, tmp_path: Path) -> None:
    """The last answer is scored, or all messages of a completion, as the chat template of Transformers writes them."""
    path = write_rows(
        tmp_path / "a.jsonl", {"messages": MESSAGES}, {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}
    )
    rows = read_rows(path, 9)
    assert rows[0] == rows[1]
    assert row_texts(chat, rows[0]) == ("<user>Hi\n<assistant>", "Yo\n")
    ids, prompt = tokenize(chat, rows[0], 99)
    assert ids == chat.apply_chat_template(MESSAGES, return_dict=False)
    assert chat.decode(ids[prompt:]).replace(" ", "") == "Yo\n"
    assert len(tokenize(chat, rows[0], 5)[0]) == 5


def test_prompts(chat: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"prompt": "one"}, {"text": "two"}, {"messages": MESSAGES})
    rows = read_rows(path, 9, are_prompts=True)
    assert rows[:2] == [Row("one", ""), Row("two", "")]
    assert row_texts(chat, rows[2]) == ("<user>Hi\n<assistant>", "")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read_rows(tmp_path / "a.txt", 1, are_prompts=True) == [Row("one", "")]


@pytest.mark.parametrize(
    ("row", "are_prompts"),
    [
        ({"messages": MESSAGES[:1]}, False),
        ({"messages": MESSAGES[1:]}, False),
        ({"messages": [{"content": "Hi"}, MESSAGES[1]]}, False),
        ({"messages": []}, False),
        ({"prompt": MESSAGES[:1], "completion": "Yo"}, False),
        ({"messages": MESSAGES[1:]}, True),
        ({"prompt": ""}, True),
        (3, True),
    ],
)
def test_rows_that_are_none(row: object, are_prompts: bool, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match=r"a\.jsonl:1: expected"):
        read_rows(write_rows(tmp_path / "a.jsonl", row), 9, are_prompts=are_prompts)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no system here') }}", "does not take the messages: no system here"),
        ("{{ messages | length }}", "writes a conversation in another way when its answer follows"),
    ],
)
def test_templates_that_will_not_do(template: str | None, message: str, chat: Any) -> None:
    tokenizer = copy.copy(chat)
    tokenizer.chat_template = template
    with pytest.raises(EncodeError, match=message) as caught:
        tokenize(tokenizer, Row("", "", tuple(MESSAGES), 1), 99)
    assert caught.value.code == "rows"
