"""Numbers of importance: reading and matching them, and the bytes that they move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nola_codec
from nola_codec.encoder.importance import match_importance, read_importance
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError

PREFIX = "base_model.model."
NAMES = [f"base_model.model.layers.{layer}.{part}" for layer in range(2) for part in ("q", "v")]


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"layers.0.q": 2, "layers.1.v": 0.5}))
    save_file({"layers.0.q": np.array([2.0], np.float32), "layers.1.v": np.array(0.5, np.float16)},
              tmp_path / "a.safetensors")  # fmt: skip
    assert read_importance(tmp_path / "a.json") == read_importance(tmp_path / "a.safetensors")
    assert match_importance(NAMES, read_importance(tmp_path / "a.json")).tolist() == [2, 1, 1, 0.5]


def test_names_patterns_and_the_last_that_fits() -> None:
    given = {"*": 0.5, "layers.*.q": 3, "base_model.model.layers.1.q": 4, "layers.1.v.weight": 5}
    assert match_importance(NAMES, given).tolist() == [3, 0.5, 4, 5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers.0.q": 1, "layers.7.q": 1, "nope": 2}, "does not have: layers.7.q, nope"),
        ({"layers.0.q": -1}, "at least 0, found -1"),
        ({"layers.0.q": float("inf")}, "found inf"),
        ({"*": 0}, "every tensor has importance 0"),
    ],
)
def test_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        match_importance(NAMES, given)
    assert caught.value.code == "importance"


@pytest.mark.parametrize(
    "text", ["[1]", '{"a":' * 100_000, '{"a": 1' + "0" * 400 + "}", '{"a": "b"}', '{"a": true}', "{", None]
)
def test_files_that_are_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(EncodeError) as caught:
        read_importance(tmp_path / "a.json")
    assert caught.value.code == "importance"


def test_tensors_of_more_than_a_number(tmp_path: Path) -> None:
    save_file({"layers.0.q": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(EncodeError, match=r"layers\.0\.q: expected one floating-point number, found F32 \[2\]"):
        read_importance(tmp_path / "a.safetensors")


def nmse_by_path(report: nola_codec.EncodeReport) -> dict[str, float]:
    return {t.name.removeprefix(PREFIX): t.nmse for t in report.tensors}


def test_importance_moves_bytes_and_equal_importance_moves_none(many: Any) -> None:
    _, plain = many.encode(size=12_000)
    _, more = many.encode(size=12_000, importance={"layers.*.v": 8.0})
    before, after = nmse_by_path(plain), nmse_by_path(more)
    assert all(after[p] < before[p] for p in before if ".v" in p)
    _, equal = many.encode(size=12_000, importance={"*": 2.0})
    assert equal.nmse == pytest.approx(plain.nmse, rel=0.02)
    assert equal.effective_error == pytest.approx(plain.effective_error, rel=0.02)


def test_importance_of_nothing_drops_a_tensor(many: Any) -> None:
    _, report = many.encode(size=12_000, importance={"layers.0.q": 0})
    kept = {t.name: t.kept for t in report.tensors}
    assert kept[PREFIX + "layers.0.q"] == 0
    assert min(count for name, count in kept.items() if name != PREFIX + "layers.0.q") > 0


def test_an_error_is_reached_in_the_weighted_objective(many: Any) -> None:
    _, report = many.encode(error=0.1, importance={"layers.*.v": 8.0})
    assert report.effective_error is not None
    assert 0.09 < report.effective_error <= 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "nmse"}, "importance weighs components by more than"),
        ({"bits": 4}, "importance weighs components, and the factor form"),
    ],
)
def test_importance_has_no_meaning_here(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        EncodeOptions(importance={}, **options)
    assert caught.value.code == "option"
