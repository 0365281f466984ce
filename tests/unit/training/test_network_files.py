"""Networks with coded parameters: parametrized, saved and loaded; what evaluation uses is what the file decodes to."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nola_forge import join, split
from safetensors.torch import load_file, save_file
from torch import nn

import nola_codec
from nola_codec.adapters.dialects import parameters
from nola_codec.adapters.sources import open_source
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.training import (
    NolaConv2d,
    NolaEmbedding,
    NolaLinear,
    NolaParameter,
    TensorGroup,
    load,
    parametrize_network,
    parametrize_weights,
    save,
)

FORMS = ("nola", "pranc")


class Small(nn.Module):
    """A convolution, a norm with statistics, an embedding, linear layers and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 4)])
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """(b, 2, h, w), (b,) -> (b, 4)."""
        x = self.norm(self.conv(images)).mean((2, 3)) + self.embed(words)
        return self.layers[1](torch.relu(self.layers[0](x))) * self.scale


class Built(nn.Module):
    """The like of `Small`, of layers made to be trained so."""

    def __init__(self, **coding: Any) -> None:
        super().__init__()
        own = {"group": TensorGroup(**{"num_basis": 9, "seed": 4, **coding})}
        self.conv = NolaConv2d(2, 6, 3, bias=False, **own)
        self.norm = nn.BatchNorm2d(6)
        self.embed = NolaEmbedding(11, 6, **own)
        self.layers = nn.ModuleList([NolaLinear(6, 6, **own), NolaLinear(6, 4, **own)])
        self.scale = NolaParameter((4,), **own)

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """(b, 2, h, w), (b,) -> (b, 4)."""
        x = self.norm(self.conv(images)).mean((2, 3)) + self.embed(words)
        return self.layers[1](torch.relu(self.layers[0](x))) * self.scale()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, 2, 7, 7, generator=generator), torch.arange(5)


def train(network: nn.Module, steps: int = 3) -> list[float]:
    """Losses of a few steps towards fixed outputs."""
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    losses = []
    for _ in range(steps):
        loss = (network(*inputs()) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parametrized(**coding: Any) -> Small:
    torch.manual_seed(0)
    network = Small()
    parametrize_network(network, **{"num_basis": 9, **coding})
    return network


def state_of(path: Path) -> dict[str, torch.Tensor]:
    with nola_codec.load(path) as file:
        return file.state_dict()


MAKERS: dict[str, Callable[..., nn.Module]] = {"parametrized": parametrized, "built": Built}


@pytest.mark.parametrize("bits", [None, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("made", MAKERS)
def test_evaluation_is_a_plain_network_of_the_decoded_state(made: str, form: Any, bits: Any, tmp_path: Path) -> None:
    network = MAKERS[made](form=form, bits=bits)
    train(network)
    network.eval()
    before = network(*inputs())
    size = save(network, tmp_path / "net.nola", measured={"loss": 0.5})
    assert size == (tmp_path / "net.nola").stat().st_size
    plain = Small().eval()
    plain.load_state_dict(state_of(tmp_path / "net.nola"))
    assert torch.equal(plain(*inputs()), before)
    assert torch.equal(network(*inputs()), before)


@pytest.mark.parametrize("basis", ["hadamard", "rademacher", "uniform"])
@pytest.mark.parametrize("form", FORMS)
def test_saved_loaded_and_saved_again(form: Any, basis: str, tmp_path: Path) -> None:
    network = parametrized(form=form, basis=basis, shared_basis=True, seed=2**64 - 1)
    train(network)
    save(network, tmp_path / "one.nola")
    again = load(Small(), tmp_path / "one.nola")
    assert torch.equal(again.eval()(*inputs()), network.eval()(*inputs()))
    save(again, tmp_path / "two.nola")
    assert (tmp_path / "two.nola").read_bytes() == (tmp_path / "one.nola").read_bytes()
    again.train()
    losses = train(again, 30)
    assert losses[-1] < 0.5 * losses[0]


def test_a_file_of_built_layers_loads_into_them_and_into_a_plain_network(tmp_path: Path) -> None:
    network = Built(bits=4)
    train(network)
    save(network, tmp_path / "net.nola")
    torch.manual_seed(9)
    again, like = load(Built(bits=4), tmp_path / "net.nola"), None
    assert torch.equal(again.eval()(*inputs()), network.eval()(*inputs()))
    like = load(Small(), io.BytesIO((tmp_path / "net.nola").read_bytes()))
    assert torch.equal(like.eval()(*inputs()), network(*inputs()))


def test_decode_inspect_and_verify(tmp_path: Path) -> None:
    network = parametrized(bits=2)
    train(network)
    save(network, tmp_path / "net.nola")
    out = nola_codec.decode(tmp_path / "net.nola", tmp_path / "net.safetensors")
    tensors = load_file(out)
    assert tensors.keys() == Small().state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in state_of(tmp_path / "net.nola").items())
    assert tensors["norm.num_batches_tracked"] == 3
    facts = nola_codec.inspect(tmp_path / "net.nola")
    assert facts.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert facts.coefficients == sum(p.numel() for n, p in network.named_parameters() if ".original" in n)
    assert nola_codec.verify(tmp_path / "net.nola")["tensors"] == len(tensors)
    half = load_file(nola_codec.decode(tmp_path / "net.nola", tmp_path / "half.safetensors", dtype="bf16"))
    assert torch.equal(half["conv.weight"], tensors["conv.weight"].bfloat16())
    assert torch.equal(half["norm.running_var"], tensors["norm.running_var"])


def test_parametrized_weights_start_as_large_as_they_were() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 5))
    with torch.no_grad():
        network[0].weight.mul_(7)
        network[2].weight.zero_()
    rms = [layer.weight.detach().square().mean().sqrt() for layer in (network[0], network[2])]
    bias = network[0].bias.detach().clone()
    parametrize_network(network.eval(), num_basis=200)
    assert network[0].weight.square().mean().sqrt() == pytest.approx(rms[0], rel=0.25)
    assert not network[2].weight.any()
    assert torch.equal(network[0].bias, bias)
    assert not network[0].weight.requires_grad  # it was in evaluation, and is
    network.train()
    network(torch.randn(4, 64)).square().mean().backward()
    network[2].weight.sum().backward()
    assert network[2].parametrizations.weight.original0.grad.any()  # a zero product that can leave zero


