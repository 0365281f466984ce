"""Every test of the arithmetic of merges runs on every path: NumPy, and each variant of the compiled kernels."""

from __future__ import annotations

import pytest
from kernel_paths import PATHS


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The value of NOLA_KERNELS."""
    monkeypatch.setenv("NOLA_KERNELS", request.param)
    return str(request.param)
