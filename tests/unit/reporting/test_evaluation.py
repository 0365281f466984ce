"""The JSON of an evaluation is read with care: it may come from anyone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from nola_forge import GOLDEN

import nola_codec
from nola_codec.errors import EncodeError
from nola_codec.reporting.evaluation import MOST_MEASURED, read_evaluation
from nola_codec.reporting.evaluation_section import render_evaluation, state_result

FACTS = nola_codec.inspect(next(path for path in sorted(GOLDEN.glob("*.nola")) if "reference" not in path.name))
HOSTILE = "</dd><script>alert(1)</script>\x1b[2J\u202e"


def measured(**changes: Any) -> dict[str, Any]:
    plain = {
        "name": "my_lora", "kind": "adapter", "bytes": 1000, "loss": 1.25, "loss_margin": 0.1, "gap": None,
        "gap_margin": None, "kept": None, "kept_margin": None, "content_sha256": "",
    }  # fmt: skip
    return {**plain, **changes}


def evaluation() -> dict[str, Any]:
    own = measured(
        name="a.nola", kind="file", loss=1.5, gap=0.25, gap_margin=0.02, kept=0.875, kept_margin=0.01,
        content_sha256=FACTS.content_sha256,
    )  # fmt: skip
    base = measured(name="", kind="base", bytes=0, loss=3.25, gap=2.0, gap_margin=0.1)
    return {
        "measured": [base, measured(), own], "reference": "my_lora", "base": "model", "data": "rows.jsonl", "rows": 32,
        "rows_in_file": 64, "tokens": 999, "dtype": "float32", "device": "cpu", "notes": [],
        "continuations": [{"prompt": "the cat", "expected": "", "texts": ["ran", "sat", "sat\non"]}],
    }  # fmt: skip


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    document = evaluation()
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_what_a_page_shows() -> None:
    results = read_evaluation(evaluation(), FACTS)
    assert results.own.name == "a.nola"
    assert state_result(results) == "Measured on rows.jsonl: it keeps 87.5% \u00b1 1.0 points of what my_lora gains."
    section = render_evaluation(results)
    for shown in ("1.5000 \u00b1 0.1000", "+0.2500 \u00b1 0.0200", "32 of 64 rows", "sat\non", "4.48"):
        assert shown in section


def test_the_file_is_found_by_its_hash_alone() -> None:
    with pytest.raises(EncodeError, match="no file with the content SHA-256") as caught:
        read_evaluation(changed(("measured", 2, "content_sha256"), "00" * 16), FACTS)
    assert caught.value.code == "evaluation"


def test_no_gain_and_no_numbers() -> None:
    document = changed(("measured", 2, "kept"), None)
    assert "its loss is +0.2500 from that of my_lora" in state_result(read_evaluation(document, FACTS))
    document["measured"][2].update(loss=None, gap=None, loss_margin=None, gap_margin=None)
    results = read_evaluation(document, FACTS)
    assert "it is the reference there" in state_result(results)
    assert "not a number" in render_evaluation(results)
    assert results.own.perplexity is None
    assert read_evaluation(changed(("measured", 0, "loss"), 1e9), FACTS).measured[0].perplexity is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("measured",), None), (("measured",), [1]), (("measured",), "ab"),
        (("measured",), [evaluation()["measured"][2]] * (MOST_MEASURED + 1)),
        (("measured", 0, "kind"), "other"), (("measured", 0, "bytes"), -1), (("measured", 0, "bytes"), True),
        (("measured", 0, "bytes"), 1 << 70), (("measured", 0, "loss"), "1"), (("measured", 0, "loss"), 10**400),
        (("measured", 0, "loss"), float("nan")), (("measured", 0, "kept"), False), (("measured", 0, "name"), 7),
        (("rows",), 2.5), (("notes",), [None]), (("notes",), "text"), (("dtype",), None),
        (("continuations", 0, "texts"), ["a", "b"]), (("continuations", 0, "texts"), ["a", "b", 3]),
        (("continuations", 0, "prompt"), ["a"]), (("continuations",), {}),
    ],
)  # fmt: skip
def test_anything_else_is_refused(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(EncodeError, match="is it what nola-codec eval --json printed") as caught:
        read_evaluation(changed(path, value), FACTS)
    assert caught.value.code == "evaluation"
    assert len(str(caught.value)) < 400


def test_files_that_are_no_json_object(tmp_path: Path) -> None:
    for text in ("", "[]", "[" * 100_000, "{"):
        (tmp_path / "losses.json").write_text(text)
        with pytest.raises(EncodeError, match="expected what `nola-codec eval --json` printed, found"):
            read_evaluation(tmp_path / "losses.json", FACTS)


def test_texts_of_strangers_are_text() -> None:
    document = json.loads(json.dumps(evaluation()).replace("my_lora", json.dumps(HOSTILE)[1:-1]))
    for key in ("base", "data", "dtype", "device"):
        document[key] = HOSTILE
    document["notes"] = [HOSTILE]
    document["continuations"] = [{"prompt": HOSTILE, "expected": HOSTILE, "texts": [HOSTILE] * 3}] * 20
    results = read_evaluation(document, FACTS)
    section = render_evaluation(results)
    assert "<script" not in section
    assert not {"\x1b", "\u202e"} & set(section)
    assert "8 more prompts are left out" in section
    long = copy.deepcopy(document)
    long["continuations"] = [{"prompt": "x" * 9_000_000, "expected": "", "texts": ["y" * 9_000_000] * 3}]
    assert len(render_evaluation(read_evaluation(long, FACTS))) < 20_000
