"""Case 51 (reading) and its kind: each algorithm of LyCORIS. The right deltas are those that LyCORIS itself applies.

They are taken from the outputs of its layers, since `merge_to` of version 4.1.3 applies the scale of LoHa and LoKr
twice.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import deltas, dialect_of, read, write
from nola_codec.errors import AdapterError

lycoris = pytest.importorskip("lycoris.wrapper")


Outputs = dict[str, torch.Tensor]


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(16, 32)
        self.conv = torch.nn.Conv2d(16, 32, 3)
        self.norm1 = torch.nn.LayerNorm(16)

    def outputs(self) -> Outputs:
        """Return the output of each layer for fixed inputs."""
        make = torch.Generator().manual_seed(2)
        rows, image = torch.randn(64, 16, generator=make), torch.randn(4, 16, 8, 8, generator=make)
        with torch.no_grad():
            return {"to_q": self.to_q(rows), "conv": self.conv(image), "norm1": self.norm1(rows)}


@cache
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def trained(path: Path, algo: str, **options: Any) -> tuple[Outputs, Tiny]:
    """Make a network of LyCORIS, give all its parameters random values, and save it as LyCORIS does.

    Return the tensors that it saved, and the model with it.
    """
    torch.manual_seed(1)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv2d", "LayerNorm"]})
    settings = {"linear_dim": 2, "linear_alpha": 1.0, "conv_dim": 2, "conv_alpha": 0.5, **options}
    base = copy.deepcopy(model())
    network = lycoris.create_lycoris(base, 1.0, algo=algo, **settings)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    network.save_weights(str(path), torch.float32, None)
    return load_file(path), base


def outputs_by_lycoris(path: Path) -> Outputs:
    base = copy.deepcopy(model())
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), base)
    network.apply_to()
    return base.outputs()


def outputs_as_read(path: Path) -> Outputs:
    """Return the outputs of the model with the deltas of the adapter added to its weights."""
    changed = copy.deepcopy(model())
    adapter = read(path)
    weights = changed.state_dict()
    for delta in deltas(adapter):
        name, tensor = delta.changed_tensor
        weight = weights[f"{dialect_of(adapter).path_of(name)}.{tensor}"]
        weight += torch.from_numpy(delta.dense()).reshape(weight.shape)
    return changed.outputs()


ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoCon": ("locon", {}),
    "LoCon, Tucker": ("locon", {"use_tucker": True}),
    "LoCon, trained scalar": ("locon", {"use_scalar": True}),
    "LoCon, rank-stabilized": ("locon", {"rs_lora": True}),
    "LoCon, norms": ("locon", {"train_norm": True}),
    "LoHa": ("loha", {}),
    "LoHa, Tucker": ("loha", {"use_tucker": True}),
    "LoHa, trained scalar": ("loha", {"use_scalar": True}),
    "LoKr": ("lokr", {"factor": 4, "linear_dim": 1, "conv_dim": 1, "linear_alpha": 3.0}),
    "LoKr, Tucker": ("lokr", {"factor": 4, "conv_dim": 1, "conv_alpha": 3.0, "use_tucker": True}),
    "LoKr, both products": ("lokr", {"factor": 4, "linear_dim": 1, "conv_dim": 0, "decompose_both": True}),
    "LoKr, both whole": ("lokr", {"factor": 4, "full_matrix": True, "linear_alpha": 7.0}),
    "LoKr, scalar": ("lokr", {"factor": 4, "use_scalar": True}),
    "full": ("full", {}),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_deltas_of_an_algorithm_are_those_that_lycoris_applies(algorithm: str, tmp_path: Path) -> None:
    algo, options = ALGORITHMS[algorithm]
    source = tmp_path / "a.safetensors"
    state, adapted = trained(source, algo, **options)
    before, found = model().outputs(), outputs_as_read(source)
    assert [(found[name] - before[name]).abs().max() > 1e-3 for name in ("to_q", "conv")].count(True) >= 1
    for name, wanted in adapted.outputs().items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5)

    write(read(source), tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in state.items())


def test_what_is_decoded_is_what_lycoris_loads(tmp_path: Path) -> None:
    trained(tmp_path / "a.safetensors", "lokr", factor=4, train_norm=True)
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.01)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "b.safetensors")
    before, found = model().outputs(), outputs_as_read(tmp_path / "b.safetensors")
    for name, wanted in outputs_by_lycoris(tmp_path / "b.safetensors").items():
        assert (wanted - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("algo", ["locon", "loha", "lokr"])
def test_dora_is_carried_and_not_merged(algo: str, on_output: bool, tmp_path: Path) -> None:
    state, _ = trained(tmp_path / "a.safetensors", algo, factor=4, dora_wd=True, wd_on_output=on_output)
    scales = {key for key in state if key.endswith(".dora_scale")}
    assert scales
    adapter = read(tmp_path / "a.safetensors")
    assert scales <= set(adapter.raw)
    with pytest.raises(AdapterError) as caught:
        dialect_of(adapter).model_tensors(adapter)
    assert caught.value.code == "merge-dora"


@pytest.mark.parametrize(
    ("algo", "code", "reason"),
    [
        ("ia3", "multiplicative", "multiplies activations"),
        ("diag-oft", "multiplicative", "multiplies the base weight"),
        ("boft", "multiplicative", "multiplies the base weight"),
        ("glora", "glora", "depends on the base weight"),
        ("tlora", "incomplete-delta", "difference to its first values"),
    ],
)
def test_an_algorithm_without_a_delta_of_its_own_is_refused_with_the_reason(
    algo: str, code: str, reason: str, tmp_path: Path
) -> None:
    trained(tmp_path / "a.safetensors", algo, linear_dim=4, conv_dim=4, factor=4)
    with pytest.raises(AdapterError, match=reason) as caught:
        read(tmp_path / "a.safetensors")
    assert caught.value.code == code


@pytest.mark.parametrize("alpha", [torch.tensor(1e10).half(), torch.tensor(float("nan")), torch.tensor(1e10)])
def test_an_alpha_without_an_effect_may_be_anything(alpha: torch.Tensor, tmp_path: Path) -> None:
    """Trainers write 10^10 for a LoKr of two whole matrices, which is infinite in float16; LyCORIS ignores it."""
    path = "lycoris_to_q"
    state = {f"{path}.lokr_w1": torch.ones(4, 2), f"{path}.lokr_w2": torch.ones(3, 4), f"{path}.alpha": alpha}
    save_file(state, tmp_path / "a.safetensors")
    (delta,) = deltas(read(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(delta.dense(), np.ones((12, 8)))
    nola_codec.encode(tmp_path / "a.safetensors", tmp_path / "a.nola", nmse=0.01)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")[f"{path}.alpha"].nan_to_num(), alpha.nan_to_num())
    state[f"{path}.lokr_w2_a"], state[f"{path}.lokr_w2_b"] = torch.ones(3, 2), torch.ones(2, 4)
    if not alpha.isfinite():
        del state[f"{path}.lokr_w2"]
        save_file(state, tmp_path / "c.safetensors")
        with pytest.raises(AdapterError, match="a finite number"):
            read(tmp_path / "c.safetensors")