def test_include_exclude_and_group(tmp_path: Path) -> None:
    network = Small()
    own = parametrize_network(network, num_basis=5, include=[r"^layers"], exclude=[r"\.1\."])
    assert list(own.records) == ["layers.0.weight"]
    assert parametrize_network(network, num_basis=7, include=["conv"], form="pranc", group=own) is own
    assert [side.coefficients.numel() for side in own.sides] == [5, 5, 7]
    assert [record.stream for record in own.records.values()] == [0, 1]
    save(network, tmp_path / "net.nola")
    assert torch.equal(state_of(tmp_path / "net.nola")["embed.weight"], network.embed.weight)
    again = load(Small(), tmp_path / "net.nola")
    assert torch.equal(again.eval()(*inputs()), network.eval()(*inputs()))


def test_what_cannot_be_parametrized_is_refused() -> None:
    def code(network: nn.Module, **options: Any) -> str:
        with pytest.raises(EncodeError) as caught:
            parametrize_network(network, num_basis=4, **options)
        return caught.value.code

    assert code(nn.Sequential(nn.ReLU())) == "not-parametrized"
    assert code(Small(), include=["nothing"]) == "not-parametrized"
    assert code(Small(), include=["("]) == "option"
    assert code(nn.Sequential(nn.Embedding(5, 4, padding_idx=0))) == "option"
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    tied[1].weight = tied[0].weight
    assert code(tied) == "tied-weights"
    assert not any(hasattr(layer, "parametrizations") for layer in tied)
    parametrize_weights(changed := Small(), num_basis=4)
    assert code(changed) == "parametrized"
    parametrize_network(network := Small(), num_basis=4)
    assert code(network) == "not-parametrized"  # all of it is


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    def code(network: nn.Module) -> str:
        with pytest.raises(EncodeError) as caught:
            save(network, tmp_path / "net.nola")
        assert not (tmp_path / "net.nola").exists()
        return caught.value.code

    assert code(Small()) == "not-parametrized"
    assert code(NolaParameter((3, 3))) == "not-parametrized"
    assert code(nn.Sequential(NolaLinear(3, 3), NolaLinear(3, 3))) == "ensembles"
    twice = NolaLinear(3, 3)
    assert code(nn.ModuleDict({"a": twice, "b": twice})) == "tied-weights"
    broken = nn.Sequential(NolaLinear(3, 3))
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
        broken[0].weight.coefficients_of_parts[0].fill_(torch.nan)
    assert code(broken) == "not-finite"


