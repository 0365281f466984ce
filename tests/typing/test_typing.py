"""A type checker that knows only the library's public types notices a wrong call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nola_codec.api.keywords import DeltaKeywords, EncodeKeywords, SweepKeywords, check_keywords, keyword_names
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def test_mypy_accepts_right_calls_and_refuses_wrong_ones() -> None:
    command = [sys.executable, "-m", "mypy", str(HERE / "calls.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_typed_options_are_those_of_the_encoder() -> None:
    fields = set(EncodeOptions.__dataclass_fields__)
    assert {*keyword_names(EncodeKeywords), "size", "reference"} == fields
    assert {*keyword_names(DeltaKeywords)} < fields
    assert {*keyword_names(SweepKeywords)} < fields


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nsme": 0.1}, "encode() got an unexpected keyword argument 'nsme'; did you mean 'nmse'?"),
        ({"nmse": "0.1"}, "nmse: expected a number, found '0.1'"),
        ({"nmse": True}, "nmse: expected a number, found True"),
        ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
        ({"seed": None}, "seed: expected an integer, found None"),
        ({"rungs": "10KB"}, "rungs: expected a list, found '10KB'"),
        ({"entropy": "rans"}, "entropy: expected a list, found 'rans'"),
        ({"importance": [1]}, "importance: expected a mapping from names, found [1]"),
        ({"progress": 1}, "progress: expected a function, found 1"),
        ({"thorough": 1}, "thorough: expected True or False, found 1"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_at_run_time_too(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        check_keywords("encode", options, EncodeKeywords)
    assert (caught.value.code, str(caught.value)) == ("option", message)


def test_values_that_mean_nothing_given_are_taken() -> None:
    check_keywords("encode", {"nmse": None, "rank": None, "rungs": None, "progress": None}, EncodeKeywords)
