"""NOLA on PEFT's factors: training, files, plain adapters, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from training_support import evaluated, step, tiny

import nola_codec
from nola_codec.errors import EncodeError, NolaError
from nola_codec.training import CodedTensor, deparametrize, load, parametrize, parametrize_weights, save

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names
Make = Callable[..., Any]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "biases": {"bias": "lora_only"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
}


# Each kind and each width runs by default; the other combinations run with --slow.
_FAST = {("plain", None), ("biases", 4), ("dora", 1), ("rslora", 4), ("embedding", 1), ("head", 4)}


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        pytest.param(kind, bits, marks=() if (kind, bits) in _FAST else pytest.mark.slow)
        for kind in KINDS
        for bits in (None, 4, 1)
    ],
)
def test_what_is_evaluated_is_what_is_stored(
    kind: str, bits: int | None, make_adapter: Make, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = make_adapter(**KINDS[kind])
    parametrize(model, num_basis=24, bits=bits)
    first = model(input_ids=tokens, labels=tokens).loss.item()
    assert step(model, tokens) < first
    logits = evaluated(model, tokens)
    file = tmp_path / "a.nola"
    assert save(model, file) == file.stat().st_size
    nola_codec.verify(file)
    nola_codec.decode(file, tmp_path / "lora")
    reloaded = peft.PeftModel.from_pretrained(tiny(), tmp_path / "lora")
    assert torch.equal(evaluated(reloaded, tokens), logits)
    again = load(tiny(), file)
    assert torch.equal(evaluated(again, tokens), logits)
    save(again, tmp_path / "b.nola")
    assert (tmp_path / "b.nola").read_bytes() == file.read_bytes()
    plain = deparametrize(model)
    assert not any(isinstance(m, CodedTensor) for m in plain.modules())
    assert torch.equal(evaluated(plain, tokens), logits)
    assert step(plain, tokens, 2) < first  # and it trains on


def test_convolutions(tokens: torch.Tensor, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.conv(x).tanh().mean((2, 3))
            return made

    def net() -> Net:
        torch.manual_seed(0)
        return Net()

    model = peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["conv"]))
    parametrize(model, num_basis=10)
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        made = model.eval()(x)
    save(model, tmp_path / "a.nola")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "lora")
    with torch.no_grad():
        assert torch.equal(peft.PeftModel.from_pretrained(net(), tmp_path / "lora").eval()(x), made)


@pytest.mark.parametrize("basis", ["hadamard", "rademacher", "uniform"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_coefficient_has_the_gradient_of_dense_autograd(
    basis: str, shared: bool, make_adapter: Make, tokens: torch.Tensor
) -> None:
    model = make_adapter()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    group = parametrize(model, num_basis=20, basis=basis, shared_basis=shared)
    plain = make_adapter()
    factors = dict(plain.named_parameters())
    sides = {(side.record, side.index): side for side in group.sides}
    with torch.no_grad():
        for (name, index), side in sides.items():
            factors[f"{name}.lora_{'BA'[index or 0]}.default.weight"].copy_(side.tensor(side.coefficients))
    for each in (model, plain):
        each.train()
        each(input_ids=tokens, labels=tokens).loss.backward()
    for (name, index), side in sides.items():
        synthesis = side.tensor.synthesis
        dense = torch.stack([synthesis.forward(row) for row in torch.eye(synthesis.num_basis)])
        grad = factors[f"{name}.lora_{'BA'[index or 0]}.default.weight"].grad
        assert grad is not None
        assert side.coefficients.grad is not None
        torch.testing.assert_close(side.coefficients.grad[0], dense @ grad.reshape(-1), rtol=1e-3, atol=1e-7)
    assert (len({side.tensor.synthesis.key for side in group.sides}) < len(sides)) == shared


def test_gradients_add_up_over_batches(make_adapter: Make, tokens: torch.Tensor) -> None:
    model = make_adapter()
    group = parametrize(model, num_basis=12, bits=3)
    step(model, tokens, 2)
    model.zero_grad()
    for part in (tokens[:2], tokens[2:]):
        model(input_ids=part, labels=part).loss.backward()
    parts = [side.coefficients.grad.clone() for side in group.sides if side.coefficients.grad is not None]
    model.zero_grad()
    losses = [model(input_ids=part, labels=part).loss for part in (tokens[:2], tokens[2:])]
    (losses[0] + losses[1]).backward()
    whole = [side.coefficients.grad for side in group.sides]
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("fused", [False, True])
def test_every_step_uses_the_step_before(fused: bool, make_adapter: Make, tokens: torch.Tensor) -> None:
    """Fused optimizers do not touch the version of a tensor, by which a stale weight could be told."""
    model = make_adapter()
    group = parametrize(model, num_basis=12)
    step(model, tokens, 3, fused=fused)
    for side in group.sides:
        assert side.coefficients.grad is not None
        assert side.coefficients.grad.any()
    before = evaluated(model, tokens)
    step(model, tokens, 1, fused=fused)
    assert not torch.equal(evaluated(model, tokens), before)
    fresh = copy.deepcopy(model)
    assert torch.equal(evaluated(fresh, tokens), evaluated(model, tokens))


def test_evaluation_follows_a_change_of_any_tensor(make_adapter: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    """One tensor may move the exponent that all share; and what inference mode made serves outside it."""
    model = make_adapter()
    group = parametrize(model, num_basis=12)
    step(model, tokens)
    with torch.inference_mode():
        model.eval()(input_ids=tokens)
    embeds = torch.randn(1, 5, 48, requires_grad=True)
    model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None
    with torch.no_grad():
        group.sides[-2].coefficients.mul_(1000)
    logits = evaluated(model, tokens)
    save(model, tmp_path / "a.nola")
    assert torch.equal(evaluated(load(tiny(), tmp_path / "a.nola"), tokens), logits)


def test_a_bit_count_for_some_modules_alone(make_adapter: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = make_adapter()
    parametrize(model, num_basis={"0.self_attn.q_proj": 30, "q_proj": 10})
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(trained.values()) == [10, 10, 30, 30]
    step(model, tokens)
    logits = evaluated(model, tokens)
    save(model, tmp_path / "a.nola")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "lora")
    assert torch.equal(evaluated(peft.PeftModel.from_pretrained(tiny(), tmp_path / "lora"), tokens), logits)
    assert torch.equal(evaluated(load(tiny(), tmp_path / "a.nola"), tokens), logits)


def test_a_trained_adapter_is_projected(make_adapter: Make, tokens: torch.Tensor) -> None:
    model = make_adapter()
    step(model, tokens)
    logits = evaluated(model, tokens)
    parametrize(model, num_basis=10**6)  # as many coefficients as numbers: a rotation
    torch.testing.assert_close(evaluated(model, tokens), logits, rtol=1e-3, atol=1e-3)


def test_training_resumes_to_the_bit(make_adapter: Make, tokens: torch.Tensor) -> None:
    def fresh() -> tuple[Any, torch.optim.Optimizer]:
        model = make_adapter()
        parametrize(model, num_basis=16, bits=3)
        return model.train(), torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)

    def go(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    whole, half = fresh(), fresh()
    go(*whole, 8)
    go(*half, 4)
    state = copy.deepcopy((half[0].state_dict(), half[1].state_dict()))
    resumed = fresh()
    resumed[0].load_state_dict(state[0])
    resumed[1].load_state_dict(state[1])
    go(*resumed, 4)
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("method", "options"),
    [("LOHA", {}), ("LOKR", {}), ("FOURIERFT", {"n_frequency": 9}), ("ADALORA", {"total_step": 9}),
     ("VBLORA", {"num_vectors": 4, "vector_length": 4, "topk": 2})],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_other_methods_are_named(method: str, options: dict[str, Any]) -> None:
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[method](target_modules=["q_proj"], **options)
    with pytest.raises(EncodeError, match=f"an adapter of {method} cannot be trained through coefficients") as error:
        parametrize(peft.get_peft_model(tiny(), config))
    assert error.value.code == "not-peft"


def test_what_is_refused(make_adapter: Make, tmp_path: Path) -> None:
    def code(call: Callable[[], object]) -> str:
        with pytest.raises(NolaError) as error:
            call()
        return error.value.code

    assert code(lambda: parametrize(tiny())) == "not-peft"
    assert code(lambda: parametrize(make_adapter(), num_basis=0)) == "option"
    assert code(lambda: parametrize(make_adapter(), bits=9)) == "option"
    assert code(lambda: parametrize(make_adapter(), basis="dct")) == "option"
    assert code(lambda: parametrize(make_adapter(), seed=-1)) == "option"
    assert code(lambda: parametrize(make_adapter(), adapter="other")) == "not-peft"
    assert code(lambda: parametrize(make_adapter(), num_basis={"k_proj": 3})) == "not-parametrized"
    assert code(lambda: save(make_adapter(), tmp_path / "a.nola")) == "not-parametrized"
    assert code(lambda: deparametrize(make_adapter())) == "not-parametrized"
    model = make_adapter()
    group = parametrize(model, num_basis=8)
    assert code(lambda: parametrize(model, num_basis=8)) == "parametrized"
    save(model, tmp_path / "a.nola")
    assert code(lambda: save(model, tmp_path / "a.nola")) == "output-exists"
    other = make_adapter()
    parametrize(other, num_basis=9)
    assert code(lambda: load(other, tmp_path / "a.nola")) == "not-trained"
    moved = make_adapter()
    parametrize(moved, num_basis=8, seed=1)
    assert code(lambda: load(moved, tmp_path / "a.nola")) == "not-trained"
    with torch.no_grad():
        group.sides[0].coefficients[0, 0] = float("nan")
    assert code(lambda: save(model, tmp_path / "b.nola")) == "not-finite"
    assert not (tmp_path / "b.nola").exists()


def test_a_file_of_another_form_is_not_loaded(make_adapter: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = make_adapter()
    step(model, tokens)
    model.save_pretrained(tmp_path / "lora")
    nola_codec.encode(tmp_path / "lora", tmp_path / "a.nola")
    with pytest.raises(EncodeError, match="not a file of trained coefficients"):
        load(tiny(), tmp_path / "a.nola")


@pytest.mark.parametrize(
    ("kind", "bits", "saved"),
    [
        ("VERA", None, True),
        ("VERA", 4, False),
        ("RANDLORA", 4, True),
        pytest.param("VERA", None, False, marks=pytest.mark.slow),
        pytest.param("VERA", 4, True, marks=pytest.mark.slow),
        pytest.param("RANDLORA", None, True, marks=pytest.mark.slow),
        pytest.param("RANDLORA", None, False, marks=pytest.mark.slow),
        pytest.param("RANDLORA", 4, False, marks=pytest.mark.slow),
    ],
)
def test_diagonals_between_frozen_matrices(
    kind: str, bits: int | None, saved: bool, tokens: torch.Tensor, tmp_path: Path
) -> None:
    config = {"VERA": peft.VeraConfig, "RANDLORA": peft.RandLoraConfig}[kind]
    options = {"r": 8, "target_modules": ["q_proj", "up_proj"], "save_projection": saved}
    model = peft.get_peft_model(tiny(), config(**options))
    parametrize(model, num_basis=20, bits=bits)
    assert {p.numel() for p in model.parameters() if p.requires_grad} <= {20, 8}
    first = model(input_ids=tokens, labels=tokens).loss.item()
    assert step(model, tokens, 20) < first
    logits = evaluated(model, tokens)
    size = save(model, tmp_path / "a.nola")
    assert size < 3500  # the frozen matrices are not in it
    nola_codec.verify(tmp_path / "a.nola")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "adapter")
    assert torch.equal(evaluated(peft.PeftModel.from_pretrained(tiny(), tmp_path / "adapter"), tokens), logits)
    again = load(tiny(), tmp_path / "a.nola")
    assert torch.equal(evaluated(again, tokens), logits)
    save(again, tmp_path / "b.nola")
    assert (tmp_path / "b.nola").read_bytes() == (tmp_path / "a.nola").read_bytes()
    deparametrize(model)
    assert torch.equal(evaluated(model, tokens), logits)


def test_some_diagonals_alone(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny(), peft.VeraConfig(r=8, target_modules=["q_proj"]))
    parametrize(model, num_basis={"vera_lambda_b": 12})
    step(model, tokens, 12)
    logits = evaluated(model, tokens)
    save(model, tmp_path / "a.nola")
    carried = [t for t in nola_codec.inspect(tmp_path / "a.nola").tensors if t.record == "raw"]
    assert {t.name.rpartition(".")[2] for t in carried} == {"vera_lambda_d"}
    assert torch.equal(evaluated(load(tiny(), tmp_path / "a.nola"), tokens), logits)


def test_a_base_model_that_has_the_layers_already(tokens: torch.Tensor, tmp_path: Path) -> None:
    """get_peft_model changes the base model that it is given."""
    base = tiny()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    parametrize(model, num_basis=8)
    save(model, tmp_path / "a.nola")
    before = evaluated(model, tokens)
    for call in (lambda: load(base, tmp_path / "a.nola"), lambda: parametrize(base, num_basis=8)):
        with pytest.raises(EncodeError, match="use the PeftModel that it returned") as error:
            call()
        assert error.value.code == "not-peft"
    assert load(model, tmp_path / "a.nola") is model
    assert torch.equal(evaluated(model, tokens), before)
    deparametrize(model)
    with pytest.raises(EncodeError, match="load the base model anew"):
        load(base, tmp_path / "a.nola")


def test_a_coding_that_an_adapter_cannot_have(make_adapter: Make) -> None:
    for options in ({"rank": 4}, {"form": "pranc"}, {"initialization": "zeros"}):
        with pytest.raises(EncodeError, match=r"expected (no rank and no form|same-norm or least-squares)") as error:
            parametrize(make_adapter(), **options)  # type: ignore[arg-type]
        assert error.value.code == "option"


def test_another_basis_than_the_files(make_adapter: Make, tmp_path: Path) -> None:
    parametrize(model := make_adapter(), num_basis=8)
    save(model, tmp_path / "a.nola")
    for options, message in (({"basis": "uniform"}, "basis: expected 'hadamard'"), ({"shared_basis": True}, "shared")):
        parametrize(other := make_adapter(), num_basis=8, **options)  # type: ignore[arg-type]
        with pytest.raises(EncodeError, match=message) as error:
            load(other, tmp_path / "a.nola")
        assert error.value.code == "not-trained"


def test_changed_weights_are_not_made_plain(tmp_path: Path) -> None:
    parametrize_weights(model := torch.nn.Sequential(torch.nn.Linear(4, 4)), num_basis=3)
    with pytest.raises(EncodeError, match="only an adapter") as error:
        deparametrize(model)
    assert error.value.code == "not-peft"
    save(model, tmp_path / "a.nola")
    with pytest.raises(EncodeError, match="expected peft, found delta") as error:
        load(torch.nn.Sequential(torch.nn.Linear(4, 4)), tmp_path / "a.nola")
    assert error.value.code == "not-trained"
