"""Round coefficients in the forward pass, and update them in full precision (NOLA, section 3.2).

    coefficient = point * 2^(E / 32)

The points are those of the codebooks of files, and E is an integer, the scale code of the coefficients of one vector.
So a file stores what was trained without loss.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.function import once_differentiable

from nola_codec.encoder.factor_form import codebook_for
from nola_codec.quant.codebooks import nearest_symbols
from nola_codec.quant.scales import scale_value

EXACT_BITS = 16
"""Bits of coefficients that are trained without rounding. A file then loses less than the noise of float32."""
TRAINED_BITS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
"""Bits that coefficients can be rounded to while they are trained."""
NO_SCALE = -1280
"""The scale code of coefficients that are all zero."""


def scale_code(coefficients: npt.NDArray[np.float32], bits: int, grain: int = 1) -> int:
    """Return the scale code E of coefficients, which are about `point * 2^(E / 32)`.

    E comes from the root mean square for 2 to 8 bits, whose points are in standard deviations (Lloyd-Max codebooks),
    from the mean magnitude for 1 bit, and from the largest magnitude for 16 bits.

    Args:
        coefficients: The coefficients (num_basis,).
        bits: The bits of a coefficient, 1 to 8 or 16.
        grain: The number that the code is a multiple of.
    """
    if not coefficients.any():
        return NO_SCALE
    magnitude = np.abs(coefficients.astype(np.float64))
    if bits == EXACT_BITS:
        return grain * math.ceil(32 / grain * math.log2(float(magnitude.max()) / (codebook_for(bits).peak - 1)))
    statistic = magnitude.mean() if bits == 1 else np.sqrt(np.square(magnitude).mean()) / 4096
    return grain * round(32 / grain * math.log2(float(statistic)))


def quantize_coefficients(
    coefficients: npt.NDArray[np.float32], bits: int, grain: int = 1
) -> tuple[npt.NDArray[np.uint16], int]:
    """Return the symbols (num_basis,) of coefficients (num_basis,) in the codebook of `bits`, and their scale code."""
    code = scale_code(coefficients, bits, grain)
    scale = float(scale_value(np.array([code], np.int64))[0])
    return nearest_symbols(coefficients.astype(np.float64) / scale, codebook_for(bits)), code


def round_coefficients(coefficients: torch.Tensor, bits: int, grain: int = 1) -> torch.Tensor:
    """Round coefficients to the points of a codebook; the gradient passes through as if they were not rounded.

    This is the straight-through estimator (Bengio et al., arXiv 1308.3432).

    Args:
        coefficients: The coefficients (num_basis,), of a float dtype.
        bits: The bits of a coefficient, 1 to 8.
        grain: As in `scale_code`.
    """
    made: torch.Tensor = _StraightThroughRounding.apply(coefficients, bits, grain)  # type: ignore[no-untyped-call]
    return made


@lru_cache(maxsize=64)
def _tables(bits: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points, in units of the statistic that gives the scale, and the borders between them."""
    points = np.array(codebook_for(bits).points, np.float32) / (1 if bits == 1 else 4096)
    borders = (points[1:] + points[:-1]) / 2
    return torch.from_numpy(points).to(device), torch.from_numpy(borders).to(device)


class _StraightThroughRounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, bits: int, grain: int) -> torch.Tensor:
        # The scale stays on the device, so that nothing waits for its value.
        statistic = coefficients.abs().mean() if bits == 1 else coefficients.square().mean().sqrt()
        code = grain * torch.round(32 / grain * torch.log2(statistic.clamp_min(1e-30)))
        scale = torch.exp2(code / 32)
        points, borders = _tables(bits, coefficients.device)
        return points[torch.bucketize(coefficients.detach() / scale, borders, right=True)] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad, None, None
