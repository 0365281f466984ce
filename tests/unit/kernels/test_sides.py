"""The compiled kernels arrange and convert sides as NumPy does."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_paths import COMPILED

from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.kernels.loading import load
from nola_codec.kernels.sides import rows_to_columns
from nola_codec.quant.scales import MAX_EXPONENT, MIN_EXPONENT

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")


@pytest.mark.parametrize("variant", COMPILED)
def test_rows_become_columns(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(2)
    for rows, length, columns in ((1, 1, 1), (3, 64, 3), (2, 65, 5), (16, 1000, 16), (7, 130, 64), (1, 200, 2)):
        given = rng.integers(-32768, 32768, (rows, length)).astype(np.int16)
        wanted = np.zeros((length, columns), np.int16)
        wanted[:, :rows] = given.T
        assert np.array_equal(rows_to_columns(lib, given, columns), wanted)
        assert np.array_equal(rows_to_columns(lib, given[:, ::-1], columns), wanted[::-1])
    with pytest.raises(ValueError, match="as many rows"):
        rows_to_columns(lib, np.zeros((3, 4), np.int16), 2)
    with pytest.raises(ValueError, match="int16"):
        rows_to_columns(lib, np.zeros((3, 4), np.int32), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", COMPILED)
def test_floats_are_exact(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.arange(-32768, 32768).astype(np.int16).reshape(256, 256)
    for exponent in (MIN_EXPONENT, -16, -1, 0, 1, MAX_EXPONENT):
        monkeypatch.setenv("NOLA_KERNELS", path)
        made, turned = DecodedRecord((every, every.T), (exponent, exponent)).float32(NUMPY)
        monkeypatch.setenv("NOLA_KERNELS", "off")
        wanted, _ = DecodedRecord((every, every.T), (exponent, exponent)).float32(NUMPY)
        assert made.dtype == wanted.dtype == np.float32
        assert np.array_equal(made, every.astype(np.float64) * 2.0**exponent)
        assert made.tobytes() == wanted.tobytes()
        assert np.array_equal(turned, made.T)