def test_layers_that_were_replaced_are_not_saved(tmp_path: Path) -> None:
    own = TensorGroup()
    network = nn.Sequential(NolaLinear(5, 5, group=own), NolaLinear(5, 5, group=own))
    network[0].weight.coefficients_of_parts[0].data.mul_(1e3)
    network[0] = nn.Identity()
    save(network, tmp_path / "net.nola")
    state = state_of(tmp_path / "net.nola")
    assert list(state) == ["1.weight", "1.bias"]
    assert torch.equal(network.eval()[1].weight(), state["1.weight"])


def test_a_tensor_that_moves_the_common_exponent_is_noticed_by_the_others(tmp_path: Path) -> None:
    own = TensorGroup()
    network = nn.Sequential(NolaLinear(40, 40, group=own), NolaLinear(40, 40, group=own)).eval()
    before = network[0].weight()
    with torch.no_grad():
        for values in network[1].weight.coefficients_of_parts:
            values.mul_(6.0)
    after = network[0].weight()
    save(network, tmp_path / "net.nola")
    assert torch.equal(after, state_of(tmp_path / "net.nola")["0.weight"])
    assert not torch.equal(after, before)  # else this shows nothing


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 4}, {"num_basis": 8}, {"rank": 3}, {"form": "pranc"}, {"seed": 5},
        {"basis": "uniform"},
        {"shared_basis": True, "rank": 1},
    ],
)  # fmt: skip
def test_files_of_other_options_are_refused(other: dict[str, Any], tmp_path: Path) -> None:
    save(Built(), tmp_path / "net.nola")
    network = Built(**other)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(EncodeError) as caught:
        load(network, tmp_path / "net.nola")
    assert caught.value.code == "not-trained"
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    def code(network: nn.Module) -> str:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(EncodeError) as caught:
            load(network, tmp_path / "net.nola")
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], value) for key, value in after.items())
        return caught.value.code

    save(nn.Sequential(NolaLinear(4, 3)), tmp_path / "net.nola")
    assert code(nn.Sequential(nn.Linear(4, 4))) == "not-trained"
    assert code(nn.Sequential(nn.ReLU())) == "not-trained"
    assert code(nn.Sequential(nn.Linear(4, 3, bias=False))) == "not-trained"
    assert code(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))) == "not-trained"
    assert code(nn.Sequential(NolaLinear(4, 3), nn.Linear(3, 3))) == "not-trained"
    wide = nn.Sequential(nn.Linear(4, 3))
    wide[0].bias = nn.Parameter(torch.zeros(5))
    assert code(wide) == "not-trained"
    half = nn.Sequential(nn.Linear(4, 3))
    half[0].bias = nn.Parameter(torch.zeros(3).half())
    assert code(half) == "not-trained"
    tied = nn.Sequential(nn.Linear(4, 3))
    tied.register_module("again", tied[0])
    assert code(tied) == "tied-weights"


