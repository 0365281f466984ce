"""What a verdict says, and that it says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.encoder.expectation import EVIDENCE, TAUGHT, Expectation, advise_size, expect_from, render_taught_gains

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"


def test_the_evidence_is_that_of_the_page() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## What an effective error means")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) +\| +\d+ KB \| +\d+ \| +([\d.]+) \| +([\d.]+)% \|$", section, re.MULTILINE)
    for task, points in EVIDENCE.items():
        printed = [(float(error), float(kept) / 100) for name, error, kept in rows if name == task]
        assert printed == [pytest.approx(point) for point in points]
    assert len(rows) == sum(map(len, EVIDENCE.values()))


@pytest.mark.parametrize(
    ("task", "results", "door"),
    [
        ("E2E NLG, SmolLM2-135M, sixteen prompts", "self_taught", "prompts"),
        ("Banking77, MiniLM, texts without labels", "self_taught_banking77", "texts"),
    ],
)
def test_the_gains_of_taught_files_are_those_that_were_measured(task: str, results: str, door: str) -> None:
    """Both shares are means over the same rows and seeds, so that what is printed compares like with like."""
    size, *shares = TAUGHT[task]
    found = read_results(results)
    base, adapter = (
        next(r["figures"]["loss"] for r in found if r["settings"]["door"] == name) for name in ("base", "adapter")
    )
    losses: dict[str, dict[int, dict[int, float]]] = {"weights": {}, door: {}}
    for result in found:
        settings = result["settings"]
        if settings.get("size") == f"{size}KB" and settings["door"] in losses:
            own = losses[settings["door"]].setdefault(settings.get("steps", 0), {})
            own[settings["seed"]] = result["figures"]["loss"]
    of_door = {name: runs[max(runs)] for name, runs in losses.items()}
    seeds = of_door["weights"].keys() & of_door[door].keys()
    assert seeds
    for share, own in zip(shares, of_door.values(), strict=True):
        assert share == round((base - mean(own[seed] for seed in seeds)) / (base - adapter), 3)
    assert f"{shares[1]:.1%} instead of {shares[0]:.1%} of the gain in {size} KB ({task})" in render_taught_gains()


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
    found = Expectation({"a": 0.93, "b": 0.97})
    assert found.outlook == "expect 93% to 97% of the adapter's gain"
    assert found.basis == "small loss, as 2 text tasks had with files of this error"
    assert Expectation({"a": 0.99, "b": 0.99}).range == "99%"
    assert expect_from(None) is None


def test_nothing_is_promised_beyond_what_was_measured() -> None:
    measured = min(points[-1][0] for points in EVIDENCE.values())
    within, beyond = expect_from(measured), expect_from(measured + 0.001)
    assert within is not None
    assert not within.is_beyond
    assert beyond is not None
    assert beyond.outlook == "expect a large loss, more than was measured"
    assert beyond.basis == "large loss: no file with as much error was measured on all tasks"
    assert beyond.range == "not measured"


def lora(names: list[str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for name in names:
        made[f"{name}.lora_A.weight"] = rng.standard_normal((2, 32)).astype(np.float32)
        made[f"{name}.lora_B.weight"] = rng.standard_normal((32, 2)).astype(np.float32)
    return made


@pytest.mark.parametrize(
    ("names", "auto_mapping", "is_image"),
    [
        (["base_model.model.model.layers.0.self_attn.q_proj"], None, False),
        (["base_model.model.transformer.h.0.attn.c_attn"], None, False),
        (["base_model.model.encoder.layer.0.attention.self.query"], {"base_model_class": "BertModel"}, False),
        (["base_model.model.encoder.layer.0.attention.attention.query"], {"base_model_class": "ViTModel"}, True),
        (["base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"], None, True),
        (["base_model.model.blocks.0.attn1.to_q", "base_model.model.blocks.0.attn2.to_q"], None, True),
        (["base_model.model.transformer_blocks.0.attn.to_q", "base_model.model.lm_head"], None, False),
    ],
)
def test_the_verdict_of_text_models_is_not_given_for_image_models(
    names: list[str], auto_mapping: dict[str, str] | None, is_image: bool
) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": "all", "auto_mapping": auto_mapping}
    data, report = nola_codec.encode_bytes(lora(names), config=config, error=0.4)
    verdict, basis = str(report).splitlines()[:2]
    assert verdict == nola_codec.inspect(data).verdict
    assert report.is_of_image_model == is_image
    if is_image:
        assert verdict.endswith("; what it keeps of the task is not known")
        assert basis == "expectation  none for image models: the measured tasks are of text models"
        assert not any("--prompts" in note for note in report.notes)
    else:
        assert "; expect " in verdict
        assert basis.startswith("expectation  ")
        assert any(
            note.endswith("with a dozen --prompts, or with text of the task (--data), keeps more.")
            for note in report.notes
        )


def test_a_size_for_an_image_adapter_is_not_advised_by_text_tasks() -> None:
    names = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": "all"}
    found = nola_codec.sweep(lora([f"base_model.model.{name}" for name in names]), config=config, sizes=[500])
    assert not found.advice


def test_advice() -> None:
    good, small, bad = (Expectation({"a": kept}) for kept in (0.99, 0.96, 0.5))
    assert advise_size({}) == ""
    words = "take 10.0 KB, the smallest with no visible loss"
    assert advise_size({5000: bad, 10_000: good, 20_000: good}) == words
    assert advise_size({5000: good, 10_000: good}).startswith("take 5.0 KB")
    assert "smaller ones may do" in advise_size({5000: good})
    assert advise_size({5000: bad, 10_000: small}).startswith("take 10.0 KB")
    assert advise_size({5000: bad, 7000: bad}).startswith("take more than 7.0 KB")
