"""WaveFT (arXiv 2505.12532), as PEFT computes it (`tuners/waveft/layer.py`, `tuners/waveft/waverec2d.py`).

    delta = scaling idwt2(S),   S has the numbers of ``waveft_spectrum`` at places that a seed draws, in the middle of a
                                matrix (H, W) that is larger than the layer by the reduction of the wavelet and is even

The quarters of S are the coefficients of one level, and a number c at row y and column x adds, with i = y mod H / 2 and
j = x mod W / 2 and the taps g (low) and h (high) of the wavelet's reconstruction,

    c f[p + cut - 2 i] e[q + cut' - 2 j]       f = h in the right quarters, else g;  e = h in the lower quarters, else g

Without ``use_idwt`` the delta is S itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.seeded import Integers, MatrixPair, require_flag
from nola_codec.adapters.dialects.spectra import SpectrumMethod
from nola_codec.adapters.dialects.wavelets import WAVELETS
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch


class WaveMethod(SpectrumMethod):
    """The rules of WaveFT."""

    peft_type = "WAVEFT"
    title = "WaveFT"
    config_class = "WaveFTConfig"
    ending = ".waveft_spectrum"
    count = 2592
    scaling = 25.0
    open_count = "proportional_parameters"

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the wavelet too; errors as in `SeededMethod`."""
        super().check_config(config, where)
        require_flag(config, "use_idwt", True, where)
        require_flag(config, "proportional_parameters", False, where)
        family = config.get("wavelet_family", "db1")
        if require_flag(config, "use_idwt", True, where) and not (isinstance(family, str) and family in WAVELETS):
            message = mismatch("wavelet_family", f"one that PEFT can compute ({', '.join(WAVELETS)})", family)
            raise AdapterError(message, code="bad-config", where=where)

    def make_factors(
        self,
        spectrum: Float64Array,
        places: tuple[Integers, Integers],
        shape: tuple[int, int],
        config: Mapping[str, Any],
    ) -> MatrixPair:
        """Return the factors as in `SpectrumMethod`, a component for each row filter that is used."""
        rows, columns = places
        if not config.get("use_idwt", True):
            used, number = np.unique(rows, return_inverse=True)
            left, right = np.zeros((shape[0], len(used))), np.zeros((len(used), shape[1]))
            left[used, np.arange(len(used))] = 1.0
            right[number.reshape(-1), columns] = spectrum
            return left, right
        low = np.array(WAVELETS[config.get("wavelet_family", "db1")])
        filters = (low, low[::-1] * (-1.0) ** np.arange(len(low)))
        (rows, half_rows, cut_rows), (columns, half_columns, cut_columns) = (
            _place(numbers, size, len(low)) for numbers, size in zip(places, shape, strict=True)
        )
        right_quarter, lower_quarter = columns >= half_columns, rows >= half_rows
        used, number = np.unique(np.stack([right_quarter, rows % half_rows]), axis=1, return_inverse=True)
        left, right = np.zeros((shape[0], used.shape[1])), np.zeros((used.shape[1], shape[1]))
        for position, (is_high, row) in enumerate(used.T.tolist()):
            _add_taps(left[:, position], filters[is_high], 2 * row - cut_rows, 1.0)
        places_of = (number.reshape(-1), columns % half_columns, lower_quarter)
        lines = zip(spectrum.tolist(), *(each.tolist() for each in places_of), strict=True)
        for value, position, column, is_lower in lines:
            _add_taps(right[position], filters[is_lower], 2 * column - cut_columns, value)
        return left, right


def _place(numbers: Integers, size: int, taps: int) -> tuple[Integers, int, int]:
    """Return the places in the padded matrix, half its size, and how much of the reconstruction is cut off before.

    The reduction of a wavelet of n taps is n - 2, in each direction.
    """
    padded = size + taps - 2
    padded += padded % 2
    cut = (2 * taps - 3) // 2
    made = padded - 2 + taps - 2 * cut
    return numbers + (padded - size) // 2, padded // 2, cut + (made - size) // 2


def _add_taps(line: Float64Array, taps: Float64Array, start: int, value: float) -> None:
    """Add value times the taps to a line, from a place that may lie outside of it."""
    first, last = max(0, start), min(len(line), start + len(taps))
    if first < last:
        line[first:last] += value * taps[first - start : last - start]


WAVEFT = WaveMethod()
