"""New prompts from the words of given ones; tests/cli has the command."""

from __future__ import annotations

import time

import pytest

from nola_codec.integrations.self_teaching.grown_prompts import grow_rows, grow_texts
from nola_codec.integrations.text_rows import Row

NAMES, AREAS, PRICES = ("Cocum", "The Eagle", "Green Man"), ("city centre", "riverside"), ("low", "high")


def meaning(name: str, area: str, price: str) -> str:
    return f"data: name : {name} | area : {area} | price : {price}\ntext:"


MEANINGS = [meaning("Cocum", "riverside", "low"), meaning("The Eagle", "city centre", "high"),
            meaning("Green Man", "city centre", "low")]  # fmt: skip


def test_fields_come_together_in_other_ways() -> None:
    """Twelve meanings can be made of these names, areas and prices; three are given, and the other nine are found."""
    expected = {meaning(name, area, price) for name in NAMES for area in AREAS for price in PRICES} - set(MEANINGS)
    found = grow_texts(MEANINGS, 100, seed=0)
    assert len(found) == len(set(found)) == 9
    assert set(found) == expected
    assert found == grow_texts(MEANINGS, 100, seed=0)
    few = grow_texts(MEANINGS, 4, seed=0)
    assert few == found[:4]
    assert few != grow_texts(MEANINGS, 4, seed=1)


@pytest.mark.parametrize(
    "texts",
    [MEANINGS[:1] * 9, ["What is the capital of France?", "How do I bake bread?"], ["", " "], []],
    ids=["one", "nothing in common", "blank", "none"],
)
def test_nothing_grows_from(texts: list[str]) -> None:
    assert grow_texts(texts, 5, seed=0) == []


def test_a_new_text_is_about_as_long_as_the_given_ones() -> None:
    """The words repeat, so that a walk may be of any length."""
    texts = ["do a b a b a b stop", "do a b a b stop"]
    found = grow_texts(texts, 50, seed=0)
    assert found
    assert all(0.75 * len(texts[1]) <= len(text) <= 1.25 * len(texts[0]) for text in found)


def test_long_texts_take_no_time() -> None:
    """A text of very many words is left out, and a walk that goes round and round is given up."""
    texts = ["x " * 10**6, "x " * 999 + "y", "x " * 999 + "z"]
    begin = time.process_time()
    assert all(700 < len(text.split()) <= 1000 for text in grow_texts(texts, 100, seed=0))
    assert time.process_time() - begin < 20
    assert grow_texts(texts[:2], 100, seed=0) == []


def test_the_last_message_of_a_conversation_grows() -> None:
    def row(text: str, brief: str) -> Row:
        return Row("", "", ({"role": "system", "content": brief}, {"role": "user", "content": text}), 0)

    rows = [row("When was the last train to Rome?", "Be brief."), row("Why was the last day of May cold?", "Be kind.")]
    others = [Row("Who was the last king?", ""), Row("", "", ({"role": "system", "content": "Be brief."},), 0),
              Row("", "", ({"role": "user", "content": [{"type": "image"}]},), 0)]  # fmt: skip
    found = grow_rows([*rows, *others], 10, seed=0)
    texts = {str(each.messages[-1]["content"]) for each in found}
    assert texts == {"When was the last day of May cold?", "Why was the last train to Rome?"}
    assert {each.messages[0]["content"] for each in found} <= {"Be brief.", "Be kind."}
    assert all(each.scored == 0 and not each.prompt for each in found)
