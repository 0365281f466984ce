"""Decoded adapters against PEFT: the same keys, the same logits; merged weights of one rounding each."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nola_codec

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT of Transformers
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern:RuntimeWarning"),
]

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "rslora and patterns": {
        "use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3},
    },
    "gpt2, fan in fan out": {"family": "gpt2", "targets": ("c_attn", "c_proj"), "fan_in_fan_out": True},
    "embedding": {"targets": ("embed_tokens", "q_proj")},
    "tied, layers only": {"tie": True},
    "paper form": {"encode": {"bits": 8}},
    "another rank": {"encode": {"bits": 8, "rank": 2}},
}  # fmt: skip


def with_peft(case: Any, directory: Path) -> Any:
    """The base model with a decoded adapter on, loaded as a user would; PEFT warns of missing or unexpected keys."""
    from peft import PeftModel

    return PeftModel.from_pretrained(case.fresh(), directory)


@pytest.mark.parametrize("name", CASES)
def test_peft_and_both_merges_agree(name: str, make_case: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    case = make_case(**CASES[name])
    nola_codec.decode(case.encoded, tmp_path / "decoded")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = with_peft(case, tmp_path / "decoded")
    wanted = case.logits(adapted)
    assert (wanted - case.logits(case.fresh())).abs().max() > 1e-2  # the adapter does something
    nola_codec.decode(case.encoded, tmp_path / "merged", base=case.base)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    in_place = case.fresh()
    with nola_codec.load(case.encoded) as opened:
        opened.merge_into(in_place)
    for model in (merged, in_place):
        torch.testing.assert_close(case.logits(model), wanted, atol=2e-5, rtol=2e-5)
    ours, theirs = in_place.state_dict(), merged.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key  # two roads, the same bits


def test_the_keys_are_those_of_the_source(make_case: Callable[..., Any], tmp_path: Path) -> None:
    case = make_case()
    nola_codec.decode(case.encoded, tmp_path / "decoded")
    source = load_file(case.adapter / "adapter_model.safetensors")
    decoded = load_file(tmp_path / "decoded" / "adapter_model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in source.items()} == {k: (v.shape, v.dtype) for k, v in decoded.items()}
    assert json.loads((tmp_path / "decoded" / "adapter_config.json").read_text()) == json.loads(
        (case.adapter / "adapter_config.json").read_text()
    )
    with nola_codec.load(case.encoded) as opened:
        state = opened.state_dict()
    assert state.keys() == decoded.keys()
    assert all(torch.equal(state[key], decoded[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_gets_one_rounding(dtype: torch.dtype, make_case: Callable[..., Any], tmp_path: Path) -> None:
    case = make_case(dtype=dtype)
    nola_codec.decode(case.encoded, tmp_path / "merged", base=case.base)
    merged, base = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", case.base))
    in_place = case.fresh()
    with nola_codec.load(case.encoded) as opened:
        opened.merge_into(in_place)
        targets = {n.removeprefix("base_model.model.") + ".weight": n for n in opened.names()}
        factors = {n: opened.factors(n) for n in opened.names()}
        scalings = {r.name: r.kind.scaling for r in opened.header.pairs}
    state = in_place.state_dict()
    assert len(targets) == 6
    for key, before in base.items():
        assert merged[key].dtype == dtype
        assert torch.equal(merged[key], state[key])
        if key not in targets:
            assert torch.equal(merged[key], before)
            continue
        lora_A, lora_B = factors[targets[key]]
        exact = before.double() + scalings[targets[key]] * (lora_B.double() @ lora_A.double())
        # The nearest of its neighbours in the narrow type, by exact distances.
        bits = merged[key].view(torch.int16)
        away = (merged[key].double() - exact).abs()
        for step in (-1, 1):
            other = (bits + step).view(dtype).double()
            assert (away <= (other - exact).abs()).all()
        assert not torch.equal(merged[key], before)


def test_an_adapter_on_one_of_two_tied_embeddings(make_case: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    case = make_case(targets=("lm_head", "q_proj"), tie=True)
    nola_codec.decode(case.encoded, tmp_path / "decoded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that merging tied weights is delicate: that is the point
        wanted = case.logits(with_peft(case, tmp_path / "decoded"))
    nola_codec.decode(case.encoded, tmp_path / "merged", base=case.base)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(case.logits(merged), wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_base_that_does_not_fit_is_told_all_and_left_alone(
    in_memory: bool, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    case = make_case()
    other = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    other.save_pretrained(tmp_path / "other")
    with nola_codec.load(case.encoded) as opened:
        merge = partial(opened.merge_into, other) if in_memory else partial(
            nola_codec.decode, case.encoded, tmp_path / "merged", base=tmp_path / "other"
        )  # fmt: skip
        with pytest.raises(nola_codec.AdapterError) as caught:
            merge()
    assert caught.value.code == "base-mismatch"
    for layer in (0, 1):
        for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            assert f"model.layers.{layer}.{path}" in str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in other.state_dict().items())
    assert not (tmp_path / "merged").exists()


def test_carried_tensors_are_merged_in_memory(make_case: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    case = make_case(modules_to_save=["lm_head"])
    model = case.fresh()
    torch.nn.init.zeros_(model.lm_head.weight)  # the adapter brings its own
    nola_codec.decode(case.encoded, tmp_path / "merged", base=case.base)
    with nola_codec.load(case.encoded) as opened:
        assert "base_model.model.lm_head.weight" in opened.state_dict()
        opened.merge_into(model)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in model.state_dict().items())


def test_an_activated_lora_is_refused_in_memory(make_case: Callable[..., Any]) -> None:
    case = make_case(alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM")
    model = case.fresh()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    with nola_codec.load(case.encoded) as opened, pytest.raises(nola_codec.AdapterError) as caught:
        opened.merge_into(model)
    assert caught.value.code == "merge-alora"
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())


def test_the_base_inside_a_model_of_peft(make_case: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    case = make_case(modules_to_save=["lm_head"])
    plain, wrapped = case.fresh(), get_peft_model(
        case.fresh(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    )  # fmt: skip
    state = wrapped.state_dict()
    own = {name: weight.clone() for name, weight in state.items() if "lora_" in name or ".default." in name}
    with nola_codec.load(case.encoded) as opened:
        opened.merge_into(plain)
        opened.merge_into(wrapped)
    merged = wrapped.state_dict()
    assert all(torch.equal(merged[name], weight) for name, weight in own.items())
    kept = ("base_model.model.", ".base_layer", ".original_module")
    found = {}
    for name, weight in merged.items():
        if name not in own:
            found[functools.reduce(lambda text, part: text.replace(part, ""), kept, name)] = weight
    wanted = plain.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


@pytest.mark.slow
def test_the_real_adapter_on_the_real_base(examples: Path, smollm2_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    encoded, report = nola_codec.encode_bytes(examples / "smollm2_e2e", size="20KB")
    assert report.bytes <= 20_000
    nola_codec.decode(encoded, tmp_path / "decoded")
    base = AutoModelForCausalLM.from_pretrained(smollm2_base, dtype=torch.float32)
    tokens = torch.tensor([[1, 42, 4093, 198, 512, 777, 30, 2]])
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "decoded").eval()
        wanted = adapted(input_ids=tokens).logits
        plain = adapted.unload()
        with nola_codec.load(encoded) as opened:
            opened.merge_into(plain)
        found = plain(input_ids=tokens).logits
    assert (wanted - before).abs().max() > 1
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-4)
