"""What a verdict says, and that it says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from nola_codec.encoder.expectation import EVIDENCE, TAUGHT, Expectation, advise_size, expect_from, render_taught_gains

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"


def test_the_evidence_is_that_of_the_page() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## What an effective error means")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) +\| +\d+ KB \| +\d+ \| +([\d.]+) \| +([\d.]+)% \|$", section, re.MULTILINE)
    for task, points in EVIDENCE.items():
        printed = [(float(error), float(kept) / 100) for name, error, kept in rows if name == task]
        assert printed == [pytest.approx(point) for point in points]
    assert len(rows) == sum(map(len, EVIDENCE.values()))


def test_the_gains_of_taught_files_are_those_that_were_measured() -> None:
    e2e, banking = TAUGHT.values()
    found = read_results("self_taught_banking77")
    ends = {r["settings"]["door"]: r["figures"]["loss"] for r in found if "size" not in r["settings"]}
    losses: dict[str, dict[int, float]] = {"weights": {}, "texts": {}}
    for result in found:
        if result["settings"].get("size") == f"{banking[0]}KB":
            losses[result["settings"]["door"]][result["settings"]["seed"]] = result["figures"]["loss"]
    for kept, door in zip(banking[1:], ("weights", "texts"), strict=True):
        loss = mean(losses[door][seed] for seed in losses["weights"].keys() & losses["texts"].keys())
        assert kept == pytest.approx((ends["base"] - loss) / (ends["base"] - ends["adapter"]), abs=6e-4)
    page = (PAGE.parent / "experiments" / "e2e.md").read_text(encoding="utf-8")
    base, full = (float(re.search(rf"^\| {name} +\| +\d+ \| (\S+)", page, re.MULTILINE)[1])  # type: ignore[index]
                  for name in ("base model", "adapter, fp16"))  # fmt: skip
    loss = mean(r["figures"]["loss"] for r in read_results("self_taught")
                if (r["settings"]["door"], r["settings"].get("size")) == ("prompts", f"{e2e[0]}KB"))  # fmt: skip
    assert e2e[2] == pytest.approx((base - loss) / (base - full), abs=0.01)  # more seeds may follow
    assert e2e[1] == EVIDENCE["E2E NLG, SmolLM2-135M"][-1][1]
    assert "95.7% instead of 85.3% of the gain in 5 KB (E2E NLG" in render_taught_gains()


def read_results(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((PAGE.parent / "experiments" / "results" / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("task", EVIDENCE)
def test_a_measured_file_has_what_was_measured(task: str) -> None:
    for error, kept in EVIDENCE[task]:
        found = expect_from(error)
        assert found is not None
        assert found.kept[task] == pytest.approx(kept)
    errors = [error for error, _ in EVIDENCE[task]]
    assert errors == sorted(errors)
    (low, first), (high, second) = EVIDENCE[task][-2:]
    between = expect_from((low + high) / 2)
    assert between is not None
    assert between.kept[task] == pytest.approx((first + second) / 2)


@pytest.mark.parametrize(
    ("kept", "words"),
    [(0.98, "no visible loss"), (0.979, "small loss"), (0.93, "small loss"), (0.81, "clear loss"), (0.5, "large loss")],
)
def test_the_worse_task_decides(kept: float, words: str) -> None:
    assert Expectation({"a": 1.0, "b": kept}).words == words


def test_what_is_printed() -> None:
    assert str(Expectation({"a": 0.93, "b": 0.97})) == "small loss: 2 text tasks kept 93% to 97% of the gain"
    assert Expectation({"a": 0.99, "b": 0.99}).range == "99%"
    assert expect_from(None) is None


def test_nothing_is_promised_beyond_what_was_measured() -> None:
    measured = min(points[-1][0] for points in EVIDENCE.values())
    within, beyond = expect_from(measured), expect_from(measured + 0.001)
    assert within is not None
    assert not within.is_beyond
    assert beyond is not None
    assert str(beyond) == "large loss: error beyond what was measured on all tasks"
    assert beyond.range == "not measured"


def test_advice() -> None:
    good, small, bad = (Expectation({"a": kept}) for kept in (0.99, 0.96, 0.5))
    assert advise_size({}) == ""
    words = "take 10.0 KB, the smallest with no visible loss"
    assert advise_size({5000: bad, 10_000: good, 20_000: good}) == words
    assert advise_size({5000: good, 10_000: good}).startswith("take 5.0 KB")
    assert "smaller ones may do" in advise_size({5000: good})
    assert advise_size({5000: bad, 10_000: small}).startswith("take 10.0 KB")
    assert advise_size({5000: bad, 7000: bad}).startswith("take more than 7.0 KB")
