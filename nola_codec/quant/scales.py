"""Scales as integers: code E stands for 2^(E / 32), as a 16-bit mantissa and a shift (specification, "Scales").

    scaled = (y * M + (1 << (s - 1))) >> s,   M = MANTISSAS[E mod 32],   s = 15 - E // 32 + exponent

so that `scaled * 2^exponent` is y * 2^(E / 32) to within the int16 rounding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

STEPS = 32
"""Codes an octave of a factor's scale; a component's amplitude, the product of two, has 16."""

MANTISSAS: tuple[int, ...] = (
    32768, 33486, 34219, 34968, 35734, 36516, 37316, 38133, 38968, 39821, 40693, 41584, 42495, 43425, 44376, 45348,
    46341, 47356, 48393, 49452, 50535, 51642, 52773, 53928, 55109, 56316, 57549, 58809, 60097, 61413, 62757, 64132,
)  # fmt: skip
"""round(2^15 * 2^(i / 32)). Listed, not computed, so that no library's pow decides a decoded bit."""

MIN_SHIFT, MAX_SHIFT = 1, 62
MIN_CODE, MAX_CODE = -4096, 4095
MAX_WEIGHT_CODE = 127
MIN_EXPONENT, MAX_EXPONENT = -120, 100


def layer_weight(code: int) -> int:
    """The factor 2^(code / 8) of a layer's points, as an integer; codes are 0 to MAX_WEIGHT_CODE."""
    return MANTISSAS[4 * (code % 8)] << code // 8 >> 15


def mantissa_and_shift(
    codes: npt.NDArray[np.int64], exponents: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """M and s of scale codes, for factors with these power-of-two exponents; any matching shapes."""
    table = np.array(MANTISSAS, np.int64)
    return table[codes & (STEPS - 1)], 15 - (codes >> 5) + exponents


def scale_value(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The scale that the decoder uses for a code, in float64: MANTISSAS[E mod 32] * 2^(E // 32 - 15)."""
    table = np.array(MANTISSAS, np.float64)
    return np.asarray(np.ldexp(table[codes & (STEPS - 1)], (codes >> 5) - 15), np.float64)


def nearest_code(value: float) -> int:
    """The code whose scale is nearest to a positive value, in the logarithm."""
    return min(MAX_CODE, max(MIN_CODE, round(STEPS * math.log2(value))))


def fitting_exponent(peaks: npt.NDArray[np.float64], codes: npt.NDArray[np.int64]) -> int:
    """The smallest exponent at which no scaled value of a factor leaves int16.

    Args:
        peaks: Largest |y| of each vector of the factor, (vectors,).
        codes: Scale codes, (vectors,).
    """
    top = float((peaks * scale_value(codes)).max(initial=0.0))
    if top == 0.0:
        return 0
    exponent = math.frexp(top)[1] - 15
    if round(math.ldexp(top, -exponent)) > 32767:
        exponent += 1
    return max(MIN_EXPONENT, exponent)
