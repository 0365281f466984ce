"""Layers of a model for the modules of an adapter, and everything that they can be refused for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nola_codec.errors import EncodeError
from nola_codec.model.adapter import LoraModule
from nola_codec.training.attach import find_modules


class Tiny(torch.nn.Module):
    """A model with a layer of each layout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.conv = torch.nn.Conv1d(6, 5, 3, padding=1)
        self.head = torch.nn.Linear(5, 11)


def lora(name: str, layout: Any, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> LoraModule:
    a = np.ones((a_shape[0], int(np.prod(a_shape[1:]))), np.float32)
    b = np.ones((b_shape[0], a_shape[0]), np.float32)
    return LoraModule(f"base_model.model.{name}", a, b, a_shape, b_shape, 0.4, layout)


def test_names_may_lack_or_carry_the_models_prefix() -> None:
    model = Tiny()
    modules = [lora("embed", "embedding", (2, 11), (6, 2)), lora("conv", "conv", (3, 6, 3), (5, 3, 1))]
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
        (lora("layers.3.q", "linear", (2, 5), (11, 2)), "lacks 1 of 1 adapted modules, the first layers.3.q"),
        (lora("head", "linear", (2, 7), (11, 2)), r"head: expected linear of shape \(11, 7\), found Linear"),
        (lora("embed", "linear", (2, 6), (11, 2)), "embed: expected linear of shape .*, found Embedding"),
        (lora("head", "embedding", (2, 11), (5, 2)), "head: expected embedding of shape"),
        (lora("conv", "conv", (2, 6, 5), (5, 2, 1)), r"conv: expected conv of shape \(5, 6, 5\), found"),
    ],
)
def test_modules_that_do_not_fit(module: LoraModule, message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        find_modules(Tiny(), [module])
    assert caught.value.code == "base-module"
