"""A model with one module of each kind that PEFT adapts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_and_light(one_thread: None) -> None:
    """One thread for every test."""


class Zoo(torch.nn.Module):
    """One module of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.block = torch.nn.ModuleDict(
            {"q": torch.nn.Linear(6, 8), "k": torch.nn.Linear(6, 8), "out": torch.nn.Linear(8, 6, bias=False)}
        )
        self.conv1 = torch.nn.Conv1d(3, 4, 3)
        self.conv2 = torch.nn.Conv2d(3, 4, (3, 2))
        self.conv3 = torch.nn.Conv3d(3, 4, 2)
        self.point = torch.nn.Conv2d(3, 4, 1)
        self.head = torch.nn.Linear(6, 2)
        self.attention = torch.nn.MultiheadAttention(8, 2)


@pytest.fixture
def zoo() -> Callable[[], Zoo]:
    """A fresh model, the same weights each time."""

    def make() -> Zoo:
        torch.manual_seed(1)
        return Zoo()

    return make
