"""The compiled kernels arrange and convert sides as NumPy does."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_paths import COMPILED

from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.kernels.loading import load
from nola_codec.kernels.sides import rows_to_columns, to_float32, trim_pairs
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


@pytest.mark.parametrize("variant", COMPILED)
def test_many_arrays_become_floats_at_once(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(5)
    arrays = [rng.integers(-32768, 32768, shape).astype(np.int16) for shape in ((3, 5), (0, 4), (), (17,), (2, 64))]
    factors = [2.0**-140, 1.0, 0.1, 1 / 3, -(2.0**-20)]
    made = to_float32(lib, arrays, factors)
    for own, array, factor in zip(made, arrays, factors, strict=True):
        assert own.shape == array.shape
        assert own.ctypes.data % 64 == 0
        assert np.array_equal(own, (array.astype(np.float64) * factor).astype(np.float32))
    assert to_float32(lib, [], []) == []
    with pytest.raises(ValueError, match="a factor for each array"):
        to_float32(lib, arrays, factors[1:])


@pytest.mark.parametrize("variant", COMPILED)
def test_components_that_are_zero_are_left_out(variant: str) -> None:
    lib = load(variant).library
    assert lib is not None
    rng = np.random.default_rng(6)
    pairs = []
    for out, rank, width in ((5, 4, 200), (1, 1, 1), (70, 3, 64), (3, 2, 65), (4, 0, 6)):
        lora_B = rng.integers(1, 9, (out, rank)).astype(np.int16)
        lora_A = rng.integers(1, 9, (rank, width)).astype(np.int16)
        pairs.append((lora_B, lora_A))
    pairs[0][0][:, 1] = 0  # a component of which lora_B is zero, and one whose only numbers stand last
    pairs[0][0][:4, 2] = pairs[0][1][2, :199] = 0
    pairs[2][1][0] = 0
    pairs[3][0][:] = 0
    kept = [[0, 2, 3], [0], [1, 2], [], []]
    for (lora_B, lora_A), wanted, made in zip(pairs, kept, trim_pairs(lib, pairs), strict=True):
        assert np.array_equal(made[0], lora_B[:, wanted])
        assert np.array_equal(made[1], lora_A[wanted])
    assert trim_pairs(lib, []) == []
    with pytest.raises(ValueError, match="two factors of one rank"):
        trim_pairs(lib, [(np.zeros((3, 4), np.int16), np.zeros((3, 5), np.int16))])
