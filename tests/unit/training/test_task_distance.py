"""Distances to the adapter's outputs, and the store of these outputs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nola_codec.training.task_distance import Divergence, SquaredError
from nola_codec.training.task_teacher import Teacher


def no_base() -> torch.Tensor:
    raise AssertionError("the base model is not needed")


def test_a_divergence_over_all_classes_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, found = (3 * torch.randn(5, 20, generator=generator) for _ in range(2))
    found.requires_grad_()
    exact = functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum")
    (slope,) = torch.autograd.grad(exact, found)
    for top, tolerance in ((20, 1e-5), (64, 1e-5), (19, 1e-4)):
        distance = Divergence(top)
        total, count = distance.measure(found, distance.keep(wanted, no_base))
        assert count == 5
        torch.testing.assert_close(total, exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(torch.autograd.grad(total, found)[0], slope, rtol=1e-3, atol=1e-3)
    coarse, _ = Divergence(4).measure(found, Divergence(4).keep(wanted, no_base))
    assert 0 < coarse.item() < exact.item()
    same, _ = Divergence(4).measure(wanted, Divergence(4).keep(wanted, no_base))
    assert abs(same.item()) < 1e-5


def test_a_squared_error_counts_items() -> None:
    wanted, found = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    total, count = SquaredError().measure(found, SquaredError().keep(wanted, no_base))
    assert (total.item(), count) == (13.0, 2)
    relative = SquaredError(relative=True)
    kept = relative.keep(wanted, lambda: torch.tensor([[0.0, 2.0], [3.0, 2.0]]))  # changes of 1 and of 4
    assert relative.measure(found, kept)[0].item() == pytest.approx(4 / 1 + 9 / 4)


def test_outputs_are_made_once_within_the_limit() -> None:
    calls: list[str] = []

    def ask(teacher: Teacher, name: str) -> tuple[torch.Tensor, ...]:
        def outputs() -> torch.Tensor:
            calls.append(name)
            return torch.full((4, 3), float(len(name)))

        return teacher.wanted(name, outputs, no_base, torch.device("cpu"))

    teacher = Teacher(SquaredError(), 100)  # one batch takes 4 * 3 * 4 + 4 * 4 = 64 bytes
    for name in ("one", "three", "one", "three"):
        assert torch.equal(ask(teacher, name)[0], torch.full((4, 3), float(len(name))))
    assert calls == ["one", "three", "three"]
