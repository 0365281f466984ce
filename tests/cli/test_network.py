"""A file of a network's parameters, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nola_codec.training import parametrize_network, save


def test_a_network_is_inspected_verified_and_decoded(run: Callable[..., Any], tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    own = parametrize_network(network, num_basis=6, include=["0"])
    parametrize_network(network, num_basis=6, form="pranc", group=own)
    file = tmp_path / "net.nola"
    save(network.eval(), file)
    shown = run("inspect", file)
    assert shown.status == 0
    assert "1 products, 1 vectors, 7 carried as they came" in shown.out
    assert run("inspect", file, "--json").json["dialect"] == "parameters"
    assert run("verify", file).status == 0
    assert run("decode", file, "-o", tmp_path / "net.safetensors").status == 0
    tensors = load_file(tmp_path / "net.safetensors")
    assert torch.equal(tensors["0.weight"], network[0].weight)
    assert torch.equal(tensors["3.weight"], network[3].weight)
    assert len(tensors) == 9
    for refused in (("decode", file, "--format", "peft"), ("decode", file, "--base", tmp_path / "net.safetensors")):
        failed = run(*refused, "-o", tmp_path / "other.safetensors")
        assert failed.status == 3
        assert "a network's own weights" in failed.err
    assert not (tmp_path / "other.safetensors").exists()
