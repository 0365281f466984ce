"""Express a pair of factors in the gauge of an earlier version, so that the two differ as little as they can.

lora_B G and G^-1 lora_A make the same delta for any invertible G (r, r). A decoded reference has factors in some gauge,
and the one of a new version is free; the best G makes both factors nearest to those of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nola_codec.array_types import Float64Array
from nola_codec.fit.components import singular_components

_WORST_CONDITION = 1e4
"""Condition number of a change of gauge beyond which it is not used: it would lose digits."""


def align_factors(
    lora_B: Float64Array, lora_A: Float64Array, reference_B: Float64Array, reference_A: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return (lora_B G, G^-1 lora_A) with the G, of a few candidates, that leaves the least difference in the delta.

    Args:
        lora_B: float64 (out, r).
        lora_A: float64 (r, in).
        reference_B: float64 (out, r): the factor of the reference.
        reference_A: float64 (r, in): likewise.
    """
    candidates = list(_candidates(lora_B, lora_A, reference_B, reference_A))
    costs = [_difference(B, A, reference_B, reference_A) for B, A in candidates]
    return candidates[int(np.argmin(costs))]


def _difference(B: Float64Array, A: Float64Array, reference_B: Float64Array, reference_A: Float64Array) -> float:
    """Return the energy that the differences of all columns and rows have in the delta, to the first order."""
    columns = ((B - reference_B) ** 2).sum(axis=0) * (A**2).sum(axis=1)
    rows = ((A - reference_A) ** 2).sum(axis=1) * (B**2).sum(axis=0)
    return float(columns.sum() + rows.sum())


def _candidates(
    lora_B: Float64Array, lora_A: Float64Array, reference_B: Float64Array, reference_A: Float64Array
) -> Iterator[tuple[Float64Array, Float64Array]]:
    """Yield the factors as they are, turned to the reference, and turned and stretched to it."""
    yield lora_B, lora_A
    B, A = balanced_factors(lora_B, lora_A)
    used = np.flatnonzero((reference_B**2).sum(axis=0) * (reference_A**2).sum(axis=1) > 0)
    turn = _turn(B, A, reference_B[:, used], reference_A[used], used)
    yield B @ turn, turn.T @ A
    if len(used) == B.shape[1]:
        other_B, other_A = balanced_factors(reference_B, reference_A)
        stretch = np.linalg.lstsq(other_B, reference_B, rcond=None)[0]
        if np.linalg.cond(stretch) < _WORST_CONDITION:
            change = _turn(B, A, other_B, other_A, np.arange(len(used))) @ stretch
            yield B @ change, np.asarray(np.linalg.solve(change, A), np.float64)


def balanced_factors(lora_B: Float64Array, lora_A: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return U S^1/2 (out, r) and S^1/2 V^T (r, in) of lora_B @ lora_A = U S V^T, float64."""
    parts = singular_components(lora_B.astype(np.float32), lora_A.astype(np.float32))
    root = np.sqrt(parts.s)
    return np.asarray(parts.u.T * root, np.float64), np.asarray(parts.v * root[:, None], np.float64)


def _turn(
    B: Float64Array, A: Float64Array, wanted_B: Float64Array, wanted_A: Float64Array, at: np.ndarray
) -> Float64Array:
    """Return the rotation that brings balanced factors nearest to the wanted ones, which stand at some positions.

    What is left of the factors goes to the other positions, its strongest components first.
    """
    rank = B.shape[1]
    left, _, right = np.linalg.svd(B.T @ wanted_B + A @ wanted_A.T, full_matrices=False)
    turn = np.zeros((rank, rank))
    turn[:, at] = left @ right
    free = np.setdiff1d(np.arange(rank), at)
    if len(free):
        rest = np.linalg.svd(np.eye(rank) - turn[:, at] @ turn[:, at].T)[0][:, : len(free)]
        inside = np.linalg.eigh(rest.T @ (B.T @ B + A @ A.T) @ rest)[1][:, ::-1]
        turn[:, free] = rest @ inside
    return turn
