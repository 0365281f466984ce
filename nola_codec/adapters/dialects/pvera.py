"""PVeRA, the probabilistic VeRA, as PEFT computes it (`tuners/pvera/layer.py`, `tuners/pvera/model.py`).

    delta[p, q] = sum_k (b[p] B[p, k]) (d[k] A[k, q])        k below r

``pvera_lambda_b`` b (out,), ``pvera_lambda_d`` d (2 r,), ``pvera_A`` A (2 r, in), ``pvera_B`` B (out, r). The first r
rows make the mean, which is the delta that PEFT merges. The others make the logarithm of a variance, which acts in
training and, with ``sample_at_inference``, in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.diagonals import MatrixPair, Shape
from nola_codec.adapters.dialects.vera import VeraMethod
from nola_codec.array_types import Float64Array


class PveraMethod(VeraMethod):
    """The rules of PVeRA, where they are not those of VeRA."""

    peft_type = "PVERA"
    title = "PVeRA"
    config_class = "PveraConfig"
    diagonals = ("pvera_lambda_b", "pvera_lambda_d")
    projections = ("pvera_A", "pvera_B")

    def note(self, config: Mapping[str, Any]) -> str:
        """Return what a merge does with an adapter that is sampled."""
        if not config.get("sample_at_inference"):
            return ""
        return "PVeRA samples its deltas at inference (sample_at_inference); errors and merges are those of their mean"

    def rank_of(self, first: Shape, second: Shape) -> tuple[int, int]:
        """Return half the length of d."""
        return second[0] // 2, 1

    def misfit(self, first: Shape, second: Shape, rank: int) -> str | None:
        """Return a message for a d of odd length."""
        return None if second[0] == 2 * rank else f"{self.diagonals[1]} has {second[0]} elements, and not {2 * rank}"

    def are_projections(self, a: Shape, b: Shape) -> bool:
        """Return True for (2 r, in) and (out, r)."""
        return len(a) == len(b) == 2 and all(a) and all(b) and a[0] == 2 * b[1]

    def factors(self, diagonals: MatrixPair, matrices: MatrixPair, shape: tuple[int, int]) -> MatrixPair:
        """Return b B (out, r) and d A (r, in), of the first r rows."""
        (first, second), (lora_A, lora_B) = diagonals, matrices
        rank = len(second) // 2
        return super().factors((first, second[:rank]), (lora_A[:rank], lora_B), shape)

    def delta_energy(self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None) -> float:
        """Estimate the squared norm of the mean, as in `DiagonalMethod`."""
        rank = len(second) // 2
        half = None if matrices is None else (matrices[0][:rank], matrices[1])
        return super().delta_energy(first, second[:rank], half)

    def gains(
        self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None, scale: float
    ) -> tuple[float, float]:
        """Return the gains as in `DiagonalMethod`, where d counts by its first half."""
        own = second[: len(second) // 2]
        gain_b, gain_d = super().gains(first, second, matrices, scale)
        whole, half = (float(np.linalg.norm(np.where(x.any(), x, 1.0))) for x in (second, own))
        return gain_b, gain_d * whole / half


PVERA = PveraMethod()
