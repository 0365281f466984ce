"""Requests that make no sense are refused at once, with the code ``option``."""

from __future__ import annotations

import re
from typing import Any

import pytest

import nola_codec
from nola_codec.encoder.options import DEFAULT_ERROR, EncodeOptions
from nola_codec.sizes import parse_size

REFUSED: dict[str, dict[str, Any]] = {
    "fit: expected one of weights, task, found 'gradients'": {"fit": "gradients"},
    "fit activations is gone": {"fit": "activations"},
    "choose one of nmse, size": {"nmse": 0.1, "size": 1000},
    "choose one of ratio, error": {"ratio": 3, "error": 0.1},
    "choose one of size, num_basis/bits": {"size": 1000, "bits": 4},
    "nmse: expected a number between 0 and 1, found 0": {"nmse": 0},
    "nmse: expected a number between 0 and 1, found 1.0": {"nmse": 1.0},
    "error: expected a number between 0 and 1, found nan": {"error": float("nan")},
    "size: expected a positive number, found 0": {"size": 0},
    "ratio: expected a positive number, found -2": {"ratio": -2},
    "ratio: expected a positive number, found nan": {"ratio": float("nan")},
    "num_basis: expected a positive number, found 0": {"num_basis": 0},
    "rank: expected a positive number, found 0": {"rank": 0},
    "bits: expected 1 to 8, or 16, found 9": {"bits": 9},
    "bits: expected 1 to 8, or 16, found 0": {"bits": 0},
    "seed: expected 0 to 2^64 - 1, found -1": {"seed": -1},
    "seed: expected 0 to 2^64 - 1, found 18446744073709551616": {"seed": 1 << 64},
    "basis: expected one of hadamard, rademacher, uniform, found 'fourier'": {"basis": "fourier"},
    "entropy: expected one of": {"entropy": ("raw", "gzip")},
    "rans alone cannot code every stream": {"entropy": ("rans",)},
    "objective: expected one of nmse, effective, found 'mse'": {"objective": "mse"},
    "nmse is a target of the objective nmse": {"nmse": 0.1, "objective": "effective"},
    "has no objective to choose": {"num_basis": 10, "objective": "nmse"},
    "basis rademacher is not orthogonal": {"basis": "rademacher"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(nola_codec.EncodeError, match=re.escape(message)) as caught:
        EncodeOptions(**REFUSED[message])
    assert caught.value.code == "option"


def test_an_unknown_option_is_refused_before_anything_is_read() -> None:
    with pytest.raises(nola_codec.EncodeError, match="bogus") as caught:
        nola_codec.encode("/nowhere", bogus=1)
    assert caught.value.code == "option"


def test_without_a_rate_the_effective_error_is_the_target() -> None:
    options = EncodeOptions()
    assert (options.error_target, options.objective_name, options.is_factor_form) == (DEFAULT_ERROR, "effective", False)
    assert EncodeOptions(nmse=0.1).objective_name == "nmse"
    assert EncodeOptions(size=10).error_target is None
    assert EncodeOptions(bits=4).is_factor_form


@pytest.mark.parametrize(
    ("text", "count"),
    [("90000", 90_000), ("64KiB", 65_536), ("200KB", 200_000), ("1.5 MB", 1_500_000), ("2mib", 2 << 20),
     (" 10 b ", 10), ("1_000", 1000), (".5kb", 500), ("1GB", 10**9)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "KB", "-5KB", "5 XB", "0", "0KB", "1e3", "5KB5", "inf", "nan", "1..5KB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(nola_codec.EncodeError, match="expected a positive number and") as caught:
        parse_size(text)
    assert caught.value.code == "option"
