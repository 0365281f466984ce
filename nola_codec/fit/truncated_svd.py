"""The strongest singular components of a dense matrix.

A randomized range finder makes them where that is cheaper (Halko, Martinsson, Tropp: Finding structure with randomness,
2011). Its test matrix comes from the package's own generator, so that equal input gives equal output.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nola_codec.arrays import NUMPY
from nola_codec.fit.components import Components
from nola_codec.prng import PHILOX, RADEMACHER, signs

Matrix = npt.NDArray[np.floating]

_OVERSAMPLING = 16
_POWER_STEPS = 2
_EXACT = 160
"""Shorter side up to which the decomposition is made whole."""


def truncated_svd(matrix: Matrix, rank: int, *, seed: int, stream: int) -> Components:
    """Return the `rank` strongest components of a matrix (out, in), or fewer if it has fewer.

    Args:
        matrix: float32 or float64.
        rank: At least 1.
        seed: Seed of the test matrix of random signs.
        stream: Generator stream of the test matrix.

    Returns:
        Components with float32 vectors; `s` is float64. Signs are fixed as in `canonical`.
    """
    rank = min(rank, *matrix.shape)
    width = rank + _OVERSAMPLING
    if min(matrix.shape) <= max(_EXACT, 2 * width):
        left, s, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    else:
        count = matrix.shape[1] * width
        test = signs(PHILOX, seed=seed, stream=stream, purpose=RADEMACHER, start=0, count=count, xp=NUMPY,
                     dtype="float32")  # fmt: skip
        work = matrix.astype(np.float32, copy=False)
        basis = np.linalg.qr(work @ test.reshape(-1, width))[0]
        for _ in range(_POWER_STEPS):
            basis = np.linalg.qr(work @ np.linalg.qr(work.T @ basis)[0])[0]
        inner, s, right = np.linalg.svd((basis.T @ work).astype(np.float64), full_matrices=False)
        left = basis.astype(np.float64) @ inner
    u, v = left[:, :rank].T, right[:rank]
    sign = np.sign(u[np.arange(len(u)), np.abs(u).argmax(axis=1)])
    sign[sign == 0] = 1
    return Components(
        (u * sign[:, None]).astype(np.float32), (v * sign[:, None]).astype(np.float32), s[:rank].astype(np.float64)
    )
