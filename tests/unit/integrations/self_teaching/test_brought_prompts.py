"""Prompts that `--data self` finds by itself: in a model card, in metadata, and by questions in the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from nola_codec.integrations.self_teaching.brought_prompts import find_prompts
from nola_codec.integrations.self_teaching.chat_turns import ask_oneself, turn_marks

CARD = '''---
license: mit
widget:
- text: "Translate to Tigrinya: good morning"
  example_title: one
- plain words
- messages:
  - {role: system, content: be kind}
  - {role: user, content: "What is a stroke?"}
- messages: [{role: user, content: 3}]
- 7
instance_prompt: in the style of sks
---
# A model
prompt = "this is no code"
```python
prompt = f"{not} a constant"
question = "If you had a time machine, but could only go to the past or the future once and never return, which?"
instruction = 'It\\'s a \\"test\\"'
prompt = """### Instruction:
Sum up.
"""
messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Nobody."}]
prompt = "plain words"
```
'''
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} end {% endfor %}assistant "


def test_prompts_of_a_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"")
    metadata = {"modelspec.trigger_phrase": "once upon a time", "other": "text"}
    for source in (tmp_path, str(weights)):
        rows, origin = find_prompts(source, metadata, with_messages=True)
        texts = [row.messages[0]["content"] if row.messages else row.prompt for row in rows]
        assert texts == [
            "Translate to Tigrinya: good morning", "plain words", "What is a stroke?", "in the style of sks",
            "It's a \"test\"", "### Instruction:\nSum up.\n", "Who are you?", "once upon a time",
        ]  # fmt: skip
        assert [bool(row.messages) for row in rows] == [False, False, True, False, False, False, True, False]
        assert origin == "the model card and the metadata"
    rows, _ = find_prompts(tmp_path, {}, with_messages=False)
    assert [row.messages for row in rows] == [()] * 5


@pytest.mark.parametrize(
    "card",
    ["", "---\n[", "---\n[\n---\n", "---\nwidget: {a: 1}\n---\n", "---\n- 1\n---\n", "```\nprompt = 'open\n",
     "```py\nprompt = '\\x'\n```", b"\xff\xfe---", "x" * 300_000, "```\n" + 'prompt = "a\n' * 5000 + "```"],
)  # fmt: skip
def test_cards_without_prompts(card: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    assert find_prompts(tmp_path, {}, with_messages=True) == ([], "")
    assert find_prompts({"key": 1}, {}, with_messages=True) == ([], "")


def tokenizer(template: str | None) -> Any:
    words = ["<s>", "</s>", "system", "user", "assistant", "end", *(f"w{n}" for n in range(9))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    return found


def test_questions_end_where_the_turn_ends() -> None:
    drawn = [[7, 8, 5, 9], [5, 7], [9, 1], [8, 8, 8]]

    def draw(prompts: Sequence[Sequence[int]], number: int) -> list[tuple[Sequence[int], int]]:
        assert ([list(prompt) for prompt in prompts], number) == ([[3]] * 4, 9)
        return [([*prompt, *turn], len(prompt)) for prompt, turn in zip(prompts, drawn, strict=True)]

    assert turn_marks(tokenizer(TEMPLATE)) == ([3], [5, 4])
    found = ask_oneself(draw, tokenizer(TEMPLATE), 4, 9)
    assert found == [[3, 7, 8, 5, 4], [3, 9, 5, 4], [3, 8, 8, 8, 5, 4]]


@pytest.mark.parametrize("template", [None, "", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", TEMPLATE * 2, "user "])
def test_templates_without_a_turn(template: str | None) -> None:
    assert turn_marks(tokenizer(template)) is None
    assert ask_oneself(lambda *_: [], tokenizer(template), 4, 0) == []
