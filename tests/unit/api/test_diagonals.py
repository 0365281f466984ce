"""VeRA and RandLoRA of PEFT through a `.nola` file: equal by default, coded when asked, merged like PEFT does."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.adapters import dialect_of
from nola_codec.api.comparing import compare
from nola_codec.api.decoding import decode, verify
from nola_codec.api.encoding import encode, encode_bytes
from nola_codec.api.inspecting import inspect
from nola_codec.api.merging import merge, unmerge
from nola_codec.container.reader import open_container
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.rules import apply_rules
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.merger.arithmetic.deltas import OrderedProduct
from nola_codec.merger.merge_files import decode_source
from nola_codec.model.adapter import Adapter
from nola_codec.stores.safetensors_io import SafetensorsFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT of Transformers
    pytest.mark.filterwarnings("ignore:Specified to not:UserWarning"),  # PEFT, of seeds
]

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "VeRA": ("llama", "VERA", {}),
    "RandLoRA": ("llama", "RANDLORA", {"randlora_alpha": 16}),
    "RandLoRA, sparse": ("llama", "RANDLORA", {"randlora_alpha": 12, "sparse": True}),
    "VeRA of Conv1D": ("gpt2", "VERA", {"fan_in_fan_out": True}),
    "RandLoRA of Conv1D": ("gpt2", "RANDLORA", {"randlora_alpha": 16, "fan_in_fan_out": True}),
}
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj", "up_proj"], "gpt2": ["c_attn", "c_proj", "c_fc"]}


def combined_deltas(adapter: Adapter) -> Any:
    return dialect_of(adapter).combined_deltas(adapter)


@dataclass(frozen=True)
class Trained:
    """A base model, a trained adapter of it in PEFT, and both as files."""

    model: Any
    tuned: Any
    base: Path
    adapter: Path

    def logits(self, model: Any) -> torch.Tensor:
        tokens = torch.arange(24).reshape(2, 12) % 40
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=tokens).logits
        return logits


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """`train(family, method, r=, dtype=, **options)`."""

    def make(family: str, method: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Trained:
        from peft import RandLoraConfig, VeraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        if family == "gpt2":
            config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
                                eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # fmt: skip
            model: Any = GPT2LMHeadModel(config).to(dtype)
        else:
            model = LlamaForCausalLM(
                LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
                            max_position_embeddings=32, num_attention_heads=4, num_key_value_heads=2)
            ).to(dtype)  # fmt: skip
        model.save_pretrained(tmp_path / "base")
        kind = {"VERA": VeraConfig, "RANDLORA": RandLoraConfig}[method]
        wanted = kind(**{"r": 6, "target_modules": TARGETS[family], "projection_prng_key": 11, **options})
        tuned = get_peft_model(copy.deepcopy(model), wanted)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * 0.3)
        tuned.save_pretrained(tmp_path / "adapter")
        return Trained(model, tuned, tmp_path / "base", tmp_path / "adapter")

    return make


def tensors(directory: Path) -> dict[str, Any]:
    with SafetensorsFile(directory / "adapter_model.safetensors") as file:
        return {key: file.read(key) for key in file.tensors}


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_equal(train: Callable[..., Trained], tmp_path: Path, kind: str, save: bool) -> None:
    from peft import PeftModel

    family, method, options = KINDS[kind]
    case = train(family, method, save_projection=save, **options)
    report = encode(case.adapter, tmp_path / "a.nola")
    assert (report.nmse, report.effective_error, report.objective, report.tensors) == (0, None, "nmse", ())
    assert "the diagonals are carried exact" in report.notes[0]
    assert verify(tmp_path / "a.nola")["tensors"] == len(tensors(case.adapter))
    decode(tmp_path / "a.nola", tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(case.adapter)
    again = PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path / "out")
    assert torch.equal(case.logits(again), case.logits(case.tuned))
    assert not torch.equal(case.logits(again), case.logits(case.model))
    with nola_codec.load(tmp_path / "a.nola", verify=True) as opened:
        state = opened.state_dict()
    assert {k: v.numpy().tobytes() for k, v in state.items()} == {k: t.data for k, t in tensors(case.adapter).items()}


def test_the_matrices_take_no_bytes(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "RANDLORA")
    encode(case.adapter, tmp_path / "a.nola")
    facts = inspect(tmp_path / "a.nola")
    drawn = [t for t in facts.tensors if t.record == "drawn"]
    assert {t.name for t in drawn} == {k for k in tensors(case.adapter) if k.endswith(("_A", "_B"))}
    assert all((t.bytes, t.seed, t.dtype) == (0, 11, "F32") for t in drawn)
    carried = sum(len(t.data) for k, t in tensors(case.adapter).items() if not k.endswith(("_A", "_B")))
    assert facts.parameters == carried // 4
    assert facts.bytes < carried + 1500 < sum(len(t.data) for t in tensors(case.adapter).values()) / 4


RATES: list[dict[str, Any]] = [
    {"nmse": 0.02}, {"error": 0.1}, {"size": 2400}, {"bits": 4}, {"nmse": 0.05, "rungs": (1100,)}
]  # fmt: skip


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("kind", ["VeRA", "RandLoRA"])
def test_a_rate_codes_the_diagonals(train: Callable[..., Trained], tmp_path: Path, kind: str, rate: Any) -> None:
    """The report's NMSE is that of the deltas themselves."""
    from peft import PeftModel

    family, method, options = KINDS[kind]
    case = train(family, method, r=16, **options)
    data, report = encode_bytes(case.adapter, tmp_path / "a.nola", **rate)
    assert (report.form, report.objective) == ("factor" if "bits" in rate else "component", "nmse")
    assert any("errors are measured on deltas" in note for note in report.notes)
    assert len(report.tensors) == 16
    for name, limit in (("nmse", report.nmse), ("error", report.nmse), ("size", len(data))):
        assert limit <= rate.get(name, limit)
    verify(tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "out")
    lost, energy = 0.0, 0.0
    first, second = (combined_deltas(nola_codec.adapters.read(p)) for p in (case.adapter, tmp_path / "out"))
    read = [nola_codec.adapters.read(p) for p in (case.adapter, tmp_path / "out")]
    for mine, other in zip(first, second, strict=True):
        one, two = (c.combine({v.name: v.values for v in r.vectors}) for c, r in zip((mine, other), read, strict=True))
        lost, energy = lost + float(np.square(one - two).sum()), energy + float(np.square(one).sum())
    assert report.nmse == pytest.approx(lost / energy, rel=1e-6)
    assert 0 < report.nmse == pytest.approx(compare(case.adapter, tmp_path / "a.nola").nmse, rel=1e-6)
    PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path / "out")


