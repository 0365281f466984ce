"""Scales as integers: code E stands for 2^(E / 32), as a 16-bit mantissa and a shift (specification, "Factors").

    scaled = (y * M + (1 << (s - 1))) >> s,   M = MANTISSAS[E mod 32],   s = 15 - E // 32 + exponent

`scaled * 2^exponent` is then y * 2^(E / 32) to within the rounding to int16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from nola_codec.arrays import Array, Arrays
from nola_codec.errors import FormatError, mismatch
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

STEPS = 32
"""Scale codes in an octave. The amplitude of a component, which is the product of two vectors, has 16."""

MANTISSAS: tuple[int, ...] = (
    32768, 33486, 34219, 34968, 35734, 36516, 37316, 38133, 38968, 39821, 40693, 41584, 42495, 43425, 44376, 45348,
    46341, 47356, 48393, 49452, 50535, 51642, 52773, 53928, 55109, 56316, 57549, 58809, 60097, 61413, 62757, 64132,
)  # fmt: skip
"""The integers round(2^15 * 2^(i / 32)). They are listed, so that no library's pow decides a decoded bit."""

_SCALE_ELEMENTS = 1 << 22
"""Elements that are scaled at once in int64."""

MIN_SHIFT, MAX_SHIFT = 1, 62
MIN_CODE, MAX_CODE = -4096, 4095
MAX_WEIGHT_CODE = 127
MIN_EXPONENT, MAX_EXPONENT = -120, 100


def layer_weight(code: int) -> int:
    """Return the weight of a layer, 2^(code / 8) as an integer; codes are 0 to MAX_WEIGHT_CODE."""
    return MANTISSAS[4 * (code % 8)] << code // 8 >> 15


def mantissa_and_shift(
    codes: npt.NDArray[np.int64], exponents: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return M and s, both int64, of scale codes and the exponents of their factors; the shapes broadcast."""
    table = np.array(MANTISSAS, np.int64)
    return table[codes & (STEPS - 1)], 15 - (codes >> 5) + exponents


def require_shifts(shifts: npt.NDArray[np.int64], name_of: Callable[[int], str]) -> None:
    """Raise FormatError ``scale`` if the shift of a vector is out of range; `name_of` gives the name of its record."""
    (wrong,) = ((shifts < MIN_SHIFT) | (shifts > MAX_SHIFT)).nonzero()
    if len(wrong):
        wanted = f"shifts from {MIN_SHIFT} to {MAX_SHIFT}"
        where = f"scales of {name_of(int(wrong[0]))}"
        raise FormatError(mismatch(where, wanted, int(shifts[wrong[0]])), code="scale")


def scale_value(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the scales that the decoder uses for codes, float64: MANTISSAS[E mod 32] * 2^(E // 32 - 15)."""
    table = np.array(MANTISSAS, np.float64)
    return np.asarray(np.ldexp(table[codes & (STEPS - 1)], (codes >> 5) - 15), np.float64)


def nearest_code(value: float) -> int:
    """Return the code whose scale is nearest to a positive value, in the logarithm."""
    return min(MAX_CODE, max(MIN_CODE, round(STEPS * math.log2(value))))


def fitting_exponent(peaks: npt.NDArray[np.float64], codes: npt.NDArray[np.int64]) -> int:
    """Return the smallest exponent at which all scaled values of a factor fit into int16.

    Args:
        peaks: float64 (vectors,): the largest |y| of each vector of the factor.
        codes: int64 (vectors,): the scale code of each vector.
    """
    top = float((peaks * scale_value(codes)).max(initial=0.0))
    if top == 0.0:
        return 0
    exponent = math.frexp(top)[1] - 15
    if round(math.ldexp(top, -exponent)) > 32767:
        exponent += 1
    return max(MIN_EXPONENT, exponent)


def scale_to_int16(values: Array, mantissas: npt.NDArray[np.int64], shifts: npt.NDArray[np.int64], xp: Arrays) -> Array:
    """Compute (y * M + 2^(s - 1)) >> s, clipped to 16 bits, piece by piece.

    Args:
        values: y, (vectors, length).
        mantissas: M, (vectors, 1) or (1, 1).
        shifts: s, in the shape of M.
        xp: The arrays that the values are made of.

    Returns:
        int16 (vectors, length).
    """
    pieces = []
    step = max(1, _SCALE_ELEMENTS // len(values))
    for start in range(0, values.shape[1], step):
        scaled = xp.cast(values[:, start : start + step], "int64")
        scaled = scaled * xp.asarray(mantissas)
        scaled += xp.asarray(np.int64(1) << (shifts - 1))
        scaled >>= xp.asarray(shifts)
        pieces.append(xp.cast(xp.clip(scaled, -32768, 32767), "int16"))
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, 1)
