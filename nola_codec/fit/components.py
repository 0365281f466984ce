"""Find the singular components of B A, and norms of such products, without forming a product.

B = Q_B R_B,  A^T = Q_A R_A,  R_B R_A^T = U' S V'^T   gives   B A = (Q_B U') S (Q_A V')^T
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array

_PIECE = 1 << 20


@dataclass(frozen=True)
class Components:
    """Singular components, strongest first.

    Attributes:
        u: float32 (r, out): orthonormal rows, which are columns on the side of lora_B.
        v: float32 (r, in): orthonormal rows.
        s: float64 (r,): the singular values of lora_B @ lora_A, without the scaling.
    """

    u: Float32Array
    v: Float32Array
    s: npt.NDArray[np.float64]


def singular_components(lora_B: npt.NDArray[np.float32], lora_A: npt.NDArray[np.float32]) -> Components:
    """Return the singular components of lora_B (out, r) @ lora_A (r, in).

    If r exceeds out or in, only min(r, out, in) components exist; the rest are zero vectors with s = 0.
    The entry of largest magnitude of each u is positive, so that equal input gives equal output.
    """
    rank = lora_A.shape[0]
    q_b, r_b = np.linalg.qr(lora_B.astype(np.float64))
    q_a, r_a = np.linalg.qr(lora_A.T.astype(np.float64))
    left, s, right = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u = (q_b @ left).T
    v = (q_a @ right.T).T
    sign = np.sign(u[np.arange(len(u)), np.abs(u).argmax(axis=1)])
    sign[sign == 0] = 1
    missing = rank - len(s)
    if missing:
        u = np.concatenate((u, np.zeros((missing, u.shape[1]))))
        v = np.concatenate((v, np.zeros((missing, v.shape[1]))))
        s, sign = np.concatenate((s, np.zeros(missing))), np.concatenate((sign, np.ones(missing)))
    return Components((u * sign[:, None]).astype(np.float32), (v * sign[:, None]).astype(np.float32), s)


def unit_vectors(sides: Sequence[Float32Array]) -> tuple[tuple[Float32Array, ...], npt.NDArray[np.float64]]:
    """Return the vectors of the units: the components of a pair, or a tensor as one vector.

    Args:
        sides: float32 (lora_B (out, r), lora_A (r, in)), or (values,) of any shape.

    Returns:
        For each side, float32 (units, length) with rows of norm 1 or 0; then the singular values, float64 (units,).
    """
    if len(sides) == 2:
        parts = singular_components(*sides)
        return (parts.u, parts.v), parts.s
    norm = float(np.sqrt(squared_norm(sides[0])))
    row = sides[0].reshape(1, -1)
    return ((row / np.float32(norm) if norm > 0 else np.zeros_like(row)),), np.array([norm])


def sides_energy(sides: Sequence[npt.NDArray[np.floating]]) -> float:
    """Return ||B A||_F^2 of a pair (lora_B, lora_A), or ||x||^2 of a tensor (values,), in float64."""
    return delta_energy(*sides) if len(sides) == 2 else squared_norm(sides[0])


def sides_error(sides: Sequence[npt.NDArray[np.floating]], other: Sequence[npt.NDArray[np.floating]]) -> float:
    """Return ||B A - B' A'||_F^2 of two pairs, or ||x - x'||^2 of two tensors, in float64."""
    return squared_error(*sides, *other) if len(sides) == 2 else vector_error(sides[0], other[0])


def delta_energy(lora_B: npt.NDArray[np.floating], lora_A: npt.NDArray[np.floating]) -> float:
    """Return ||B A||_F^2 for lora_B (out, r) and lora_A (r, in), by two Gram matrices in float64."""
    return delta_inner([(lora_B, lora_A)], [(lora_B, lora_A)])


def delta_inner(
    left: Sequence[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]],
    right: Sequence[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]],
) -> float:
    """Return the inner product of two sums of products, sum_ij tr(A_i A_j^T B_j^T B_i), in float64.

    `left` and `right` hold the pairs (B, A) of each sum.
    """
    total = 0.0
    for b, a in left:
        for d, c in right:
            gram_b = b.T.astype(np.float64) @ d.astype(np.float64)
            gram_a = a.astype(np.float64) @ c.T.astype(np.float64)
            total += float((gram_b * gram_a).sum())
    return total


def vector_error(values: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Return ||x - x'||^2 of two tensors of one shape, in float64, piece by piece."""
    left, right = values.reshape(-1), other.reshape(-1)
    total = 0.0
    for start in range(0, len(left), _PIECE):
        gap = left[start : start + _PIECE].astype(np.float64) - right[start : start + _PIECE]
        total += float(gap @ gap)
    return total


def squared_norm(values: npt.NDArray[np.floating]) -> float:
    """Return ||x||^2 in float64, piece by piece."""
    flat = values.reshape(-1)
    pieces = (flat[start : start + _PIECE].astype(np.float64) for start in range(0, len(flat), _PIECE))
    return sum(float(piece @ piece) for piece in pieces)


def squared_error(
    lora_B: npt.NDArray[np.floating],
    lora_A: npt.NDArray[np.floating],
    other_B: npt.NDArray[np.floating],
    other_A: npt.NDArray[np.floating],
) -> float:
    """Return ||B A - B' A'||_F^2 by Gram matrices of the stacked factors [B, -B'] and [A; A'], in float64.

    Cancellation leaves an absolute error of about 1e-15 ||B A||^2, which is far under any coding error.
    """
    b = np.concatenate((lora_B, -other_B), axis=1).astype(np.float64)
    a = np.concatenate((lora_A, other_A), axis=0).astype(np.float64)
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))