@pytest.mark.parametrize("kind", ["VeRA", "RandLoRA"])
def test_without_the_matrices_errors_are_those_of_the_diagonals(train: Callable[..., Trained], kind: str) -> None:
    family, method, options = KINDS[kind]
    case = train(family, method, r=16, save_projection=False, **options)
    _, report = encode_bytes(case.adapter, nmse=0.05)
    assert report.nmse <= 0.05
    assert any("matrices such as PEFT draws" in note for note in report.notes)
    # Both diagonals of a layer lose a part of one delta: their errors add up.
    energies = {t.name: t.energy for t in report.tensors}
    for name in energies:
        if name.endswith("vera_lambda_b"):
            assert energies[name] == pytest.approx(energies[name.replace("lambda_b", "lambda_d")])


@pytest.mark.parametrize("rate", [{"nmse": 0.01}, {"nmse": 0.5}], ids=str)
@pytest.mark.parametrize("kind", ["VeRA", "RandLoRA"])
def test_untrained_diagonals_lose_nothing(train: Callable[..., Trained], kind: str, rate: Any) -> None:
    """As PEFT begins: one diagonal is zero, and so are all deltas, but not the other diagonal."""
    family, method, options = KINDS[kind]
    case = train(family, method, r=16, **options)
    file, end = case.adapter / "adapter_model.safetensors", {"VeRA": "_lambda_b", "RandLoRA": "_lambda"}[kind]
    values = load_file(file)
    assert any(name.endswith(end) for name in values)
    save_file({name: value * (not name.endswith(end)) for name, value in values.items()}, file)
    _, report = encode_bytes(case.adapter, **rate)
    assert report.nmse == 0
    assert any("all its deltas are zero" in note for note in report.notes)


