"""The paths that compute the same bits: NumPy, and each variant of the compiled kernels that runs here."""

from __future__ import annotations

from nola_codec.errors import NolaError
from nola_codec.kernels.loading import VARIANTS, load


def _runs(setting: str) -> bool:
    try:
        return load(setting).library is not None
    except NolaError:
        return False


COMPILED = [variant for variant in VARIANTS if _runs(variant)]
"""Values of NOLA_KERNELS that lead to a compiled path; empty where nothing is compiled."""

PATHS = ["off", *COMPILED]
