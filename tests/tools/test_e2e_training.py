"""The training of `tools/experiments/e2e.py`: a run that was stopped goes on to the same numbers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def e2e(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module; what it imported from tools/ is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(TOOLS / "experiments"))
    before = set(sys.modules)
    yield importlib.import_module("e2e")
    for added in set(sys.modules) - before:
        if str(TOOLS) in str(getattr(sys.modules[added], "__file__", "")):
            del sys.modules[added]


class Numbers:
    """A task whose model is one linear layer."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def batches(self, seed: int, steps: int) -> Iterator[torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        for step in range(steps):
            if step == self.stop:
                raise KeyboardInterrupt
            yield torch.randn(4, 3, generator=draw)

    def logits(self, model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch), (batch[:, 0] > 0).long()


def test_a_training_that_was_stopped_goes_on(e2e: ModuleType, tmp_path: Path) -> None:
    run = {"method": "lora", "steps": 25, "seed": 0}

    def train(stop: int, state: Path) -> tuple[list[float], torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return e2e.fit(Numbers(stop), model, run, optimizer, state)[1], model.weight.detach()

    losses, weight = train(99, tmp_path / "whole.state")
    with pytest.raises(KeyboardInterrupt):
        train(17, tmp_path / "stopped.state")
    again, other = train(99, tmp_path / "stopped.state")
    assert len(losses) == 25
    assert again == losses
    assert torch.equal(other, weight)
