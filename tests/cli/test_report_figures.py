"""Every figure of a page is one of the figures that `--json` prints."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nola_codec.version import __version__

Run = Callable[..., Any]

NUMBER = re.compile(r"(?P<number>[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?)(?P<unit>%| points| KB\b| MB\b|x larger)?")
PROSE = ("95% interval", f"nola-codec {__version__}", "SHA-256", "fp16", "float32", "int16", "4 bits", "2 bits")
"""Numbers that are no figures."""


class Texts(HTMLParser):
    """The texts of a page that may hold figures: all but the style sheet and the labels of axes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "text"):
            # The bar of a histogram begins with its place, which the size of a bar tells.
            is_bar = self._open[-2:] == ["rect", "title"] and re.match(r"-?[\d.]+: ", data)
            self.found.append(data.partition(": ")[2] if is_bar else data)


def leaves(value: Any) -> Iterator[Any]:
    """All texts and numbers of a JSON document, and the lengths of its lists."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from leaves(each)
    elif isinstance(value, list):
        yield len(value)
        for each in value:
            yield from leaves(each)
    else:
        yield value


def untraced(page: str, document: Any) -> list[str]:
    """Return the numbers of a page that no number of a JSON document rounds to, and that stand in none of its texts."""
    found = list(leaves(document))
    texts = sorted({each for each in found if isinstance(each, str) and re.search(r"\d", each)}, key=len, reverse=True)
    names = [part for each in texts if "." in each for part in each.split(".")]
    texts += sorted({each for each in names if re.search(r"\d", each) and not each.isdigit()}, key=len, reverse=True)
    numbers = [float(each) for each in found if isinstance(each, int | float)]
    missing = []
    for text in Texts(page).found:
        rest = text
        for known in (*PROSE, *texts):
            rest = rest.replace(known, " ")
        missing += [f"{match[0]} in {text[:80]!r}" for match in NUMBER.finditer(rest) if not is_rounded(match, numbers)]
    return missing


def is_rounded(match: re.Match[str], numbers: list[float]) -> bool:
    """Return True if a number as printed is one of some numbers, rounded to its digits."""
    printed = match["number"].replace(",", "")
    mantissa, _, exponent = printed.partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    scale = {"%": 100, " points": 100, " KB": 1e-3, " MB": 1e-6}.get(match["unit"] or "", 1)
    wanted = float(printed)
    if match["unit"] == "x larger":
        numbers = [1 / each for each in numbers if each > 0]
    return any(abs(scale * each - wanted) <= half * 1.0001 + 1e-12 * abs(wanted) for each in numbers)


@pytest.fixture
def document_and_page(run: Run, adapter: Path, tmp_path: Path) -> tuple[Any, str]:
    """A report with all its sections: its JSON, and its page."""
    file, out = tmp_path / "b.nola", tmp_path / "report.html"
    run("encode", adapter, "-o", file, "--size", "1200B", "-q")
    facts = run("inspect", file, "--json").json
    plain = {"gap": None, "gap_margin": None, "kept": None, "kept_margin": None, "content_sha256": ""}
    own = {"gap": 0.2871, "gap_margin": 0.0153, "kept": 0.8143, "kept_margin": 0.0217}
    measured = [
        {**plain, "name": "", "kind": "base", "bytes": 0, "loss": 3.1731, "loss_margin": 0.0719},
        {**plain, "name": "my_lora", "kind": "adapter", "bytes": 91_357, "loss": 1.6249, "loss_margin": 0.0411},
        {**own, "name": "b.nola", "kind": "file", "bytes": 1200, "loss": 1.912, "loss_margin": 0.0388,
         "content_sha256": facts["content_sha256"]},
    ]  # fmt: skip
    answers = [{"prompt": "two cats", "expected": "", "texts": ["no 9173", "yes", "yes 5519"]}]
    evaluation = {
        "measured": measured, "reference": "my_lora", "base": "model", "data": "rows.jsonl", "rows": 4711,
        "rows_in_file": 4812, "tokens": 59_123, "dtype": "float32", "device": "cpu", "notes": ["see note 6637"],
        "continuations": answers,
    }  # fmt: skip
    (tmp_path / "losses.json").write_text(json.dumps(evaluation))
    done = run("report", file, "--against", adapter, "--sweep", "--eval", tmp_path / "losses.json", "-o", out, "--json")
    assert (done.status, done.err) == (0, "")
    return done.json, out.read_text(encoding="utf-8")


def test_every_figure_of_a_page_is_in_its_json(document_and_page: tuple[Any, str]) -> None:
    document, page = document_and_page
    assert untraced(page, document) == []


def shifted(value: Any) -> Any:
    """Return a JSON document whose numbers are all others, and so are those in its texts."""
    if isinstance(value, dict):
        return {key: shifted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shifted(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"\d", "x", value)
    return value * math.pi + 1e7 if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize(
    "part", ["facts", "bytes_by_part", "share_by_part", "grid", "costs", "losses", "curve", "task"]
)
def test_a_figure_from_elsewhere_would_be_found(part: str, document_and_page: tuple[Any, str]) -> None:
    document, page = document_and_page
    other = copy.deepcopy(document)
    other[part] = shifted(other[part])
    assert untraced(page, other)
