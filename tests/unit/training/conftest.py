"""PEFT adapters on a tiny Llama."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_support import tiny

peft = pytest.importorskip("peft")


@pytest.fixture
def make_adapter() -> Callable[..., Any]:
    """A PEFT model; keywords as LoraConfig has them."""

    def make(**options: Any) -> Any:
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.get_peft_model(tiny(), peft.LoraConfig(**config))

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(1))
