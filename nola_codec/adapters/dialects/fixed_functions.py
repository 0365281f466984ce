"""exp, cos and sin of float64 with the same bits on every machine.

A library's functions differ in the last bit from machine to machine. These use only sums, products, quotients and
powers of two, one IEEE rounding each, in a fixed order. Their error is a few units in the last place. The specification
describes them ("Fixed functions").
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_HALF_PI = 1.5707963267948966
_EXP_TERMS, _CIRCLE_TERMS = 14, 10
_SMALLEST_EXPONENT = -745.0


def fixed_exp(x: Float64Array) -> Float64Array:
    """Return exp(x) for x from minus infinity to 700, float64 of the shape of x; 0 for x below -745.

    With n = rint(x log2(e)) and r = (x - n ln2_high) - n ln2_low, it is 2^n times the sum of r^k / k! below k = 14, by
    Horner's rule.
    """
    tiny = ~(x >= _SMALLEST_EXPONENT)
    x = np.where(tiny, 0.0, x)
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = _horner(r, [1.0 / math.factorial(k) for k in range(_EXP_TERMS)])
    return np.where(tiny, 0.0, np.ldexp(total, n.astype(np.int32)))


def fixed_circle(steps: int) -> tuple[Float64Array, Float64Array]:
    """Return cos(2 pi m / steps) and sin(2 pi m / steps) for m from 0 to steps - 1, float64 (steps,) each.

    q is the integer nearest to 4 m / steps, ties up. x = fl(fl((4 m - q steps) pi / 2) / steps) lies between -pi / 4
    and pi / 4. The sums of ten terms of both series, by Horner's rule in fl(x x), are turned by q quarters.
    """
    m = np.arange(steps, dtype=np.int64)
    quarter = (8 * m + steps) // (2 * steps)
    x = (4 * m - quarter * steps).astype(np.float64) * _HALF_PI / float(steps)
    square = x * x
    cosine = _horner(square, [(-1) ** k / math.factorial(2 * k) for k in range(_CIRCLE_TERMS)])
    sine = x * _horner(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(_CIRCLE_TERMS)])
    turned = quarter % 4
    return _turn(turned, cosine, sine), _turn(turned, sine, -cosine)


def _turn(quarter: npt.NDArray[np.int64], first: Float64Array, second: Float64Array) -> Float64Array:
    """Return first, -second, -first or second, by the number of quarters."""
    odd = np.where(quarter % 2 == 1, second, first)
    return np.where((quarter == 1) | (quarter == 2), -odd, odd)


def _horner(x: Float64Array, coefficients: list[float]) -> Float64Array:
    total = np.full(x.shape, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total
