"""FourierFT (arXiv 2405.03003), as PEFT computes it (`tuners/fourierft/layer.py`).

    delta = scaling Re(ifft2(S)),   S (out, in) has the numbers of ``fourierft_spectrum`` at places that a seed draws

With the numbers c_k at the places (i_k, j_k) this is scaling / (out in) times

    sum_k c_k (cos(2 pi i_k p / out) cos(2 pi j_k q / in) - sin(2 pi i_k p / out) sin(2 pi j_k q / in))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.fixed_functions import fixed_circle
from nola_codec.adapters.dialects.seeded import Integers, MatrixPair
from nola_codec.adapters.dialects.spectra import SpectrumMethod
from nola_codec.array_types import Float64Array


class FourierMethod(SpectrumMethod):
    """The rules of FourierFT."""

    peft_type = "FOURIERFT"
    title = "FourierFT"
    config_class = "FourierFTConfig"
    ending = ".fourierft_spectrum"
    count = 1000
    scaling = 150.0

    def make_factors(
        self,
        spectrum: Float64Array,
        places: tuple[Integers, Integers],
        shape: tuple[int, int],
        config: Mapping[str, Any],
    ) -> MatrixPair:
        """Return the factors as in `SpectrumMethod`, two components for each row of S that has a number."""
        (rows, columns), (out, inputs) = places, shape
        down, across = np.arange(out, dtype=np.int64), np.arange(inputs, dtype=np.int64)
        (cos_out, sin_out), (cos_in, sin_in) = fixed_circle(out), fixed_circle(inputs)
        used, number = np.unique(rows, return_inverse=True)
        left, right = np.zeros((out, 2 * len(used))), np.zeros((2 * len(used), inputs))
        for position, row in enumerate(used.tolist()):
            angle = row * down % out
            left[:, 2 * position], left[:, 2 * position + 1] = cos_out[angle], -sin_out[angle]
        for value, position, column in zip(*(x.reshape(-1).tolist() for x in (spectrum, number, columns)), strict=True):
            angle = column * across % inputs
            right[2 * position] += value * cos_in[angle]
            right[2 * position + 1] += value * sin_in[angle]
        return left, right / float(out * inputs)


FOURIERFT = FourierMethod()
