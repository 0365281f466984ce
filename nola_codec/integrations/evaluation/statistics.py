"""Ratios of sums over rows, and how far off they may be.

A mean loss is a ratio: the summed loss of all rows over the number of their tokens. So are the difference of two losses
on the same rows, and the share of a gain that is kept. One estimate of the error serves all three: rows are drawn
independently, and tokens of one row are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.float64]]
"""A number for each row, float64 (rows,)."""
CONFIDENCE = 0.95
"""The share of intervals that hold the true value."""


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a sample of rows.

    Attributes:
        value: The number.
        margin: Half the width of its 95% interval, by Student's t; infinite for a single row.
    """

    value: float
    margin: float

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and the upper end of the 95% interval."""
        return self.value - self.margin, self.value + self.margin

    @property
    def is_positive(self) -> bool:
        """True if the whole interval is above zero."""
        return self.value - self.margin > 0


def estimate_ratio(numerators: Rows, denominators: Rows) -> Estimate:
    """Return sum(numerators) / sum(denominators), with the linearized error of a ratio of two means.

    Both are paired: entry i belongs to row i. NaN if the denominators sum to zero.
    """
    rows, total = len(numerators), float(denominators.sum())
    if total == 0:
        return Estimate(math.nan, math.nan)
    value = float(numerators.sum()) / total
    if rows < 2:
        return Estimate(value, math.inf)
    rest = numerators - value * denominators
    error = math.sqrt(rows / (rows - 1) * float(np.square(rest).sum())) / abs(total)
    return Estimate(value, error * student_quantile((1 + CONFIDENCE) / 2, rows - 1))


def student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution.

    One and two degrees of freedom have closed forms. For more, it is the Cornish-Fisher expansion around the normal
    quantile, which is 0.1% off for three degrees of freedom and nearer for more.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        x = 2 * probability - 1
        return x * math.sqrt(2 / (1 - x * x))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
