"""Layers whose weights are composed of coefficients: what they compute, where they start, what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES, basis_by_id
from nola_codec.errors import EncodeError
from nola_codec.training import NolaConv2d, NolaEmbedding, NolaLinear, NolaParameter, TensorGroup
from nola_codec.training.coded import CodedTensor, near_square_shape

BASES = ("hadamard", "rademacher", "uniform")
FORMS = ("nola", "pranc")


def dense(coded: CodedTensor, basis: str) -> torch.Tensor:
    """The rows of a tensor's basis, by the decoder's integers, times its gain: (num_basis, n) float64."""
    synthesis = coded.synthesis
    unit = np.eye(synthesis.num_basis, dtype=np.int32)[None]
    rows = basis_by_id(NAMES[basis]).synthesize(unit, synthesis.length, (synthesis.key,), 1, NUMPY)[0]
    return torch.from_numpy(rows.astype(np.float64)) * synthesis.gain


@pytest.mark.parametrize("keep_basis", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("basis", BASES)
def test_value_and_gradient_are_those_of_the_dense_basis(basis: str, form: Any, keep_basis: bool) -> None:
    torch.manual_seed(1)
    parameter = NolaParameter((6, 5, 3), num_basis=7, rank=2, form=form, keep_basis=keep_basis, basis=basis, seed=5)
    target = torch.randn(6, 5, 3)
    made = parameter()
    (made - target).square().sum().backward()  # type: ignore[no-untyped-call]

    coefficients = [c.detach().double().requires_grad_() for c in parameter.coefficients_of_parts]
    parts = [
        (c @ dense(part, basis)).reshape(part.shape)
        for c, part in zip(coefficients, parameter.composed.parts, strict=True)
    ]
    wanted = (parts[0] @ parts[1] if form == "nola" else parts[0]).reshape(6, 5, 3)
    (wanted - target).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(parameter.coefficients_of_parts, coefficients, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "composes"), [(2, False), (200, True)])
def test_linear_takes_the_cheaper_road_to_the_same_result(rows: int, composes: bool) -> None:
    torch.manual_seed(0)
    layer = NolaLinear(30, 20, num_basis=50, rank=16)
    calls: list[object] = []
    layer.weight.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(rows, 30)
    out = layer(x)
    assert bool(calls) == composes
    torch.testing.assert_close(out, functional.linear(x, layer.weight(), layer.bias), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_embedding_composes_the_rows_asked_for() -> None:
    layer = NolaEmbedding(50, 12, num_basis=30)
    indexes = torch.tensor([[3, 49], [0, 3]])
    torch.testing.assert_close(layer(indexes), layer.weight()[indexes], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_convolution_is_pytorchs(form: Any) -> None:
    layer = NolaConv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, num_basis=30, form=form)
    plain = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2)
    plain.load_state_dict({"weight": layer.weight().detach(), "bias": layer.bias.detach()})  # type: ignore[union-attr]
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("basis", BASES)
def test_weights_start_as_large_as_pytorchs(basis: str, form: Any) -> None:
    torch.manual_seed(0)
    own = TensorGroup(basis=basis)
    pairs: list[tuple[Any, nn.Module]] = [
        (NolaLinear(96, 64, num_basis=600, form=form, group=own), nn.Linear(96, 64)),
        (NolaConv2d(16, 32, 3, num_basis=600, form=form, group=own), nn.Conv2d(16, 32, 3)),
        (NolaEmbedding(80, 64, num_basis=600, form=form, group=own), nn.Embedding(80, 64)),
    ]
    for layer, plain in pairs:
        made, wanted = layer.weight().detach(), plain.weight.detach()
        assert isinstance(wanted, torch.Tensor)
        assert made.shape == wanted.shape
        # Two rank-4 factors are chi-square-like: their product's own root mean square varies by a tenth.
        assert made.square().mean().sqrt() == pytest.approx(wanted.square().mean().sqrt(), rel=0.25)
    for values in pairs[0][0].weight.coefficients_of_parts:
        wanted_rms = pairs[0][0].weight.composed.part_rms(1 / math.sqrt(3 * 96))[0]
        assert values.square().mean().sqrt().item() == pytest.approx(wanted_rms, rel=1e-5)


def test_biases_start_as_pytorchs() -> None:
    biases = torch.cat([NolaLinear(100, 50).bias.detach() for _ in range(20)])  # type: ignore[union-attr]
    assert biases.abs().max() <= 0.1
    assert biases.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.1)
    assert NolaConv2d(3, 4, 3, bias=False).bias is None


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_training_uses_the_coefficients_that_are_stored(form: Any, bits: int) -> None:
    parameter = NolaParameter((24, 40), num_basis=32, bits=bits, form=form)
    trained = parameter().detach()
    exact = parameter.eval()()
    assert (trained - exact).norm() < 1e-3 * exact.norm()


def test_evaluation_follows_the_coefficients() -> None:
    parameter = NolaParameter((8, 8), num_basis=8).eval()
    before = parameter()
    assert parameter() is before
    assert not before.requires_grad
    with torch.no_grad():
        parameter.coefficients_of_parts[1].mul_(2)
    torch.testing.assert_close(parameter(), 2 * before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_what_inference_mode_made_serves_with_gradients_of_inputs(form: Any) -> None:
    layer = NolaLinear(6, 5, form=form).eval()
    x = torch.randn(2, 6, requires_grad=True)
    with torch.inference_mode():
        out = layer(x)
    again = layer(x)
    again.sum().backward()
    assert torch.equal(again, out)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], layer.weight().sum(0))


def test_streams_are_numbered_as_tensors_are_made() -> None:
    def streams(shared: bool) -> list[int]:
        own = TensorGroup()
        for _ in range(2):
            NolaLinear(10, 6, shared_basis=shared, group=own)
            NolaConv2d(2, 3, 3, shared_basis=shared, group=own)
        NolaLinear(10, 6, shared_basis=shared, form="pranc", group=own)
        assert len(own.records) == 5
        return [own.records[side.record].stream for side in own.sides if side.index != 1]

    assert streams(shared=False) == [0, 1, 2, 3, 4]
    assert streams(shared=True) == [0, 1, 0, 1, 2]


def test_distinct_streams_are_distinct_bases() -> None:
    own = TensorGroup(seed=3)
    first, second = (NolaParameter((8, 8), form="pranc", num_basis=16, group=own) for _ in range(2))
    third = NolaParameter((8, 8), form="pranc", num_basis=16, group=TensorGroup(seed=3))
    for parameter in (first, second, third):
        parameter.load_state_dict({"coefficients": torch.ones(1, 16)})
    assert torch.equal(first(), third())
    assert not torch.equal(first(), second())


def test_counts_and_ranks_are_cut_to_what_says_something() -> None:
    parameter = NolaParameter((3, 2), num_basis=100, rank=100)
    assert parameter.composed.rank == 2
    assert [c.numel() for c in parameter.coefficients_of_parts] == [4, 6]
    assert NolaParameter((7,), rank=3).composed.rank == 1  # a prime: one row
    assert NolaParameter((), rank=3)().shape == ()


@pytest.mark.parametrize(
    "coding",
    [{"num_basis": 0}, {"rank": 0}, {"form": "lora"}, {"bits": 9}, {"bits": 0}],
)
def test_bad_options_are_refused(coding: dict[str, Any]) -> None:
    with pytest.raises(EncodeError) as caught:
        NolaLinear(4, 4, **coding)
    assert caught.value.code == "option"


def test_one_width_for_a_group() -> None:
    own = TensorGroup(bits=3)
    NolaLinear(4, 4, group=own)
    with pytest.raises(EncodeError, match="bits: expected 3") as caught:
        NolaLinear(4, 4, group=own, bits=4)
    assert caught.value.code == "option"
    with pytest.raises(EncodeError):
        NolaParameter((4, 0))
    with pytest.raises(EncodeError):
        TensorGroup(basis="fourier")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("basis", BASES)
def test_shapes_are_right_without_values(basis: str, form: Any) -> None:
    """On the device `meta` nothing may look at a value: the code is the same for every device."""
    coding: dict[str, Any] = {"form": form, "device": "meta", "group": TensorGroup(basis=basis)}
    network = nn.Sequential(NolaConv2d(2, 6, 3, **coding), nn.Flatten(), NolaLinear(6 * 16, 5, **coding))
    out = network(torch.empty(4, 2, 6, 6, device="meta"))
    assert out.shape == (4, 5)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
    assert NolaEmbedding(9, 4, **coding)(torch.empty(3, dtype=torch.int64, device="meta")).shape == (3, 4)


def test_half_precision_layers() -> None:
    layer = NolaLinear(12, 6, dtype=torch.bfloat16)
    x = torch.randn(3, 12, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    assert layer.weight.coefficients_of_parts[0].dtype == torch.float32
    assert layer.eval().weight().dtype == torch.bfloat16


def test_copies_and_pickles_compute_the_same() -> None:
    own = TensorGroup()
    network = nn.Sequential(NolaLinear(6, 5, group=own), NolaLinear(5, 4, form="pranc", group=own))
    x = torch.randn(3, 6)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(x), network(x))
        assert torch.equal(again.eval()(x), network.eval()(x))
        assert again[0].weight.composed.group is again[1].weight.composed.group
        assert again[0].weight.composed.group is not own
        network.train()


@given(st.lists(st.integers(1, 40), max_size=4))
def test_near_square(shape: list[int]) -> None:
    rows, columns = near_square_shape(tuple(shape))
    elements = math.prod(shape)
    assert rows * columns == elements
    assert rows <= columns
    assert not any(elements % d == 0 for d in range(rows + 1, math.isqrt(elements) + 1))
