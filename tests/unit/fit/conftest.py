"""Canonical forms with a decaying spectrum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nola_codec.basis import NAMES
from nola_codec.fit.canonical_form import CanonicalForm, FormSettings, make_canonical_form
from nola_codec.model.adapter import LoraModule
from nola_codec.prng import PHILOX


def _modules(shapes: list[tuple[int, int, int]], decay: float) -> list[LoraModule]:
    rng = np.random.default_rng(0)
    modules = []
    for number, (out, columns, rank) in enumerate(shapes):
        u, v = rng.standard_normal((out, rank)), rng.standard_normal((rank, columns))
        b = (np.linalg.qr(u)[0] * decay ** np.arange(rank)).astype(np.float32)
        a = np.linalg.qr(v.T)[0].T.astype(np.float32)
        modules.append(LoraModule(f"layers.{number}.x", a, b, (rank, columns), (out, rank), scaling=2.0 - number % 2))
    return modules


@pytest.fixture
def make_form() -> Callable[..., CanonicalForm]:
    """`make_form(shapes, decay, **options of FormSettings)`; the shapes are (out, in, rank)."""

    def make(shapes: list[tuple[int, int, int]], decay: float = 0.5, **options: int) -> CanonicalForm:
        modules = _modules(shapes, decay)
        settings = FormSettings(NAMES["hadamard"], PHILOX, 7, **options)
        return make_canonical_form(modules, list(range(len(modules))), settings)

    return make
