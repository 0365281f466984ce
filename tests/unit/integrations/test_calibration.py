"""Moments against autograd on dense deltas, and everything that a calibration can be refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nola_codec.errors import EncodeError
from nola_codec.integrations.calibration import STRENGTH, collect_from
from nola_codec.model.adapter import LoraModule
from nola_codec.training.attach import find_modules

BATCHES = [torch.tensor([[1, 4, 4, 9, 2]]), torch.tensor([[7, 0, 3]])]


class Tiny(torch.nn.Module):
    """Token ids -> embedding -> convolution over time -> linear -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.conv = torch.nn.Conv1d(6, 5, 3, padding=1)
        self.head = torch.nn.Linear(5, 11)
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.tanh(self.conv(self.embed(ids).mT)).mT)
        return result


def lora(name: str, layout: Any, a_shape: tuple[int, ...], b_shape: tuple[int, ...], seed: int) -> LoraModule:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((a_shape[0], int(np.prod(a_shape[1:])))).astype(np.float32)
    b = rng.standard_normal((b_shape[0], a_shape[0])).astype(np.float32)
    return LoraModule(f"base_model.model.{name}", a, b, a_shape, b_shape, 0.4, layout)


@pytest.fixture
def modules() -> list[LoraModule]:
    return [
        lora("embed", "embedding", (2, 11), (6, 2), 1),
        lora("conv", "conv", (3, 6, 3), (5, 3, 1), 2),
        lora("head", "linear", (2, 5), (11, 2), 3),
        lora("unused", "linear", (2, 4), (4, 2), 4),
    ]


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum")


def dense_gradients(model: Tiny, modules: list[LoraModule]) -> dict[str, list[np.ndarray]]:
    """dL/d(delta_W), (out, in) each, of every batch with the deltas at half strength in the weights themselves."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for module in modules:
            weight = model.get_submodule(module.name.removeprefix("base_model.model.")).weight
            delta = torch.tensor(STRENGTH * module.scaling * module.lora_B @ module.lora_A)
            weight += delta.T if module.layout == "embedding" else delta.reshape(weight.shape)
    for batch in BATCHES:
        model.zero_grad()
        loss(model, batch).backward()
        for module in modules:
            weight = model.get_submodule(module.name.removeprefix("base_model.model.")).weight
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradient = gradient.T if module.layout == "embedding" else gradient.reshape(len(gradient), -1)
            found.setdefault(module.name, []).append(gradient.numpy().astype(np.float64))
    return found


def test_moments_are_those_of_dense_gradients(model: Tiny, modules: list[LoraModule]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = collect_from(model, modules, BATCHES, loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    dense = dense_gradients(model, modules)
    assert list(moments) == [m.name for m in modules]
    for module in modules:
        own, a, b = moments[module.name], module.lora_A.astype(np.float64), module.lora_B.astype(np.float64)
        gradients = dense[module.name]
        close: Callable[[Any], Any] = lambda x: pytest.approx(x, rel=1e-3, abs=1e-5)  # noqa: E731
        assert own.cross == close(sum(b.T @ g @ a.T for g in gradients))
        assert own.left == close(sum((g @ a.T).T @ (g @ a.T) for g in gradients))
        assert own.right == close(sum((b.T @ g) @ (b.T @ g).T for g in gradients))
    assert moments["base_model.model.head"].cross.any()
    assert not moments["base_model.model.unused"].left.any()


def test_the_sketch_is_the_second_moment_of_the_inputs(model: Tiny, modules: list[LoraModule]) -> None:
    batches = [torch.randint(0, 11, (1, 9), generator=torch.Generator().manual_seed(n)) for n in range(30)]
    moments = collect_from(model, modules, batches, loss)
    counts = np.bincount(torch.cat(batches, dim=1).reshape(-1).numpy(), minlength=11)
    sketch = moments["base_model.model.embed"].inputs.astype(np.float64)
    assert np.trace(sketch.T @ sketch) == pytest.approx(counts.sum(), rel=0.1)
    assert np.diag(sketch.T @ sketch) == pytest.approx(counts, rel=0.7)
    assert sketch.shape[1:] == (11,)
    assert moments["base_model.model.conv"].inputs.shape[1] == 18


def test_it_repeats_itself_whatever_the_callers_generator(model: Tiny, modules: list[LoraModule]) -> None:
    first = collect_from(model, modules, BATCHES, loss)
    torch.manual_seed(77)
    again = collect_from(model, modules, BATCHES, loss)
    for name, own in first.items():
        assert np.array_equal(own.inputs, again[name].inputs)
        assert np.array_equal(own.cross, again[name].cross)


def test_a_failing_batch_leaves_the_model_as_it_was(model: Tiny, modules: list[LoraModule]) -> None:
    with pytest.raises(IndexError):
        collect_from(model, modules, [torch.tensor([[99, 1]])], loss)
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_progress_is_told(model: Tiny, modules: list[LoraModule]) -> None:
    told: list[tuple[str, int, int]] = []
    collect_from(model, modules, BATCHES, loss, progress=lambda *step: told.append(step))
    assert told == [("calibration", 0, 2), ("calibration", 1, 2), ("calibration", 2, 2)]


def test_names_may_lack_or_carry_the_models_prefix(model: Tiny, modules: list[LoraModule]) -> None:
    outer = torch.nn.Module()
    outer.transformer = model
    outer.base_model_prefix = "transformer"  # type: ignore[assignment]
    assert find_modules(outer, modules)[modules[0].name] is model.embed
    model.base_model_prefix = "transformer"  # type: ignore[assignment]
    carried = [replace(m, name=m.name.replace("base_model.model.", "base_model.model.transformer.")) for m in modules]
    assert find_modules(model, carried)[carried[1].name] is model.conv


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lora("layers.3.q", "linear", (2, 5), (11, 2), 0), "lacks 1 of 1 adapted modules, the first layers.3.q"),
        (lora("head", "linear", (2, 7), (11, 2), 0), r"head: expected linear of shape \(11, 7\), found Linear"),
        (lora("embed", "linear", (2, 6), (11, 2), 0), "embed: expected linear of shape .*, found Embedding"),
        (lora("head", "embedding", (2, 11), (5, 2), 0), "head: expected embedding of shape"),
        (lora("conv", "conv", (2, 6, 5), (5, 2, 1), 0), r"conv: expected conv of shape \(5, 6, 5\), found"),
    ],
)
def test_modules_that_do_not_fit(model: Tiny, module: LoraModule, message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        find_modules(model, [module])
    assert caught.value.code == "calibration-module"
