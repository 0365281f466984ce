"""One budget of coefficients for a whole adapter, shared out by the first gradients (`gradient_shares.py`)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_support import tiny

from nola_codec.training import parametrize

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names
TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module."""
    monkeypatch.syspath_prepend(str(TOOLS / "experiments"))
    yield importlib.import_module("gradient_shares")
    del sys.modules["gradient_shares"]


def model_with_gradients() -> Any:
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    tokens = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(1))
    model(input_ids=tokens, labels=tokens).loss.backward()
    return model


def test_the_budget_is_kept_and_goes_where_gradients_are_large(shares: ModuleType) -> None:
    model = model_with_gradients()
    counts = shares.share_out_num_basis(model, 800)
    norms = {path: float(model.get_submodule(path).lora_B["default"].weight.grad.norm()) for path in counts}
    assert len(counts) == 14
    assert min(counts.values()) >= 8
    assert len(set(counts.values())) > 2
    assert [counts[path] for path in sorted(norms, key=lambda path: norms[path])] == sorted(counts.values())
    group = parametrize(model, num_basis=counts)
    assert 700 <= sum(side.coefficients.numel() for side in group.sides) <= 800


def test_a_budget_of_more_than_all_numbers_gives_each_factor_all(shares: ModuleType) -> None:
    model = model_with_gradients()
    group = parametrize(model, num_basis=shares.share_out_num_basis(model, 10**9))
    assert all(side.coefficients.numel() == side.tensor.shape.numel() for side in group.sides)


def test_what_cannot_be_shared_out_is_refused(shares: ModuleType) -> None:
    model = model_with_gradients()
    with pytest.raises(ValueError, match="at least 224"):
        shares.share_out_num_basis(model, 223)
    model.zero_grad(set_to_none=False)
    with pytest.raises(ValueError, match="not all zero"):
        shares.share_out_num_basis(model, 800)
