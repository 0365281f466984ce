"""Compiled levels and their sums are those of NumPy, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_paths import COMPILED

from nola_codec.fit.books import level_statistics
from nola_codec.fit.coders import DependentCoder, ScalarCoder, coders
from nola_codec.kernels.levels import dependent_sums, scalar_levels, scalar_sums
from nola_codec.kernels.loading import load

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")


def gaussian(vectors: int, count: int) -> np.ndarray:
    values = np.random.default_rng(count).standard_normal((vectors, count)).astype(np.float32)
    values.reshape(-1)[:8] = [0.0, -0.0, 1e-40, -1e-40, 60.0, -60.0, 0.75, -0.75]
    return values


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize(("vectors", "count"), [(2, 5), (7, 576), (3, 1001)])
def test_levels_and_their_sums(variant: str, vectors: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = gaussian(vectors, count)
    for coder in coders():
        if isinstance(coder, ScalarCoder):
            thresholds = coder.quantizer.thresholds.astype(np.float32)
            values.reshape(-1)[-1] = thresholds[-1]  # a magnitude that just reaches a threshold
            levels = None
        elif isinstance(coder, DependentCoder):
            levels = np.clip(np.rint(values / (2 * coder.step)), -coder.most, coder.most).astype(np.int8)
        else:
            continue
        found = []
        for path in ("off", variant):
            monkeypatch.setenv("NOLA_KERNELS", path)
            own = coder.levels(values) if isinstance(coder, ScalarCoder) else levels
            assert own is not None
            found.append((own, *level_statistics(coder, own, values)))
        for expected, made in zip(*found, strict=True):
            assert made.dtype == expected.dtype
            assert np.array_equal(made, expected), coder


def test_wrong_arguments_are_refused() -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    values, levels = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.int8)
    refused = pytest.raises(ValueError, match="a kernel was given")
    with refused:
        scalar_levels(lib, values.astype(np.float64), values[0])  # type: ignore[arg-type]
    with refused:
        scalar_levels(lib, values, np.zeros(128, np.float32))
    with refused:
        scalar_sums(lib, levels[:1], values, 3)
    with refused:
        scalar_sums(lib, levels, values, 129)
    with refused:
        dependent_sums(lib, 1 << 8, levels, values, 3)
    with refused:
        dependent_sums(lib, 3, levels[0], values, 3)
