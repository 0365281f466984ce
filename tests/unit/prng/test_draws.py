"""Drawn tensors are those that the installed PyTorch draws, and follow the rules that its draws do not show."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nola_codec.model.tensors import Draw, DrawMethod
from nola_codec.prng.draws import draw_tensor, draw_values
from nola_codec.prng.mt19937 import mt19937
from nola_codec.stores.dtypes import to_float32

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
FUSED: DrawMethod = "uniform" if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX") else "uniform-fused"


def single(value: float) -> float:
    """Return the nearest float32 number."""
    return float(np.float32(value))


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 5489, 2**32 - 1, 2**32 + 7, 2**63 + 12345])
def test_uniform_draws_are_pytorchs(seed: int, dtype: torch.dtype) -> None:
    shapes = ((1,), (15,), (16,), (17,), (64,), (65,), (3, 5, 7), (130, 9))
    bounds = ((-0.433, 0.433), (0.1, 3.7), (-1 / 7, 2 / 3), (0.0, 1.0))
    for shape, (low, high) in (*zip(shapes, bounds * 2, strict=True), *((shapes[-1], each) for each in bounds)):
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.empty(13).uniform_(generator=generator)
        wanted = torch.empty(shape, dtype=dtype).uniform_(low, high, generator=generator)
        draw = Draw(shape, (NAMES[dtype],), FUSED, 24, seed & 0xFFFFFFFF, 13, 0, single(low), single(high))
        assert draw_tensor(draw).data == wanted.view(torch.uint8).numpy().tobytes(), (shape, low)


def test_a_long_draw_is_pytorchs() -> None:
    """A draw longer than one piece of the generator is the same as PyTorch's."""
    wanted = torch.empty(700_001).uniform_(-0.3, 0.3, generator=torch.Generator("cpu").manual_seed(3))
    draw = Draw((700_001,), ("F32",), FUSED, 24, 3, 0, 0, single(-0.3), single(0.3))
    assert draw_tensor(draw).data == wanted.numpy().tobytes()
    middle = replace(draw, shape=(50,), start=300_000)
    assert draw_tensor(middle).data == wanted[300_000:300_050].numpy().tobytes()


def test_ternary_draws_are_of_torch_rand() -> None:
    numbers = torch.rand((40, 3, 11), generator=torch.Generator("cpu").manual_seed(9))
    for sparsity in (3, math.sqrt(97)):
        wanted = torch.zeros(numbers.shape)
        wanted[numbers < 1 / (2 * sparsity)] = -1
        wanted[numbers > 1 - 1 / (2 * sparsity)] = 1
        wanted /= wanted.std()
        bounds = [single(x) for x in (1 / (2 * sparsity), 1 - 1 / (2 * sparsity))]
        divisor = 1 / float(wanted.max())
        found = [
            draw_tensor(Draw((40, 3, 11), ("F32",), "ternary", 24, 9, 0, 0, bounds[0], bounds[1], single(d)))
            for d in (divisor, np.nextafter(np.float32(divisor), np.float32(0)))
        ]
        assert any(tensor.data == wanted.numpy().tobytes() for tensor in found)


def test_slices_along_the_second_dimension_are_drawn_one_by_one() -> None:
    generator = torch.Generator("cpu").manual_seed(4)
    slices = [torch.empty((6, 1, 5)).uniform_(-0.3, 0.3, generator=generator) for _ in range(3)]
    draw = Draw((6, 3, 5), ("F32",), FUSED, 24, 4, 0, 1, single(-0.3), single(0.3))
    assert draw_tensor(draw).data == torch.cat(slices, dim=1).numpy().tobytes()


def test_casts_and_division_are_pytorchs() -> None:
    generator = torch.Generator("cpu").manual_seed(4)
    drawn = torch.empty((50, 8), dtype=torch.bfloat16).uniform_(-0.3, 0.3, generator=generator)
    divided = drawn / drawn.std()
    draw = Draw((50, 8), ("BF16",), FUSED, 24, 4, 0, 0, single(-0.3), single(0.3), float(drawn.std()))
    assert draw_tensor(draw).data == divided.view(torch.uint8).numpy().tobytes()
    casts = replace(draw, dtypes=("BF16", "F16", "F32"))
    assert draw_tensor(casts).data == divided.half().float().numpy().tobytes()


def test_what_rounds_to_the_upper_end_is_the_lower() -> None:
    words = np.array([0, (1 << 24) - 1, 1 << 23], np.uint32)
    draw = Draw((3,), ("BF16",), "uniform-fused", 24, 0, 0, 0, 0.0, 1.0)
    assert draw_values(draw, words).tolist() == [0.0, 0.0, 0.5]
    assert draw_values(replace(draw, dtypes=("F32",)), words).tolist() == [0.0, 1 - 2.0**-24, 0.5]


def test_fused_and_plain_differ_by_one_rounding() -> None:
    words = mt19937(1, 0, 4000)
    draw = Draw((4000,), ("F32",), "uniform", 24, 1, 0, 0, single(-0.3), single(0.3))
    plain, fused = draw_values(draw, words), draw_values(replace(draw, method="uniform-fused"), words)
    exact = (words % 2**24) * 2.0**-24 * (single(0.3) - single(-0.3)) + single(-0.3)
    assert np.abs(fused - exact).max() < np.abs(plain - exact).max() < 2.0**-24
    assert (plain != fused).any()


def test_too_large_for_half_is_infinite() -> None:
    draw = Draw((2000,), ("F32", "F16"), "uniform", 24, 1, 0, 0, 0.0, 1e5 // 1)
    values = to_float32(draw_tensor(draw))
    assert np.isinf(values).any()
    assert np.isfinite(values).any()


@pytest.mark.parametrize(("start", "count"), [(0, 0), (0, 1), (623, 2), (262_143, 3), (1, 600_000)])
def test_words_may_be_had_from_anywhere(start: int, count: int) -> None:
    whole = mt19937(77, 0, start + count)
    assert (mt19937(77, start, count) == whole[start:]).all()
