"""The change of one weight in the dialect `delta`: a low-rank pair, a vector, or both, a few rows at a time.

    delta = (int64 product of the int16 factors) * 2^(eB + eA) * scaling  +  values * 2^e

The product and both terms are exact in float64; with both there, their sum rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.decoder.factors import Factors, Vector
from nola_codec.model import LowRankKind

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DenseDelta:
    """A weight's change; factors and vector are NumPy arrays.

    Attributes:
        shape: Of the weight.
        factors: With their kind, if there are any.
        vector: If there is one.
    """

    shape: tuple[int, ...]
    factors: tuple[Factors, LowRankKind] | None = None
    vector: Vector | None = None

    @property
    def bound(self) -> float:
        """No element is larger in magnitude: infinity, since it is not known without work."""
        return float("inf")

    def rows(self, start: int, stop: int) -> Float64:
        """Rows start..stop of the first dimension, (stop - start, *shape[1:]); of a scalar, the whole as ()."""
        total: Float64 | None = None
        if self.factors is not None:
            made, kind = self.factors
            left = made.lora_B[start:stop].astype(np.float64)
            left *= 2.0 ** sum(made.exponents)
            total = (left @ made.lora_A.astype(np.float64)) * kind.scaling
            total = total.reshape(stop - start, *self.shape[1:])
        if self.vector is None:
            assert total is not None
            return total
        values = self.vector.values[start:stop] if self.shape else self.vector.values
        part: Float64 = np.asarray(np.asarray(values, np.float64) * 2.0 ** self.vector.exponents[0])
        return part if total is None else np.add(total, part, out=total)
