"""VeRA (arXiv 2310.11454), as PEFT computes it (`tuners/vera/layer.py`, `tuners/vera/model.py`).

    delta[p, q] = sum_k (b[p] B[p, k]) (d[k] A[k, q])        k below r

``vera_lambda_b`` b (out,), ``vera_lambda_d`` d (r,), ``vera_A`` A (r, in), ``vera_B`` B (out, r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.diagonals import DiagonalMethod, MatrixPair, Shape
from nola_codec.adapters.dialects.peft_draws import DrawPlace, DrawRule
from nola_codec.array_types import Float64Array


class VeraMethod(DiagonalMethod):
    """The rules of VeRA."""

    peft_type = "VERA"
    title = "VeRA"
    config_class = "VeraConfig"
    diagonals = ("vera_lambda_b", "vera_lambda_d")
    projections = ("vera_A", "vera_B")
    dimensions = 1

    def scale(self, config: Mapping[str, Any], where: str) -> float:
        """Return 1, since VeRA has no scaling."""
        return 1.0

    def draw_rule(self, config: Mapping[str, Any], a_shape: Shape, b_shape: Shape) -> DrawRule:
        """Return the rule: Kaiming's uniform by fan in, with a gain of sqrt(2), in float32."""
        a, b = (
            DrawPlace(start, 0, math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1])))
            for start, shape in ((0, a_shape), (math.prod(a_shape), b_shape))
        )
        return DrawRule((a, b), ("F32",), is_divided=False)

    def rank_of(self, first: Shape, second: Shape) -> tuple[int, int]:
        """Return the length of d."""
        return second[0], 1

    def misfit(self, first: Shape, second: Shape, rank: int) -> str | None:
        """Return None, since any b fits any d."""
        return None

    def are_projections(self, a: Shape, b: Shape) -> bool:
        """Return True for (r, in) and (out, r)."""
        return len(a) == len(b) == 2 and all(a) and all(b) and a[0] == b[-1]

    def lie_between(self, first: Shape, second: Shape, a: Shape, b: Shape) -> bool:
        """Return True if A has the rank of d, and B has enough rows for b."""
        return a[0] == second[0] and b[0] >= first[0]

    def widest(self, lengths: tuple[int, int], a: Shape, b: Shape) -> tuple[int, int]:
        """Return the length of b, and the number of columns of A."""
        return lengths[0], a[1]

    def fits_layer(self, shape: tuple[int, int], widest: tuple[int, int]) -> bool:
        """Return True if the layer has as many outputs as b has elements, and no more inputs than A has columns."""
        return shape[0] == widest[0] and shape[1] <= widest[1]

    def is_turned(self, shape: tuple[int, int]) -> bool:
        """Return False, since VeRA never transposes."""
        return False

    def factors(self, diagonals: MatrixPair, matrices: MatrixPair, shape: tuple[int, int]) -> MatrixPair:
        """Return b B (out, r) and d A (r, in)."""
        (first, second), (lora_A, lora_B), (rows, columns) = diagonals, matrices, shape
        return first[:, None] * lora_B[:rows], second[:, None] * lora_A[:, :columns]

    def delta_energy(self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None) -> float:
        """Estimate the squared norm as in `DiagonalMethod`.

        Kaiming's uniform gives the elements of A a variance of 2 / in, and those of B a variance of 2 / r.
        """
        rank = len(second)
        if matrices is None:
            rows, squares = np.full(rank, 2.0), np.full((len(first), rank), 2.0 / rank)
        else:
            rows = np.square(matrices[0]).sum(axis=1)
            squares = np.square(matrices[1][: len(first)])
        return float(np.square(first) @ squares @ (np.square(second) * rows))


VERA = VeraMethod()