CONFIGS: dict[str, Any] = {
    "not a map": 3,
    "of another tensor": {"elsewhere": [54]},
    "of a carried tensor": {"norm.weight": [6]},
    "not a shape": {"conv.weight": "6, 2, 3, 3"},
    "a product that differs": {"conv.weight": [6, 2, 3, 4]},
    "negative twice": {"conv.weight": [-6, -2, 3, 3]},
    "not integers": {"conv.weight": [6.0, 2, 3, 3]},
    "truth values": {"conv.weight": [True, 108]},
    "nine dimensions": {"conv.weight": [108, 1, 1, 1, 1, 1, 1, 1, 1]},
    "overflow": {"conv.weight": [2**63, 2, 54]},
    "nothing": {"conv.weight": []},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file whose convolution has a shape in the configuration."""
    path = tmp_path_factory.mktemp("network") / "net.nola"
    save(parametrized(), path)
    return path.read_bytes()


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_shapes_are_refused(case: str, file: bytes, tmp_path: Path) -> None:
    parts = split(file)
    assert parts.top["config"] == {"shapes": {"conv.weight": [6, 2, 3, 3]}}
    parts.top["config"] = {"shapes": CONFIGS[case]}
    data = join(parts)
    for act in (
        lambda: nola_codec.decode(data, tmp_path / "out.safetensors"),
        lambda: nola_codec.load(data).state_dict(),
        lambda: load(Small(), data),
        lambda: load(parametrized(), data),
    ):
        with pytest.raises(AdapterError, match="shapes") as caught:
            act()
        assert caught.value.code == "bad-config"
    assert not (tmp_path / "out.safetensors").exists()


def test_missing_shapes_leave_the_matrix(file: bytes) -> None:
    parts = split(file)
    parts.top["config"] = None
    with nola_codec.load(join(parts)) as opened:
        assert opened.state_dict()["conv.weight"].shape == (9, 12)
    with pytest.raises(EncodeError) as caught:
        load(parametrized(), join(parts))
    assert caught.value.code == "not-trained"


def test_another_matrix_than_a_network_makes_is_refused(tmp_path: Path) -> None:
    """A tensor may be cut into other factors by who builds a network; plain ones are cut as they stand."""
    network = nn.ModuleDict({"w": NolaParameter((9, 12), matrix=(4, 27), num_basis=5)})
    save(network, tmp_path / "net.nola")
    again = nn.ModuleDict({"w": NolaParameter((9, 12), matrix=(4, 27), num_basis=5)})
    load(again, tmp_path / "net.nola")
    assert torch.equal(again.eval()["w"](), state_of(tmp_path / "net.nola")["w"])  # type: ignore[operator]
    plain = nn.Module()
    plain.w = nn.Parameter(torch.zeros(9, 12))
    with pytest.raises(EncodeError, match="another matrix") as caught:
        load(plain, tmp_path / "net.nola")
    assert caught.value.code == "not-trained"
    assert plain.w is plain._parameters["w"]


@pytest.mark.parametrize(("field", "value"), [(2, 2), (3, 2.0), (4, 1)])
def test_factors_that_are_no_plain_product_are_refused(field: int, value: object, file: bytes) -> None:
    parts = split(file)
    parts.top["kinds"][0][field] = value  # layout, scaling, fan_in_fan_out
    with nola_codec.load(join(parts)) as opened, pytest.raises(AdapterError) as caught:
        opened.state_dict()
    assert caught.value.code == "not-expressible"


def test_products_that_are_too_large_are_refused() -> None:
    tall = LoraModule("w", np.zeros((1, 1 << 16), np.float32), np.zeros(((1 << 15) + 1, 1), np.float32), (), (), 1.0)
    with pytest.raises(AdapterError) as caught:
        parameters.PARAMETERS.tensors(Adapter("parameters", (tall,)))
    assert caught.value.code == "limit"
    with pytest.raises(AdapterError, match="together") as caught:
        parameters.tensor_shapes(None, {str(i): (1 << 15, 1 << 16) for i in range(9)})
    assert caught.value.code == "limit"


def test_it_is_no_adapter(file: bytes, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(file, tmp_path / "out", format="peft")
    assert caught.value.code == "not-expressible"
    save_file(Small().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(file, tmp_path / "merged.safetensors", base=tmp_path / "model.safetensors")
    assert caught.value.code == "merge-network"
    with nola_codec.load(file) as opened, pytest.raises(AdapterError) as caught:
        opened.merge_into(Small())
    assert caught.value.code == "merge-network"
    with open_source(tmp_path / "model.safetensors") as source:
        assert not parameters.PARAMETERS.detect(source)
        with pytest.raises(AdapterError) as caught:
            parameters.PARAMETERS.read_source(source)
    assert caught.value.code == "foreign-dialect"


def test_two_networks_can_be_compared(file: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.nola").write_bytes(file)
    network = load(Small(), file)
    train(network)
    save(network, tmp_path / "two.nola")
    assert nola_codec.compare(tmp_path / "one.nola", tmp_path / "one.nola").nmse == 0
    assert nola_codec.compare(tmp_path / "one.nola", tmp_path / "two.nola").nmse > 0
