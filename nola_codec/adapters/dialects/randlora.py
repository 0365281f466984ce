"""RandLoRA (arXiv 2502.00987), as PEFT computes it (`tuners/randlora/layer.py`, `tuners/randlora/model.py`).

    M[p, q] = sum_k B[p, k // r, k mod r] ((lambda[i, n] A[i, 0, q]) gamma[n, q]),   i = k // N, n = k mod N
    delta = M * alpha / r, transposed where the layer has more inputs than outputs; N bases, k below r N

(Both factors are flattened over rank and bases, in opposite orders.) With min and max the smaller and the larger of in
and out: ``randlora_lambda`` (r, N), ``randlora_gamma`` (N, min), ``randlora_A`` A (r, 1, min), ``randlora_B`` B
(max, N, r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.diagonals import DiagonalMethod, MatrixPair, Shape
from nola_codec.adapters.dialects.peft_config import positive_integer, real_number
from nola_codec.adapters.dialects.peft_draws import DrawPlace, DrawRule, find_sparsity
from nola_codec.adapters.sources import CONFIG_NAME
from nola_codec.array_types import Float64Array


class RandLoraMethod(DiagonalMethod):
    """The rules of RandLoRA."""

    peft_type = "RANDLORA"
    title = "RandLoRA"
    config_class = "RandLoraConfig"
    diagonals = ("randlora_lambda", "randlora_gamma")
    projections = ("randlora_A", "randlora_B")
    dimensions = 2

    def scale(self, config: Mapping[str, Any], where: str) -> float:
        """Return alpha / r, with PEFT's own division. Raises AdapterError ``bad-config``."""
        where = f"{where}: {CONFIG_NAME}"
        alpha = real_number(config.get("randlora_alpha", 640), "randlora_alpha", where)
        return float(alpha / positive_integer(config.get("r"), "r", where))

    def draw_rule(self, config: Mapping[str, Any], a_shape: Shape, b_shape: Shape) -> DrawRule:
        """Return the rule: Kaiming's uniform with a = sqrt(5) in 16 bits, B base by base; or -1, 0, 1 from float32."""
        gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))  # nn.init.calculate_gain("leaky_relu", sqrt(5))
        a, b = (
            DrawPlace(start, axis, math.sqrt(3.0) * (gain / math.sqrt(shape[-1])))
            for start, axis, shape in ((0, 0, a_shape), (math.prod(a_shape), 1, b_shape))
        )
        return DrawRule((a, b), ("BF16", "F16"), is_divided=True, sparsity=find_sparsity(config, a_shape[-1]))

    def rank_of(self, first: Shape, second: Shape) -> tuple[int, int]:
        """Return the number of rows of lambda."""
        return first[0], 0

    def misfit(self, first: Shape, second: Shape, rank: int) -> str | None:
        """Return None if lambda is (r, N) and gamma is (N, min) with N = min / r rounded up, else a message."""
        if first[1] == second[0] == -(-second[1] // rank):
            return None
        return f"{list(first)} and {list(second)} are not (r, N) and (N, min) with N = min / r rounded up"

    def are_projections(self, a: Shape, b: Shape) -> bool:
        """Return True for (r, 1, min) and (max, N, r)."""
        return len(a) == len(b) == 3 and all(a) and all(b) and a[0] == b[-1] and a[1] == 1

    def lie_between(self, first: Shape, second: Shape, a: Shape, b: Shape) -> bool:
        """Return True if A has lambda's rank and gamma's columns, and B enough bases."""
        return a[0] == first[0] and first[1] == second[0] <= b[1] and a[2] >= second[1]

    def widest(self, lengths: tuple[int, int], a: Shape, b: Shape) -> tuple[int, int]:
        """Return the number of rows of B, and the number of columns of gamma."""
        return b[0], lengths[1]

    def fits_layer(self, shape: tuple[int, int], widest: tuple[int, int]) -> bool:
        """Return True if the smaller size of the layer is that of gamma, and the larger one is not above that of B."""
        return min(shape) == widest[1] and max(shape) <= widest[0]

    def is_turned(self, shape: tuple[int, int]) -> bool:
        """Return True if the layer has more inputs than outputs."""
        return shape[1] > shape[0]

    def factors(self, diagonals: MatrixPair, matrices: MatrixPair, shape: tuple[int, int]) -> MatrixPair:
        """Return B (max, r N) and lambda A gamma (r N, min)."""
        (first, second), (lora_A, lora_B), (rows, columns) = diagonals, matrices, shape
        bases = first.shape[1]
        left = lora_B[:rows, :bases].reshape(rows, -1)
        right = (first[:, :, None] * lora_A[:, :, :columns]) * second[None]
        return left, right.reshape(-1, columns)

    def delta_energy(self, first: Float64Array, second: Float64Array, matrices: MatrixPair | None) -> float:
        """Estimate the squared norm as in `DiagonalMethod`.

        PEFT draws elements of variance 1, and B has about as many rows as gamma has columns.
        """
        columns = second.shape[1]
        if matrices is None:
            squares, column = np.ones((len(first), columns)), float(columns)
        else:
            squares = np.square(matrices[0][:, 0, :columns])
            column = float(np.square(matrices[1]).mean() * matrices[1].shape[0])
        return float(np.einsum("in,iq,nq->", np.square(first), squares, np.square(second), optimize=True)) * column


RANDLORA = RandLoraMethod()
