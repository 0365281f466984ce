"""Coded changes of a network's own weights: what is evaluated is what a merge of the file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nola_codec
from nola_codec.errors import EncodeError
from nola_codec.training import parametrize_weights, save
from nola_codec.training.coding import Form


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 6, 3, padding=1)
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.conv(x).tanh().mean((2, 3)))
        return made


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


@pytest.mark.parametrize("bits", [None, 3])
@pytest.mark.parametrize("form", ["nola", "pranc"])
def test_evaluation_is_the_merge(form: Form, bits: int | None, tmp_path: Path) -> None:
    model = net()
    parametrize_weights(model, num_basis=12, form=form, rank=2, bits=bits, seed=5)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert max(p.numel() for p in trained) == 12
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(trained, 0.02)
    losses = []
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        made = model.eval()(x)
    save(model, tmp_path / "a.nola")
    nola_codec.verify(tmp_path / "a.nola")
    other = net()
    with nola_codec.load(tmp_path / "a.nola") as file:
        file.merge_into(other)
    for name in ("conv", "head"):
        assert torch.equal(getattr(other, name).weight, getattr(model, name).weight), name
    with torch.no_grad():
        assert torch.equal(other(x), made)


def test_a_gradient_is_that_of_the_dense_weight() -> None:
    model, plain = net(), net()
    group = parametrize_weights(model, num_basis=20, form="pranc", include=["head"])
    (side,) = group.sides
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    for each in (model, plain):
        each.train()
        (each(x) - 1).square().mean().backward()
    dense = torch.stack([side.tensor.synthesis.forward(row) for row in torch.eye(20)])
    assert plain.head.weight.grad is not None
    assert side.coefficients.grad is not None
    torch.testing.assert_close(side.coefficients.grad[0], dense @ plain.head.weight.grad.reshape(-1))


def test_what_is_refused() -> None:
    def code(**options: object) -> str:
        model = net()
        with pytest.raises(EncodeError) as error:
            parametrize_weights(model, **{"num_basis": 4, **options})  # type: ignore[arg-type]
        return error.value.code

    assert code(form="svd") == "option"
    assert code(num_basis=0) == "option"
    assert code(include=["nothing"]) == "not-parametrized"
    assert code(exclude=["."]) == "not-parametrized"
    model = net()
    parametrize_weights(model, num_basis=4)
    with pytest.raises(EncodeError, match="already"):
        parametrize_weights(model, num_basis=4)


def test_weights_of_one_shape_can_share_a_basis() -> None:
    def streams(**options: Any) -> list[int]:
        network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 4), torch.nn.Linear(6, 6))
        group = parametrize_weights(network, num_basis=4, **options)
        return [record.stream for record in group.records.values()]

    assert streams() == [0, 1, 2]
    assert streams(shared_basis=True) == [0, 1, 0]


def test_a_bad_expression_is_refused() -> None:
    with pytest.raises(EncodeError, match="not a regular expression") as error:
        parametrize_weights(net(), include=["("])
    assert error.value.code == "option"
