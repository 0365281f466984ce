"""Tiny models and real PEFT adapters of them, made in the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_and_light() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Wrap a model, give every adapter parameter random values, save; returns the PeftModel and the directory."""
    from peft import LoraConfig, get_peft_model

    def save(model: torch.nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Path]:
        wrapped = get_peft_model(model, LoraConfig(**options))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
        if dtype is not torch.float32:
            wrapped = wrapped.to(dtype)
        directory = tmp_path / "adapter"
        wrapped.save_pretrained(directory)
        return wrapped, directory

    return save
