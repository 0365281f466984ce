"""`round_to` against rounding done in exact fractions: ties, subnormals, overflow, and what two roundings get wrong."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from nola_codec.merge.arithmetic.sum import merge_tensor, round_to

# dtype: (bits of the significand, lowest exponent of a normal number, highest exponent)
FORMATS = {torch.float32: (24, -126, 127), torch.float16: (11, -14, 15), torch.bfloat16: (8, -126, 127)}


def rounded(value: float, dtype: torch.dtype) -> float:
    """IEEE 754 round to nearest, ties to even, computed in fractions."""
    digits, lowest, highest = FORMATS[dtype]
    exact = abs(Fraction(value))
    if exact == 0:
        return value
    exponent = max(lowest, _floor_log2(exact))
    unit = Fraction(2) ** (exponent - digits + 1)
    whole, rest = divmod(exact, unit)
    if rest > unit / 2 or (rest == unit / 2 and whole % 2):
        whole += 1
    result = whole * unit
    magnitude = float("inf") if result >= Fraction(2) ** (highest + 1) else float(result)
    return float(np.copysign(magnitude, value))


def _floor_log2(exact: Fraction) -> int:
    guess = exact.numerator.bit_length() - exact.denominator.bit_length()
    return guess if Fraction(2) ** guess <= exact else guess - 1


def awkward(dtype: torch.dtype) -> list[float]:
    digits, lowest, highest = FORMATS[dtype]
    ulp = 2.0 ** (1 - digits)
    values = [0.0, 1.0, 1 / 3, np.pi]
    for exponent in (0, 5, lowest, highest - 1):
        for whole in (1.0, 1 + ulp, 1 + 2 * ulp, 2 - ulp):
            middle = whole + ulp / 2
            values += [2.0**exponent * m for m in (middle, np.nextafter(middle, 0), np.nextafter(middle, 4))]
    smallest = 2.0 ** (lowest - digits + 1)
    values += [smallest * m for m in (0.25, 0.5, 0.5 + 2.0**-40, 0.75, 1, 1.5, 1.5 - 2.0**-40, 2.5, 1000.5, 1001.5)]
    largest = (2 - ulp) * 2.0**highest
    values += [
        largest,
        largest * (1 + ulp / 8),
        (2 - ulp / 2) * 2.0**highest,
        2.0 ** (highest + 1),
        2.0 ** (highest + 9),
    ]
    values.append(np.nextafter((2 - ulp / 2) * 2.0**highest, 0))
    return [sign * float(v) for v in values for sign in (1, -1)]


@pytest.mark.parametrize("dtype", FORMATS)
def test_awkward_values(dtype: torch.dtype) -> None:
    values = awkward(dtype)
    found = round_to(torch.tensor(values, dtype=torch.float64), dtype)
    assert found.dtype == dtype
    assert found.double().tolist() == [rounded(v, dtype) for v in values]
    assert torch.signbit(found).tolist() == [bool(np.signbit(v)) for v in values]


@pytest.mark.parametrize("dtype", FORMATS)
def test_random_values(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    _, lowest, highest = FORMATS[dtype]
    values = rng.standard_normal(4000) * 2.0 ** rng.integers(lowest - 26, highest + 2, 4000)
    found = round_to(torch.from_numpy(values), dtype)
    assert found.double().tolist() == [rounded(v, dtype) for v in values.tolist()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_roundings_would_be_seen(dtype: torch.dtype) -> None:
    """A value a hair over a tie: by way of float32 the hair is lost, and the tie goes down."""
    digits = FORMATS[dtype][0]
    value = torch.tensor([1 + 2.0**-digits + 2.0**-40], dtype=torch.float64)
    assert value.float().to(dtype).item() == 1
    assert round_to(value, dtype).item() == 1 + 2.0 ** (1 - digits)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite_stays(dtype: torch.dtype) -> None:
    found = round_to(torch.tensor([np.inf, -np.inf, np.nan], dtype=torch.float64), dtype)
    assert found[:2].tolist() == [np.inf, -np.inf]
    assert found[2].isnan()


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float64])
def test_merging_is_one_sum_and_one_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4).to(dtype)
    delta = torch.randn(6, 4, dtype=torch.float64) * 1e-3
    exact = weight.double() + delta
    merge_tensor(weight, delta)
    wanted = exact if dtype == torch.float64 else torch.tensor(
        [[rounded(v, dtype) for v in row] for row in exact.tolist()], dtype=torch.float64
    )  # fmt: skip
    assert torch.equal(weight.double(), wanted)
