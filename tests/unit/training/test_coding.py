"""`Coding`: its keywords, its checks, and how fronts and groups combine them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from torch import nn

from nola_codec.errors import EncodeError
from nola_codec.training import (
    Coding,
    CodingOptions,
    NolaLinear,
    NolaParameter,
    TensorGroup,
    parametrize,
    parametrize_network,
    parametrize_weights,
)
from nola_codec.training.coding import resolve_coding


def test_keywords_are_the_fields() -> None:
    assert list(CodingOptions.__annotations__) == [field.name for field in fields(Coding)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_basis": 0}, "num_basis: expected a positive integer, found 0"),
        ({"num_basis": True}, "num_basis: expected a positive integer, found True"),
        ({"num_basis": {"q_proj": 8, "k_proj": -1}}, "num_basis of k_proj: expected a positive integer, found -1"),
        ({"bits": 9}, "bits: expected 1 to 8, or None, found 9"),
        ({"bits": 4.0}, "bits: expected 1 to 8, or None, found 4.0"),
        ({"form": "lora"}, "form: expected nola, pranc, found 'lora'"),
        ({"rank": 0}, "rank: expected a positive integer, found 0"),
        ({"basis": "fourier"}, "basis: expected hadamard, rademacher, uniform, found 'fourier'"),
        ({"seed": -1}, r"seed: expected 0 to 2\^64 - 1, found -1"),
        ({"seed": 1 << 64}, r"seed: expected 0 to 2\^64 - 1"),
        ({"num_bases": 3}, "option: expected one of num_basis, .* found 'num_bases'"),
    ],
)
def test_each_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message) as caught:
        resolve_coding(None, options)
    assert caught.value.code == "option"


def test_it_does_not_change() -> None:
    counts = {"q_proj": 8}
    coding = Coding(num_basis=counts)
    counts["q_proj"] = 9
    assert coding.num_basis == {"q_proj": 8}
    with pytest.raises(FrozenInstanceError):
        coding.bits = 4  # type: ignore[misc]
    assert copy.deepcopy(coding) == pickle.loads(pickle.dumps(coding)) == coding


def test_keywords_win_over_a_coding() -> None:
    coding = Coding(num_basis=8, bits=4, seed=3)
    assert resolve_coding(coding, {"bits": None}) == Coding(num_basis=8, seed=3)
    group = TensorGroup(coding, bits=2)
    layer = NolaLinear(12, 10, group=group, num_basis=5, form="pranc")
    assert group.coding == Coding(num_basis=8, bits=2, seed=3)
    assert [values.shape for values in layer.weight.parameters()] == [(1, 5)]
    own = parametrize_network(nn.Sequential(nn.Linear(12, 10)), coding, num_basis=6)
    assert [side.coefficients.numel() for side in own.sides] == [6, 6]


@pytest.mark.parametrize("call", [parametrize, parametrize_network, parametrize_weights, TensorGroup])
def test_a_number_is_not_a_coding(call: Callable[..., object]) -> None:
    arguments = () if call is TensorGroup else (nn.Sequential(nn.Linear(4, 4)),)
    with pytest.raises(EncodeError, match="coding: expected a Coding, or keywords such as num_basis=128, found 24"):
        call(*arguments, 24)


def test_a_group_has_one_seed_basis_and_width() -> None:
    group = TensorGroup(seed=7, bits=3)
    for options in ({"seed": 8}, {"basis": "uniform"}, {"coding": Coding(bits=4)}):
        with pytest.raises(EncodeError, match="as in the rest of the group") as caught:
            NolaParameter((4, 4), group=group, **options)  # type: ignore[arg-type]
        assert caught.value.code == "option"
    assert group.records == {}
    assert group.sides == []
    with pytest.raises(EncodeError, match="group: expected a TensorGroup"):
        NolaParameter((4, 4), group=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [parametrize_network, parametrize_weights])
def test_a_mapping_is_for_adapters(call: Callable[..., object]) -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(EncodeError, match="a mapping is for the modules of a PEFT model"):
        call(network, num_basis={"0": 3})
    assert not hasattr(network[0], "parametrizations")
    assert network[0].weight.requires_grad


def test_bits_can_be_changed_for_all() -> None:
    group = TensorGroup(num_basis=20, seed=1)
    first, second = (NolaParameter((8, 8), group=group).eval() for _ in range(2))
    before = first(), second()
    group.set_bits(1)
    assert group.coding.bits == 1
    assert not torch.equal(first(), before[0])
    group.set_bits(None)
    assert torch.equal(first(), before[0])
    assert torch.equal(second(), before[1])
    with pytest.raises(EncodeError, match="bits"):
        group.set_bits(9)