def test_large_deltas_are_estimated(train: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    case = train("llama", "VERA", r=16)
    _, measured = encode_bytes(case.adapter, bits=4)
    monkeypatch.setattr("nola_codec.adapters.dialects.diagonals._MOST_PRODUCTS", 16 * 40 * 16 - 1)
    _, estimated = encode_bytes(case.adapter, bits=4)
    assert any("of 8 deltas are estimated from their diagonals" in note for note in estimated.notes)
    assert estimated.nmse == pytest.approx(measured.nmse, rel=0.3)


def test_an_exact_file_equals_its_adapter_in_comparison(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "VERA")
    encode(case.adapter, tmp_path / "a.nola")
    found = compare(case.adapter, tmp_path / "a.nola")
    assert (found.nmse, found.same_structure, len(found.tensors)) == (0, True, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bits": 4, "rank": 2}, "rank of VeRA"), ({"objective": "effective"}, "by the NMSE"),
     ({"importance": {"*": 2.0}, "size": 2000}, "by the NMSE")],
)  # fmt: skip
def test_options_of_low_rank_factors_are_refused(
    train: Callable[..., Trained], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        encode(train("llama", "VERA").adapter, **options)
    assert caught.value.code == "option"


def test_a_lone_file_has_no_place_for_the_configuration(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "VERA")
    encode(case.adapter, tmp_path / "a.nola")
    with pytest.raises(AdapterError, match="write a directory") as caught:
        decode(tmp_path / "a.nola", tmp_path / "lone.safetensors")
    assert caught.value.code == "needs-directory"
    with pytest.raises(AdapterError, match="keys look like PEFT's VeRA") as caught:
        encode((case.adapter / "adapter_model.safetensors").read_bytes())
    assert caught.value.code == "foreign-dialect"
    with pytest.raises(AdapterError) as caught:
        decode(tmp_path / "a.nola", tmp_path / "k", format="kohya")
    assert caught.value.code == "not-expressible"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_merges_are_pefts(train: Callable[..., Trained], tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    family, method, options = KINDS[kind]
    case = train(family, method, dtype=dtype, **options)
    encode(case.adapter, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    in_memory = copy.deepcopy(case.model)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(in_memory)
    merged = type(case.model).from_pretrained(tmp_path / "merged", dtype=dtype).state_dict()
    base, theirs = case.model.state_dict(), copy.deepcopy(case.tuned).float().merge_and_unload().state_dict()
    changed = 0
    for name, weight in merged.items():
        assert torch.equal(weight, in_memory.state_dict()[name]), name
        changed += not torch.equal(weight, base[name])
        step = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
        assert torch.allclose(weight.float(), theirs[name].float(), rtol=2 * step, atol=2 * step), name
    assert changed == 8


def test_merged_bits_are_those_of_the_specification(train: Callable[..., Trained], tmp_path: Path) -> None:
    """The formulas of the section "delta_W and merging", one number at a time."""
    for kind in ("VeRA", "RandLoRA"):
        family, method, options = KINDS[kind]
        case = train(family, method, **options)
        encode(case.adapter, tmp_path / f"{method}.nola")
        file = decode_source(tmp_path / f"{method}.nola", None, "cpu")
        with nola_codec.load(tmp_path / f"{method}.nola") as opened:
            values = {key: tensor.numpy().astype(np.float64) for key, tensor in opened.state_dict().items()}
        for end, shape in (("self_attn.v_proj", (8, 16)), ("mlp.up_proj", (40, 16)), ("mlp.down_proj", (16, 40))):
            name = f"base_model.model.model.layers.1.{end}"
            made = file.delta(name, shape, transposed=False).rows(0, shape[0])
            assert made.tobytes() == by_hand(values, name, shape, method).tobytes()
            turned = file.delta(name, shape[::-1], transposed=True)
            assert np.concatenate([turned.rows(i, i + 1) for i in range(shape[1])]).tobytes() == made.T.tobytes()


def by_hand(values: dict[str, Any], name: str, shape: tuple[int, int], method: str) -> Any:
    """delta_W (out, in) in Python's floats."""
    if method == "VERA":
        a, b = values["base_model.vera_A"].tolist(), values["base_model.vera_B"].tolist()
        first, second = (values[f"{name}.vera_lambda_{end}"].tolist() for end in "bd")
        return np.array(
            [[total((first[p] * b[p][k]) * (second[k] * a[k][q]) for k in range(6)) for q in range(shape[1])]
             for p in range(shape[0])]
        )  # fmt: skip
    a, b = values["base_model.randlora_A"].tolist(), values["base_model.randlora_B"].tolist()
    scales, gamma = (values[f"{name}.randlora_{end}"].tolist() for end in ("lambda", "gamma"))
    bases = len(gamma)

    def term(p: int, q: int, k: int) -> float:
        i, n = divmod(k, bases)
        right: float = (scales[i][n] * a[i][0][q]) * gamma[n][q]
        left: float = b[p][k // 6][k % 6]
        return left * right

    larger, smaller = max(shape), min(shape)
    made = np.array([[total(term(p, q, k) for k in range(6 * bases)) * (16 / 6) for q in range(smaller)]
                     for p in range(larger)])  # fmt: skip
    return made if shape[0] >= shape[1] else np.ascontiguousarray(made.T)


def total(terms: Any) -> float:
    """Upwards, one rounding each: what sum() does not promise."""
    result = 0.0
    for each in terms:
        result += each
    return result


def test_a_delta_alone(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "RANDLORA", randlora_alpha=16)
    encode(case.adapter, tmp_path / "a.nola")
    with nola_codec.load(tmp_path / "a.nola") as opened:
        name = "model.layers.0.mlp.down_proj"
        made = opened.delta_weight(name, (16, 40))
        theirs = dict(case.tuned.named_modules())[f"base_model.model.{name}"].get_delta_weight("default")
        assert torch.allclose(made, theirs, atol=1e-5)
        for wrong, shape, code in (
            (name, None, "needs-shape"), (name, (16, 41), "bad-shape"), ("model.nothing", (1, 1), "unknown-name")
        ):  # fmt: skip
            with pytest.raises(AdapterError) as caught:
                opened.delta_weight(wrong, shape)
            assert caught.value.code == code


@pytest.mark.parametrize("rate", [{}, {"bits": 4}])
@pytest.mark.parametrize("kind", ["VeRA", "RandLoRA"])
def test_nothing_is_merged_without_the_matrices(
    train: Callable[..., Trained], tmp_path: Path, kind: str, rate: dict[str, Any]
) -> None:
    family, method, options = KINDS[kind]
    case = train(family, method, save_projection=False, **options)
    encode(case.adapter, tmp_path / "a.nola", **rate)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        attempts: list[Callable[[], Any]] = [
            lambda: decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base),
            lambda: opened.merge_into(copy.deepcopy(case.model)),
            lambda: opened.delta_weight("model.layers.0.mlp.down_proj", (16, 40)),
        ]
        for attempt in attempts:
            with pytest.raises(AdapterError, match="save the adapter with save_projection=True") as caught:
                attempt()
            assert caught.value.code == "merge-projections"
    assert not (tmp_path / "merged").exists()


def test_a_model_of_other_shapes_is_refused(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "VERA")
    encode(case.adapter, tmp_path / "a.nola")
    other = train("llama", "VERA")
    other.model.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 41, bias=False)
    before = {name: weight.clone() for name, weight in other.model.state_dict().items()}
    with nola_codec.load(tmp_path / "a.nola") as opened, pytest.raises(AdapterError, match="up_proj") as caught:
        opened.merge_into(other.model)
    assert caught.value.code == "base-mismatch"
    assert all(torch.equal(before[name], weight) for name, weight in other.model.state_dict().items())


def test_coded_diagonals_merge_and_unmerge_beside_a_second_file(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "VERA", r=16)
    encode(case.adapter, tmp_path / "a.nola", nmse=0.02)
    encode(case.adapter, tmp_path / "b.nola")
    sources: list[Any] = [(tmp_path / "a.nola", 0.5), (tmp_path / "b.nola", 0.25)]
    merge(sources, case.base, tmp_path / "merged", keep_undo=True, piece_bytes=100)
    merge(sources, case.base, tmp_path / "again")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "again")]
    assert hashlib.sha256(weights[0]).digest() == hashlib.sha256(weights[1]).digest()
    unmerge(sources, tmp_path / "merged", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (case.base / "model.safetensors").read_bytes()


def test_a_head_saved_beside_is_merged(train: Callable[..., Trained], tmp_path: Path) -> None:
    case = train("llama", "VERA", modules_to_save=["lm_head"])
    encode(case.adapter, tmp_path / "a.nola")
    decode(tmp_path / "a.nola", tmp_path / "merged", base=case.base)
    merged = type(case.model).from_pretrained(tmp_path / "merged")
    assert torch.allclose(case.logits(merged), case.logits(case.tuned), atol=1e-5)
    in_place = copy.deepcopy(case.model)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(in_place)
    assert all(torch.equal(weight, merged.state_dict()[key]) for key, weight in in_place.state_dict().items())


def test_a_product_in_order_is_the_same_in_any_pieces() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((300, 9)), rng.standard_normal((9, 700))
    delta = OrderedProduct(left, right, 1.5, (300, 700))
    whole = delta.rows(0, 300)
    assert np.concatenate([delta.rows(i, min(300, i + 7)) for i in range(0, 300, 7)]).tobytes() == whole.tobytes()
    assert np.allclose(whole, left @ right * 1.5)


def test_a_hostile_configuration_is_an_error_of_the_package(train: Callable[..., Trained], tmp_path: Path) -> None:
    """The header's configuration is free form: what it lacks is said, not stumbled over."""
    case = train("llama", "RANDLORA")
    adapter = apply_rules(nola_codec.adapters.read(case.adapter), EncodeOptions())[0]
    for change in ({"r": None}, {"r": 0}, {"randlora_alpha": "x"}):
        with pytest.raises(AdapterError) as caught:
            combined_deltas(replace(adapter, config={**(adapter.config or {}), **change}))
        assert caught.value.code == "bad-config"
    short = {k: t for k, t in adapter.raw.items() if not k.endswith("randlora_gamma")}
    assert combined_deltas(replace(adapter, raw=short)) == ()


def test_opening_draws_nothing(train: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = train("llama", "VERA")
    encode(case.adapter, tmp_path / "a.nola")
    monkeypatch.setattr("nola_codec.prng.draws.mt19937_pieces", lambda *_: pytest.fail("drawn"))
    with open_container(tmp_path / "a.nola") as container:
        header = container.header
        assert [record.name for record in header.drawn] == ["base_model.vera_A", "base_model.vera_B"]
        assert len(header.sections) == 1 + len(header.raw)
