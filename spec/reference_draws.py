"""Drawn tensors of the `.nola` format, as nola-v1.md has them, for `reference_decoder.py`.

A file that has them has bit 1 of its required flags.
"""

import math
from typing import Any

import numpy as np

KIND = {
    "type": range(3, 4), "template": str, "dtypes": [range(3)], "shape": [range(1, 2**31 + 1)], "method": range(3),
    "digits": range(8, 25), "seed": range(2**32), "start": range(2**34 + 1), "axis": range(2), "low": float,
    "high": float, "divisor": (None, float),
}  # fmt: skip
"""The fields of a kind, in the notation of the schemas of `reference_decoder.py`."""


def is_valid(kind: dict[str, Any]) -> bool:
    """Return True if the fields of a kind, which are as KIND says, fit each other."""
    floats = [kind["low"], kind["high"], kind["divisor"] or 1.0]
    return (
        1 <= len(kind["dtypes"]) <= 4
        and kind["digits"] in (8, 11, 24)
        and all(abs(f) <= 2**32 and f == float(np.float32(f)) for f in floats)
        and kind["low"] <= kind["high"]
        and kind["divisor"] in (None, max(2**-32, floats[2]))
        and (kind["axis"] == 0 or len(kind["shape"]) > 1)
    )


def draw(kind: dict[str, Any]) -> bytes:
    """Return the bytes of a drawn tensor."""
    count, first, low, high = math.prod(kind["shape"]), kind["dtypes"][0], *np.float32((kind["low"], kind["high"]))
    u = np.float32((mt19937(kind["seed"], kind["start"], count) % 2 ** kind["digits"]) * 2.0 ** -kind["digits"])
    if kind["method"] == 2:
        values = np.float32(u > high) - np.float32(u < low)
    else:
        span = high - low
        sums = u * span + low if kind["method"] == 0 else np.float64(u) * np.float64(span) + np.float64(low)
        values = round_to(sums, first)
        values[values == round_to(high[None], first)] = round_to(low[None], first)[0]
    if kind["divisor"] is not None:
        values = round_to(values / np.float32(kind["divisor"]), first)
    for dtype in kind["dtypes"][1:]:
        values = round_to(values, dtype)
    if kind["axis"]:
        a, b, *rest = kind["shape"]
        values = values.reshape(b, a, *rest).swapaxes(0, 1).reshape(-1)
    last = kind["dtypes"][-1]
    stored = (values.view(np.uint32) >> 16).astype("<u2") if last == 2 else values.astype(("<f4", "<f2")[last])
    return stored.tobytes()


def mt19937(seed: int, start: int, count: int) -> np.ndarray:
    """Return `count` words of the Mersenne Twister, after the first `start`."""
    state, out = [seed], np.zeros(start + count, np.int64)
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    for i in range(start + count):
        mixed = state[i % 624] & 2**31 | state[(i + 1) % 624] & 2**31 - 1
        y = state[(i + 397) % 624] ^ mixed >> 1 ^ (mixed & 1) * 0x9908B0DF
        state[i % 624] = y
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        out[i] = y ^ y >> 18
    return out[start:]


def round_to(values: np.ndarray, dtype: int) -> np.ndarray:
    """Return the values rounded to a dtype (F32, F16, BF16), to nearest, ties to even, as float32."""
    values = values.astype(np.float32)
    if dtype == 2:
        bits = values.view(np.uint32).astype(np.int64)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):  # a value that is too large becomes infinite
        return values.astype(np.float16).astype(np.float32) if dtype == 1 else values
