"""Residuals bring every weight back to the bit, whatever the merge and its rounding did to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nola_codec.errors import AdapterError
from nola_codec.merge.arithmetic.deltas import ComputedDelta
from nola_codec.merge.arithmetic.residuals import merge_rows, restore_rows
from nola_codec.merge.undo_file import decode_residual, encode_residual
from nola_codec.stores.dtypes import from_float64

SHAPE = (6, 40)


def delta_of(values: Any) -> ComputedDelta:
    return ComputedDelta(lambda: values, SHAPE)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_there_and_back(dtype: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    base = from_float64(rng.standard_normal(SHAPE), dtype).data
    delta = delta_of(rng.standard_normal(SHAPE) * scale)
    width = len(base) // 240
    found = bytearray(base)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        rows = memoryview(found)[start * 40 * width : stop * 40 * width]
        before = bytes(rows)
        residual = merge_rows(rows, dtype, delta, start, stop)
        assert bytes(rows) != before or scale < 1
        packed = encode_residual(residual, dtype)
        restore_rows(rows, decode_residual(packed, dtype, len(rows)), dtype, delta, start, stop)
    assert bytes(found) == base


def test_signs_subnormals_and_zeros_come_back() -> None:
    base = np.array(
        [0x8000, 0, 1, 0x8001, 0x7F7F, 0xFF7F] * 40, "<u2"
    ).tobytes()  # -0, the least and the largest of bf16
    delta = delta_of(np.tile([0.0, 1e-45, -1.0, 1e30, -1e38, 1e38], 40).reshape(SHAPE))
    rows = memoryview(bytearray(base))
    residual = merge_rows(rows, "BF16", delta, 0, 6)
    restore_rows(rows, residual, "BF16", delta, 0, 6)
    assert bytes(rows) == base


def test_a_merge_that_overflows_is_refused_and_a_restoration_is_not() -> None:
    rows = memoryview(bytearray(np.full(240, 0x7BFF, "<u2").tobytes()))  # 65504, the largest float16
    with pytest.raises(AdapterError) as caught:
        merge_rows(rows, "F16", delta_of(np.full(SHAPE, 100.0)), 0, 6)
    assert caught.value.code == "overflow"
    # As in a damaged merged model: the rows count as zeros, and the result is the residual itself.
    rows = memoryview(bytearray(np.full(240, 0x7BFF, "<u2").tobytes()))
    residual = memoryview(bytearray(np.full(240, 7, "<u2").tobytes()))
    restore_rows(rows, residual, "F16", delta_of(np.full(SHAPE, -100.0)), 0, 6)
    assert bytes(rows) == bytes(residual)
