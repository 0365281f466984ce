"""Coefficients on their grid: the forward pass and the file agree, and the gradient goes straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nola_codec.encoder.factor_form import codebook_for
from nola_codec.quant.scales import scale_value
from nola_codec.training.quantizer import EXACT_BITS, TRAINED_BITS, quantize_coefficients, round_coefficients


def values(count: int = 200) -> torch.Tensor:
    return 0.037 * torch.randn(count, generator=torch.Generator().manual_seed(3))


def stored(coefficients: torch.Tensor, bits: int, grain: int) -> torch.Tensor:
    symbols, code = quantize_coefficients(coefficients.numpy(), bits, grain)
    scale = float(scale_value(np.array([code]))[0])
    return torch.from_numpy(np.array(codebook_for(bits).points)[symbols] * scale).float()


@pytest.mark.parametrize("grain", [1, 2])
@pytest.mark.parametrize("bits", TRAINED_BITS)
def test_the_forward_pass_is_what_is_stored(bits: int, grain: int) -> None:
    coefficients = values()
    made = round_coefficients(coefficients, bits, grain)
    torch.testing.assert_close(made, stored(coefficients, bits, grain), rtol=1e-4, atol=0)
    assert len(made.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_gradient_passes_as_if_nothing_was_rounded(bits: int) -> None:
    coefficients = values().requires_grad_()
    weight = torch.arange(200.0)
    (round_coefficients(coefficients, bits) * weight).sum().backward()
    assert coefficients.grad is not None
    assert torch.equal(coefficients.grad, weight)


def test_more_bits_lose_less() -> None:
    coefficients = values(2000)
    losses = [float((round_coefficients(coefficients, bits) - coefficients).square().mean()) for bits in TRAINED_BITS]
    power = float(coefficients.square().mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[1] / power == pytest.approx(0.1175, rel=0.1)  # Max (1960): a Gaussian at 2 bits


def test_sixteen_bits_lose_nothing_to_speak_of() -> None:
    coefficients = values()
    error = (stored(coefficients, EXACT_BITS, 1) - coefficients).abs().max() / coefficients.abs().max()
    assert float(error) < 2e-5


def test_zeros_stay_zeros() -> None:
    assert not stored(torch.zeros(7), EXACT_BITS, 1).any()
