"""Scale codes stand for the scales that their formula gives."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.quant.scales import (
    MANTISSAS,
    MAX_CODE,
    MAX_EXPONENT,
    MIN_CODE,
    MIN_EXPONENT,
    fitting_exponent,
    mantissa_and_shift,
    nearest_code,
    scale_value,
)


def test_the_table_is_what_its_formula_says() -> None:
    getcontext().prec = 40
    root = Decimal(2) ** (Decimal(1) / 32)
    assert tuple(int((Decimal(32768) * root**i).to_integral_value()) for i in range(32)) == MANTISSAS


@given(code=st.integers(MIN_CODE, MAX_CODE), exponent=st.integers(MIN_EXPONENT, MAX_EXPONENT))
def test_mantissa_and_shift_are_the_scale(code: int, exponent: int) -> None:
    mantissa, shift = mantissa_and_shift(np.array([code]), np.array([exponent]))
    assert 1 << 15 <= mantissa[0] < 1 << 16
    assert np.ldexp(float(mantissa[0]), int(-shift[0])) * 2.0**exponent == scale_value(np.array([code]))[0]
    assert scale_value(np.array([code]))[0] == pytest.approx(2.0 ** (code / 32), rel=2e-5)


@given(code=st.integers(MIN_CODE, MAX_CODE))
def test_nearest_code_finds_a_code_again(code: int) -> None:
    assert nearest_code(2.0 ** (code / 32)) == code


def test_nearest_code_stays_in_range() -> None:
    assert nearest_code(2.0**-200) == MIN_CODE
    assert nearest_code(2.0**200) == MAX_CODE


@given(peaks=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5), code=st.integers(-1000, 1000))
def test_fitting_exponent_is_the_smallest_that_does_not_saturate(peaks: list[float], code: int) -> None:
    codes = np.full(len(peaks), code)
    exponent = fitting_exponent(np.array(peaks), codes)
    top = max(peaks) * float(scale_value(codes)[0])
    assert round(top * 2.0**-exponent) <= 32767
    assert round(top * 2.0 ** (1 - exponent)) > 32767 or exponent == MIN_EXPONENT


def test_nothing_fits_any_exponent() -> None:
    assert fitting_exponent(np.zeros(3), np.zeros(3, np.int64)) == 0
