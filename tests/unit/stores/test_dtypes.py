"""Float conversions against PyTorch's, bit for bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import (
    from_float32,
    from_float64,
    require_finite,
    to_float32,
    to_float64,
)

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def patterns(count: int = 200_000) -> npt.NDArray[np.float32]:
    """float32 values of random bits, with every kind of tie and the edges; finite in bfloat16."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint32)
    bits[: count // 2] &= np.uint32(0xFFFF8000)  # exact halves of a bfloat16 step
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    edges = np.array([0.0, -0.0, 1e-45, 2.0**-133, 1.5 * 2.0**-133, 65504.0, 2.0**-24, 2.0**-25], np.float32)
    return np.concatenate([values, edges])


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_from_float32_rounds_as_torch(dtype: str) -> None:
    values = patterns()
    assert from_float32(values, dtype).data == torch_bytes(torch.from_numpy(values).to(TORCH[dtype]))


def test_from_float32_to_half_rounds_as_torch() -> None:
    values = patterns()
    values = values[np.abs(values) < 65504]
    assert from_float32(values, "F16").data == torch_bytes(torch.from_numpy(values).half())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_to_float32_is_exact_for_every_16_bit_pattern(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    raw = RawTensor(dtype, (256, 256), bits.tobytes())
    wanted = torch.from_numpy(bits.view(np.int16)).view(TORCH[dtype]).float().numpy().reshape(256, 256)
    np.testing.assert_array_equal(to_float32(raw), wanted)
    with np.errstate(invalid="ignore"):  # signalling NaN
        np.testing.assert_array_equal(to_float64(raw), wanted.astype(np.float64))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_round_trip_keeps_the_bytes(dtype: str) -> None:
    stored = from_float32(np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4), dtype)
    assert stored.shape == (2, 3, 4)
    assert from_float32(to_float32(stored), dtype) == stored


def test_from_float64_rounds_to_bfloat16_once() -> None:
    # Just above a tie: by way of float32 it would fall on the tie and then to even, a different bfloat16.
    value = np.array([1.0 + 2.0**-8 + 2.0**-40, -(1.0 + 2.0**-8 + 2.0**-40)])
    np.testing.assert_array_equal(to_float32(from_float64(value, "BF16")), [1.0078125, -1.0078125])
    np.testing.assert_array_equal(to_float32(from_float32(value.astype(np.float32), "BF16")), [1.0, -1.0])


@pytest.mark.parametrize(("dtype", "digits"), [("BF16", 8), ("F16", 11), ("F32", 24)])
def test_from_float64_picks_the_nearest(dtype: str, digits: int) -> None:
    values = np.random.default_rng(1).standard_normal(20_000) + 8.0  # clear of the half type's subnormals
    rounded = to_float64(from_float64(values, dtype))
    step = 2.0 ** (np.frexp(values)[1] - digits)
    assert np.all(np.abs(rounded - values) <= step / 2)


@pytest.mark.parametrize(("dtype", "value"), [("F16", 65520.0), ("BF16", 3.4e38)])
def test_overflow_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(AdapterError, match=r"^w: values too large") as e:
        from_float32(np.array([value], np.float32), dtype, where="w")
    assert e.value.code == "overflow"


def test_float64_too_large_for_float32_is_refused() -> None:
    with pytest.raises(AdapterError) as e:
        to_float32(RawTensor("F64", (1,), np.array([1e300]).tobytes()))
    assert e.value.code == "overflow"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_infinities_and_nan_pass_through(dtype: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(to_float32(from_float32(values, dtype)), values)
    np.testing.assert_array_equal(to_float32(from_float64(values.astype(np.float64), dtype)), values)


def test_integers_are_not_floats() -> None:
    for call in (lambda: to_float32(RawTensor("I8", (1,), b"\0")), lambda: from_float32(np.zeros(1, np.float32), "I8")):
        with pytest.raises(AdapterError) as e:
            call()
        assert e.value.code == "not-float"


def test_require_finite_names_the_first_place() -> None:
    values = np.zeros((2, 3))
    values[1, 2] = np.nan
    with pytest.raises(AdapterError, match=r"w: 1 values are NaN or infinite, the first at \[1, 2\]") as e:
        require_finite(values, "w")
    assert e.value.code == "not-finite"


def test_a_tensor_that_is_a_view_of_an_array_can_be_copied_and_pickled() -> None:
    made = from_float32(np.arange(6, dtype=np.float32).reshape(2, 3), "F32")
    assert isinstance(made.data, memoryview)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied == made
        assert isinstance(copied.data, bytes)
