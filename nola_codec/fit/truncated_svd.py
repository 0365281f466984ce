"""Find the strongest singular components of a dense matrix.

A randomized range finder makes them if that is cheaper (Halko, Martinsson, Tropp: Finding structure with randomness,
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
"""Length of the shorter side up to which the whole decomposition is made."""


def truncated_svd(matrix: Matrix, rank: int, *, seed: int, stream: int) -> Components:
    """Return the `rank` strongest components of a matrix (out, in), or fewer if it has fewer.

    Args:
        matrix: float32 or float64 (out, in).
        rank: The number of components, at least 1.
        seed: The seed of the test matrix of random signs.
        stream: The generator stream of the test matrix.

    Returns:
        The components. As in `singular_components`, the entry of largest magnitude of each u is positive.
    """
    rank = min(rank, *matrix.shape)
    width = rank + _OVERSAMPLING
    if min(matrix.shape) <= max(_EXACT, 2 * width):
        left, s, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    else:
        count = matrix.shape[1] * width
        test = signs(PHILOX, seed=seed, stream=stream, purpose=RADEMACHER, start=0, count=count, xp=NUMPY)
        work = matrix.astype(np.float32, copy=False)
        basis = np.linalg.qr(work @ test.astype(np.float32).reshape(-1, width))[0]
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
