"""The basis as a linear map: gradients against dense autograd, and least squares."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fake_cuda import Indexing, Watch
from torch._subclasses.fake_tensor import FakeTensorMode

from nola_codec.basis import BasisKey
from nola_codec.training import quantizer
from nola_codec.training.synthesis import Synthesis

BASES = {"hadamard": 1, "rademacher": 2, "uniform": 3}
CASES = [(name, n, k) for name in BASES for n, k in ((96, 40), (50, 17), (64, 64))]


def rows(synthesis: Synthesis) -> torch.Tensor:
    """The map as a dense matrix, (num_basis, length)."""
    return torch.stack([synthesis.forward(row) for row in torch.eye(synthesis.num_basis, dtype=torch.float64)])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("name", "n", "k"), CASES)
def test_gradient_is_that_of_dense_autograd(name: str, n: int, k: int, kept: bool) -> None:
    synthesis = Synthesis(BASES[name], BasisKey(1, 7, 3), n, k, kept=kept)
    dense = rows(synthesis)
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(k, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(n, generator=generator, dtype=torch.float64)
    (synthesis(ours).sin() * weight).sum().backward()
    ((theirs @ dense).sin() * weight).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "n", "k"), CASES)
def test_entries_are_as_large_as_coefficients(name: str, n: int, k: int) -> None:
    synthesis = Synthesis(BASES[name], BasisKey(1, 7, 3), n, k)
    assert float(rows(synthesis).square().mean()) * k == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("name", "n", "k"), CASES)
def test_least_squares(name: str, n: int, k: int) -> None:
    synthesis = Synthesis(BASES[name], BasisKey(1, 7, 4), n, k)
    dense = rows(synthesis)
    vector = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = synthesis.least_squares(vector, steps=200)
    left = vector - found @ dense
    assert float((dense @ left).abs().max()) < 1e-6  # orthogonal to every row


def test_the_basis_is_made_again_after_a_copy() -> None:
    synthesis = Synthesis(2, BasisKey(1, 7, 3), 40, 8, kept=True)
    values = torch.arange(8.0)
    made = synthesis.forward(values)
    for other in (copy.deepcopy(synthesis), pickle.loads(pickle.dumps(synthesis))):
        assert torch.equal(other.forward(values), made)


def test_autocast_does_not_reach_it() -> None:
    synthesis = Synthesis(1, BasisKey(1, 7, 3), 4608, 128)
    values = torch.randn(128, generator=torch.Generator().manual_seed(0))
    made = synthesis(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = synthesis(values)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, made)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("name", "n", "k"), CASES)
def test_it_runs_on_cuda(name: str, n: int, k: int, kept: bool) -> None:
    synthesis = Synthesis(BASES[name], BasisKey(1, 7, 3), n, k, kept=kept)
    quantizer._tables.cache_clear()  # no other test's tensors, and none of this one left for others
    with Indexing(), FakeTensorMode(), Watch():
        made = synthesis.forward(torch.zeros(k, device="cuda:0"))
        back = synthesis.adjoint(made)
        on_grid = quantizer.round_coefficients(back, 4)
    quantizer._tables.cache_clear()
    assert (made.device.type, tuple(made.shape), tuple(back.shape)) == ("cuda", (n,), (k,))
    assert (on_grid.device.type, tuple(on_grid.shape)) == ("cuda", (k,))
