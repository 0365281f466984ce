"""The paths that compute the same bits: NumPy, and each variant of the compiled kernels that runs here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nola_codec.errors import NolaError
from nola_codec.kernels.compiling import VARIANTS
from nola_codec.kernels.loading import load


def _runs(setting: str) -> bool:
    try:
        return load(setting).library is not None
    except NolaError:
        return False


COMPILED = [variant for variant in VARIANTS if _runs(variant)]
"""Values of NOLA_KERNELS that lead to a compiled path; empty where nothing is compiled."""

PATHS = ["off", *COMPILED]


@pytest.fixture(autouse=True, scope="module", params=["off", *COMPILED[-1:]])
def each_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of a folder twice, on NumPy and with the kernels, once its conftest.py imports this."""
    before = os.environ.get("NOLA_KERNELS")
    os.environ["NOLA_KERNELS"] = request.param
    yield
    if before is None:
        del os.environ["NOLA_KERNELS"]
    else:
        os.environ["NOLA_KERNELS"] = before
