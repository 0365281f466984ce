"""Coefficients rounded in the forward pass, updated in full precision in the backward pass (NOLA, section 3.2).

The codebooks and scales are the file's, a coefficient being `point * 2^(E / 32)`: what was trained is what is stored.
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
from nola_codec.quant.codebooks import nearest
from nola_codec.quant.scales import scale_value

EXACT_BITS = 16
"""Width of coefficients that are trained without rounding: the loss in a file is below float32's own noise."""
TRAINED_BITS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)


NO_SCALE = -1280
"""Scale code of coefficients that are all zero."""


def scale_code(coefficients: npt.NDArray[np.float32], bits: int, grain: int = 1) -> int:
    """Code E of the coefficients' scale, coefficients being about `point * 2^(E / 32)`.

    Of a Lloyd-Max codebook, whose points say standard deviations, the root mean square decides; of one bit the mean
    magnitude; of 16 bits the largest.

    Args:
        coefficients: (num_basis,).
        bits: 1 to 8, or 16.
        grain: The code is a multiple of it.
    """
    if not coefficients.any():
        return NO_SCALE
    magnitude = np.abs(coefficients.astype(np.float64))
    if bits == EXACT_BITS:
        return grain * math.ceil(32 / grain * math.log2(float(magnitude.max()) / (codebook_for(bits).peak - 1)))
    statistic = magnitude.mean() if bits == 1 else np.sqrt(np.square(magnitude).mean()) / 4096
    return grain * round(32 / grain * math.log2(float(statistic)))


def quantized(coefficients: npt.NDArray[np.float32], bits: int, grain: int = 1) -> tuple[npt.NDArray[np.uint16], int]:
    """Symbols (num_basis,) of the codebook of `bits`, and the code of their scale, a multiple of `grain`."""
    code = scale_code(coefficients, bits, grain)
    scale = float(scale_value(np.array([code], np.int64))[0])
    return nearest(coefficients.astype(np.float64) / scale, codebook_for(bits)), code


def rounded(coefficients: torch.Tensor, bits: int, grain: int = 1) -> torch.Tensor:
    """Coefficients on their grid; the gradient passes as if they were not rounded (Bengio et al., arXiv 1308.3432).

    Args:
        coefficients: (num_basis,) floats.
        bits: 1 to 8.
        grain: As in `scale_code`.
    """
    made: torch.Tensor = _Rounded.apply(coefficients, bits, grain)  # type: ignore[no-untyped-call]
    return made


@lru_cache(maxsize=64)
def _tables(bits: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in units of the scale's statistic, and the borders between them."""
    points = np.array(codebook_for(bits).points, np.float32) / (1 if bits == 1 else 4096)
    borders = (points[1:] + points[:-1]) / 2
    return torch.from_numpy(points).to(device), torch.from_numpy(borders).to(device)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, bits: int, grain: int) -> torch.Tensor:
        # The scale is a number of the device's: no value is waited for.
        statistic = coefficients.abs().mean() if bits == 1 else coefficients.square().mean().sqrt()
        code = grain * torch.round(32 / grain * torch.log2(statistic.clamp_min(1e-30)))
        scale = torch.exp2(code / 32)
        points, borders = _tables(bits, coefficients.device)
        return points[torch.bucketize(coefficients.detach() / scale, borders, right=True)] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad, None, None
