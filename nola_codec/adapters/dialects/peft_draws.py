"""Find the random draws with which PEFT makes the frozen matrices of VeRA and RandLoRA, to the bit.

    VeRA      A (r, in), B (out, r): Kaiming's uniform of fan in, gain sqrt(2), float32       `tuners/vera/model.py`
    RandLoRA  A (r, 1, min), B (max, N, r): Kaiming's uniform with a = sqrt(5) in bfloat16 (float16 where accelerate
              finds no bfloat16), B base by base; or -1, 0 and 1 of torch.rand's float32 numbers; either is divided
              by its standard deviation                                                     `tuners/randlora/model.py`

All are drawn from `torch.Generator().manual_seed(projection_prng_key)`, A first. Then PEFT casts them to the dtype of
the base model, and back to float32 for training. This was checked against peft 0.21.2 with torch 2.13.0, with its
kernels for AVX2, for AVX-512 and for neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.model.tensors import Draw, DrawMethod, RawTensor
from nola_codec.prng.draws import draw_tensor, draw_values, round_to_dtype
from nola_codec.prng.mt19937 import mt19937
from nola_codec.stores.dtypes import to_float32

_SAMPLE = 8192
_DIGITS = {"F32": 24, "BF16": 8, "F16": 11}
_CAST_DTYPES = ("F32", "F16", "BF16")
_UNIFORM: tuple[DrawMethod, ...] = ("uniform-fused", "uniform")


@dataclass(frozen=True)
class DrawPlace:
    """The place of a matrix in the stream of the generator, and its bound.

    Attributes:
        start: The number of words that the generator makes before the first word of the matrix.
        axis: As in `Draw`.
        bound: The bound of a uniform draw.
    """

    start: int
    axis: int
    bound: float


@dataclass(frozen=True)
class DrawRule:
    """The way in which PEFT draws the two frozen matrices of one method.

    Attributes:
        places: The places of A and of B.
        dtypes: The dtypes in which PEFT may draw uniform numbers.
        is_divided: True if the drawn numbers are divided by their standard deviation.
        sparsity: The sparsity with which -1, 0 and 1 are drawn; None if uniform numbers are drawn.
    """

    places: tuple[DrawPlace, DrawPlace]
    dtypes: tuple[str, ...]
    is_divided: bool
    sparsity: float | None = None


def find_draws(rule: DrawRule, key: int, lora_A: RawTensor, lora_B: RawTensor) -> tuple[Draw | None, Draw | None]:
    """Find the draws that make A and B. None stands for a matrix that no known draw makes.

    Args:
        rule: The way in which PEFT draws them.
        key: The ``projection_prng_key`` of the configuration.
        lora_A: The matrix A.
        lora_B: The matrix B.
    """
    seed = key & 0xFFFFFFFF
    found: list[Draw | None] = []
    for place, tensor in zip(rule.places, (lora_A, lora_B), strict=True):
        if tensor.dtype not in _CAST_DTYPES:
            found.append(None)
            continue
        if rule.sparsity is None:
            candidates = _uniform_draws(tensor, seed, place, rule.dtypes)
        else:
            candidates = _ternary_draws(tensor, seed, place.start, rule.sparsity)
        found.append(_search(tensor, candidates, divided=rule.is_divided))
    return found[0], found[1]


def find_sparsity(config: Mapping[str, Any], smallest: int) -> float | None:
    """Return the sparsity of RandLoRA's matrices of -1, 0 and 1; None if its matrices are uniform.

    Args:
        config: The configuration.
        smallest: The last dimension of A.
    """
    if config.get("very_sparse"):
        return math.sqrt(smallest)
    return 3.0 if config.get("sparse") else None


def _uniform_draws(tensor: RawTensor, seed: int, place: DrawPlace, drawn: tuple[str, ...]) -> Iterator[Draw]:
    for first in drawn:
        for digits in dict.fromkeys((24, _DIGITS[first])):
            # Versions of torch that draw 16-bit numbers with few digits also round the bounds to that dtype.
            bound = float(round_to_dtype(np.array([place.bound], np.float32), first if digits < 24 else "F32")[0])
            for method in _UNIFORM if digits == 24 else _UNIFORM[1:]:
                for casts in _casts(first, tensor.dtype):
                    yield Draw(tensor.shape, (first, *casts), method, digits, seed, place.start, place.axis,
                               -bound, bound)  # fmt: skip


def _ternary_draws(tensor: RawTensor, seed: int, start: int, sparsity: float) -> Iterator[Draw]:
    low, high = (float(np.float32(x)) for x in (1 / (2 * sparsity), 1 - 1 / (2 * sparsity)))
    for casts in _casts("F32", tensor.dtype):
        yield Draw(tensor.shape, ("F32", *casts), "ternary", 24, seed, start, 0, low, high)


def _casts(first: str, last: str) -> Iterator[tuple[str, ...]]:
    """Yield the casts that may lie between the dtype of a draw and that of a file, with or without a base's dtype."""
    yield () if first == last else (last,)
    for base in _CAST_DTYPES:
        if base not in (first, last):
            yield (base, last)
    if first == last == "F32":
        yield ("BF16", "F32")
        yield ("F16", "F32")


def _search(tensor: RawTensor, candidates: Iterator[Draw], *, divided: bool) -> Draw | None:
    size = math.prod(tensor.shape)
    flat = np.unique(np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64))
    wanted = to_float32(tensor).reshape(-1)[flat]
    words: npt.NDArray[np.uint32] | None = None
    for draw in candidates:
        if words is None:
            words = mt19937(draw.seed, draw.start, size)[_word_indices(draw, flat)]
        for found in _divide_draw(draw, words, wanted) if divided else (draw,):
            if np.array_equal(draw_values(found, words), wanted) and draw_tensor(found) == tensor:
                return found
    return None


def _divide_draw(draw: Draw, words: npt.NDArray[np.uint32], wanted: npt.NDArray[np.float32]) -> Iterator[Draw]:
    """Yield the draw with several divisors near the one that a sample of the tensor tells.

    The last bit of a standard deviation depends on the order of a sum, so the divisor cannot simply be computed.
    """
    values = draw_values(replace(draw, dtypes=draw.dtypes[:1]), words).astype(np.float64)
    energy = float(np.square(wanted, dtype=np.float64).sum())
    if not energy or not math.isfinite(energy):
        return
    estimate = float(values @ wanted) / energy
    if not 2.0**-30 < estimate < 2.0**30 or np.abs(values - estimate * wanted).max() > np.abs(values).max() / 32:
        return
    nearest = float(round_to_dtype(np.array([estimate], np.float32), draw.dtypes[0])[0])
    bits = {"F32": 24, "F16": 11, "BF16": 8}[draw.dtypes[0]]
    ulp = 2.0 ** (math.frexp(nearest)[1] - bits)
    for steps in (0, 1, -1, 2, -2, 3, -3):
        yield replace(draw, divisor=nearest + steps * ulp)


def _word_indices(draw: Draw, flat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the number of the generator's word that makes each of these elements of the row-major tensor."""
    if draw.axis == 0:
        return flat
    rows, slices = draw.shape[:2]
    rest = math.prod(draw.shape[2:])
    row, middle, last = np.unravel_index(flat, (rows, slices, rest))
    return np.asarray((middle * rows + row) * rest + last, np.int64)
