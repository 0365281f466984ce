"""The two array libraries do the same, and tell what they can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nola_codec
from nola_codec.arrays import NUMPY, Arrays, TorchArrays, arrays_on, bfloat16_bits
from nola_codec.errors import NolaError

BOTH: tuple[Arrays, ...] = (NUMPY, TorchArrays())
VALUES = np.array([[5, -3, 2], [0, 7, -9]], np.int64)


@pytest.mark.parametrize(
    "operation",
    [
        lambda xp, x: xp.cast(x, "int16"),
        lambda xp, x: xp.cast(x, "float32"),
        lambda xp, x: xp.arange(3, 9),
        lambda xp, x: xp.zeros((2, 3), "int8"),
        lambda xp, x: xp.stack([x, x + 1], 1),
        lambda xp, x: xp.concat([x, x * 2], 0),
        lambda xp, x: xp.where(x > 0, x, -x),
        lambda xp, x: xp.clip(x, -4, 4),
        lambda xp, x: xp.sort(x.reshape(-1)),
    ],
)
def test_the_libraries_agree(operation: Any) -> None:
    expected, found = (xp.numpy(operation(xp, xp.asarray(VALUES))) for xp in BOTH)
    assert expected.dtype == found.dtype
    assert expected.tolist() == found.tolist()


def test_read_only_arrays_are_copied() -> None:
    frozen = VALUES.copy()
    frozen.flags.writeable = False
    made = TorchArrays().asarray(frozen)
    made[0, 0] = 99
    assert frozen[0, 0] == 5


def test_the_host_has_threads_and_a_cache_and_a_device_has_not() -> None:
    assert [(xp.has_threads, xp.has_cache) for xp in BOTH] == [(True, True), (False, False)]


def test_numpy_serves_the_processor() -> None:
    assert arrays_on("cpu") is NUMPY
    assert arrays_on("numpy") is NUMPY
    assert arrays_on(torch.device("cpu")) is NUMPY
    assert isinstance(arrays_on("meta"), TorchArrays)


@pytest.mark.parametrize("device", ["bogus", "xpu:77", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_when_a_file_is_opened(device: str) -> None:
    data, _ = nola_codec.encode_bytes({"a.lora_A": np.ones((2, 4), "f4"), "a.lora_B": np.ones((4, 2), "f4")}, scale=1)
    for call in (lambda: arrays_on(device), lambda: nola_codec.load(data, device=device)):
        with pytest.raises(NolaError, match="device") as caught:
            call()
        assert caught.value.code == "option"


@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50))
def test_bfloat16_is_rounded_as_torch_does(bits: list[int]) -> None:
    array = np.array(bits, np.uint32)
    made = bfloat16_bits(array)
    values = torch.from_numpy(array.view(np.float32).copy())
    expected = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    numbers = ~np.isnan(array.view(np.float32))
    assert made[numbers].tolist() == expected[numbers].tolist()
    assert torch.from_numpy(made[~numbers].view(np.int16).copy()).view(torch.bfloat16).isnan().all()
