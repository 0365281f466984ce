"""Merged directories of tiny models: equal to the base model with the adapter on, and to PEFT's merge where that is."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from nola_codec.adapters import read
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError, OutputExists
from nola_codec.merger.arithmetic.deltas import ComputedDelta, FactorDelta, RowDelta
from nola_codec.merger.matching import MergeTarget, Place
from nola_codec.merger.merged_model import write_merged_model
from nola_codec.merger.model_change import ModelChange
from nola_codec.merger.plan import MergePlan, combine_plans, plan_merge
from nola_codec.merger.request import MergeRequest
from nola_codec.merger.weight_counter import WeightCounter
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import write_file

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

IDS = torch.arange(12)[None]


def llama(**options: Any) -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attention_bias=True,
        pad_token_id=0,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    torch.manual_seed(4)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=24, n_positions=16, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def change_of(adapter: Adapter, plan: MergePlan) -> ModelChange:
    """The deltas of an adapter that is not encoded, in float64."""
    modules = {module.name: module for module in adapter.modules}

    def open_delta(name: str, shape: tuple[int, ...]) -> ComputedDelta:
        place = plan.places[name]
        module = modules[place.module]
        delta = module.scaling * (module.lora_B.astype(np.float64) @ module.lora_A.astype(np.float64))
        if place.transposed or module.layout == "embedding":
            delta = delta.T
        return ComputedDelta(lambda: delta, shape)

    return ModelChange(plan, open_delta)


def merged(
    base: Path, adapter_dir: Path, out: Path, counter: WeightCounter | None = None, *, overwrite: bool = False
) -> tuple[Path, MergePlan]:
    adapter, checkpoint = read(adapter_dir), Checkpoint(base)
    plan = plan_merge(checkpoint, map(MergeTarget.of, adapter.modules), adapter.raw, adapter.config)
    request = MergeRequest((), base, out, overwrite=overwrite)
    return write_merged_model(checkpoint, change_of(adapter, plan), request, counter).output, plan


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def assert_same_as_adapter(base: Path, adapter_dir: Path, out: Path) -> Any:
    """The merged directory computes what PEFT computes with the adapter on, unmerged."""
    wanted = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter_dir))
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    return model


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
def test_llama_single_and_sharded(shard_size: str, save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama().save_pretrained(base, max_shard_size=shard_size)
    (base / "tokenizer.json").write_text("{}")
    kept = {path.name for path in base.iterdir()}
    for name in ("pytorch_model.bin", "adapter_config.json", ".hidden"):
        (base / name).write_text("{}")
    _, adapter_dir = save_adapter(llama(), r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    seen: list[int] = []
    counter = WeightCounter(lambda stage, done, total: seen.append(done), "merging")
    out, plan = merged(base, adapter_dir, tmp_path / "merged", counter)
    for name in ("pytorch_model.bin", "adapter_config.json", ".hidden"):
        (base / name).unlink()
    assert_same_as_adapter(base, adapter_dir, out)
    assert {path.name for path in out.iterdir()} == kept
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert sorted(seen) == list(range(1, len(plan.places) + 1))
    before, after = Checkpoint(base), Checkpoint(out)
    assert before.weights == after.weights
    assert before.index == after.index
    assert (before.index is None) == (shard_size == "1GB")
    for name in before.weights:
        assert (before.read(name).data == after.read(name).data) == (name not in plan.places)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_gets_one_rounding(
    dtype: torch.dtype, save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    llama().to(dtype).save_pretrained(tmp_path / "base")
    wrapped, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"])
    out, plan = merged(tmp_path / "base", adapter_dir, tmp_path / "merged")
    before, after = (load_file(d / "model.safetensors") for d in (tmp_path / "base", out))
    for name, found in plan.places.items():
        assert after[name].dtype == dtype
        layer = wrapped.get_submodule(found.module)
        delta = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        total = before[name].double() + delta * layer.scaling["default"]
        torch.testing.assert_close(after[name].double(), total, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["lm_head", "c_proj"], ["wte"]])
def test_gpt2(bare: bool, targets: list[str], save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    gpt2().save_pretrained(base)
    if bare:  # as on the hub: names without `transformer.`
        gpt2().transformer.save_pretrained(tmp_path / "bare")
        (base / "model.safetensors").write_bytes((tmp_path / "bare" / "model.safetensors").read_bytes())
    # The flag is right for neither all modules nor none: the weights' own orientation must count.
    _, adapter_dir = save_adapter(gpt2(), r=2, lora_alpha=4, target_modules=targets)
    out, _ = merged(base, adapter_dir, tmp_path / "merged")
    assert_same_as_adapter(base, adapter_dir, out)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"], ["q_proj"]])
@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
def test_tied_embeddings_are_separated_when_changed(
    targets: list[str], shard_size: str, save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    llama(tie_word_embeddings=True).save_pretrained(base, max_shard_size=shard_size)
    assert "lm_head.weight" not in Checkpoint(base).weights
    _, adapter_dir = save_adapter(llama(tie_word_embeddings=True), r=2, lora_alpha=4, target_modules=targets)
    out, _ = merged(base, adapter_dir, tmp_path / "merged")
    model = assert_same_as_adapter(base, adapter_dir, out)
    untied = targets != ["q_proj"]
    assert model.config.tie_word_embeddings is not untied
    assert ("lm_head.weight" in Checkpoint(out).weights) is untied
    if shard_size == "4KB":
        index = json.loads((out / "model.safetensors.index.json").read_text())
        sizes = [t.numel() * 4 for shard in Checkpoint(out).shards for t in load_file(out / shard).values()]
        assert index["metadata"]["total_size"] == sum(sizes)


def test_a_stored_tie_is_broken(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = llama()
    model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    model.save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    _, adapter_dir = save_adapter(llama(tie_word_embeddings=True), r=2, target_modules=["lm_head"])
    out, _ = merged(base, adapter_dir, tmp_path / "merged")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert_same_as_adapter(base, adapter_dir, out)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["norm", "o_proj"]])
def test_modules_to_save_replace(tie: bool, saved: list[str], save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama(tie_word_embeddings=tie).save_pretrained(base)
    _, adapter_dir = save_adapter(llama(tie_word_embeddings=tie), r=2, target_modules=["q_proj"], modules_to_save=saved)
    out, plan = merged(base, adapter_dir, tmp_path / "merged")
    assert_same_as_adapter(base, adapter_dir, out)
    stored, trained = Checkpoint(out), read(adapter_dir).raw
    assert set(plan.replaced) == {key.removeprefix("base_model.model.") for key in trained}
    for key, tensor in trained.items():
        assert stored.read(key.removeprefix("base_model.model.")) == tensor


def test_replacements_keep_the_base_dtype_only_without_loss(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama().to(torch.bfloat16).save_pretrained(base)
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"], modules_to_save=["norm", "o_proj"])
    path = adapter_dir / "adapter_model.safetensors"
    tensors = dict(read(path).raw)
    adapter = read(adapter_dir)
    ones = np.ones(16, np.float32)
    raw = {k: replace(t, data=ones.tobytes()) if "norm" in k else t for k, t in tensors.items()}
    plan = plan_merge(Checkpoint(base), map(MergeTarget.of, adapter.modules), raw, adapter.config)
    assert plan.replaced["model.norm.weight"].dtype == "BF16"
    assert plan.replaced["model.layers.0.self_attn.o_proj.weight"].dtype == "F32"
    request = MergeRequest((), base, tmp_path / "merged")
    out = write_merged_model(Checkpoint(base), change_of(adapter, plan), request).output
    assert Checkpoint(out).weights["model.layers.0.self_attn.o_proj.weight"].dtype == "F32"


def test_a_new_head_is_added(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    base = tmp_path / "base"
    llama().save_pretrained(base, max_shard_size="4KB")
    model = LlamaForSequenceClassification(llama().config)
    _, adapter_dir = save_adapter(model, r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    out, _ = merged(base, adapter_dir, tmp_path / "merged")
    checkpoint = Checkpoint(out)
    assert checkpoint.read("score.weight") == read(adapter_dir).raw["base_model.model.score.weight"]
    assert checkpoint.index is not None
    assert checkpoint.index["weight_map"]["score.weight"] == checkpoint.shards[-1]


@pytest.mark.parametrize("options", [{"lora_bias": True}, {"bias": "lora_only"}, {"bias": "all"}])
def test_biases(options: dict[str, Any], save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama().save_pretrained(base)
    _, adapter_dir = save_adapter(llama(), r=2, lora_alpha=3, target_modules=["q_proj"], **options)
    out, _ = merged(base, adapter_dir, tmp_path / "merged")
    assert_same_as_adapter(base, adapter_dir, out)
    name = "model.layers.0.self_attn.q_proj.bias"
    assert Checkpoint(out).read(name) != Checkpoint(base).read(name)


def test_lora_bias_needs_a_bias(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["gate_proj"], lora_bias=True)
    with pytest.raises(AdapterError, match="no bias to add it to") as e:
        merged(tmp_path / "base", adapter_dir, tmp_path / "merged")
    assert e.value.code == "base-mismatch"


def test_misfits_of_modules_and_raw_tensors_are_listed(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"])
    with pytest.raises(AdapterError) as e:
        merged(tmp_path / "base", adapter_dir, tmp_path / "merged")
    assert e.value.code == "base-mismatch"
    assert str(e.value).count("no weight model.layers.") == 2
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"use_dora": True}, "merge-dora"),
        ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "merge-alora"),
        ({"trainable_token_indices": [1, 2]}, "merge-trainable-tokens"),
    ],
)
def test_what_cannot_be_merged_says_so(
    options: dict[str, Any], code: str, save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "base")
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"], **options)
    with pytest.raises(AdapterError) as e:
        merged(tmp_path / "base", adapter_dir, tmp_path / "merged")
    assert e.value.code == code


def test_tied_encoder_decoders_are_refused(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    config = T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    _, adapter_dir = save_adapter(T5ForConditionalGeneration(config), r=2, target_modules=["lm_head"])
    with pytest.raises(AdapterError) as e:
        merged(tmp_path / "base", adapter_dir, tmp_path / "merged")
    assert e.value.code == "tied-weights"


def test_quantized_weights_are_refused(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama().save_pretrained(base)
    checkpoint = Checkpoint(base)
    tensors = {name: checkpoint.read(name) for name in checkpoint.weights}
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = RawTensor("F8_E4M3", (16, 16), bytes(256))
    write_file(base / "model.safetensors", tensors)
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="F8_E4M3") as e:
        merged(base, adapter_dir, tmp_path / "merged")
    assert e.value.code == "quantized-base"


def test_nothing_is_overwritten_or_left_half_written(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    llama().save_pretrained(base)
    _, adapter_dir = save_adapter(llama(), r=2, target_modules=["q_proj"])
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    for overwrite in (False, True):  # not a model, so not replaced even when asked
        with pytest.raises(OutputExists):
            merged(base, adapter_dir, out, overwrite=overwrite)
    (out / "diary.txt").unlink()
    merged(base, adapter_dir, out)  # an empty directory is free
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputExists):
        merged(base, adapter_dir, out)
    merged(base, adapter_dir, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    adapter = read(adapter_dir)
    plan = plan_merge(Checkpoint(base), map(MergeTarget.of, adapter.modules))

    def broken(*_: Any) -> RowDelta:
        raise ValueError("no delta")

    change = ModelChange(plan, broken)
    with pytest.raises(ValueError, match="no delta"):
        write_merged_model(Checkpoint(base), change, MergeRequest((), base, out, overwrite=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert not [path for path in tmp_path.rglob(".*") if ".tmp" in path.name or ".partial" in path.name]
    for bad in (base, base / "inside", tmp_path):
        with pytest.raises(AdapterError) as e:
            write_merged_model(Checkpoint(base), change, MergeRequest((), base, bad, overwrite=True))
        assert e.value.code == "same-directory"


def test_memory_is_that_of_a_few_pieces(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    size = 1 << 23
    tensors = {f"w{i}.weight": RawTensor("F32", (8192, 256), bytes(size)) for i in range(4)}
    write_file(base / "model.safetensors", tensors)
    del tensors
    checkpoint = Checkpoint(base)
    plan = plan_merge(checkpoint, [MergeTarget("base_model.model.w0", "linear", (8192, 256))])
    left, right = np.ones((8192, 1), np.int16), np.ones((1, 256), np.int16)
    change = ModelChange(plan, lambda _, shape: FactorDelta(left, right, 1.0, 1.0, shape, 1.0))
    tracemalloc.start()
    write_merged_model(checkpoint, change, MergeRequest((), base, tmp_path / "out", piece_bytes=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size // 8


def place(weight: str) -> Place:
    return Place(weight, weight, weight, transposed=False)


ONE, OTHER = RawTensor("F32", (1,), bytes(4)), RawTensor("F32", (1,), b"\1\0\0\0")
CONFLICTS = {
    "replaced differently": (MergePlan({}, replaced={"head": ONE}), MergePlan({}, replaced={"head": OTHER})),
    "loaded differently": (MergePlan({}, reloaded={"norm": ONE}), MergePlan({}, reloaded={"norm": OTHER})),
    "two biases": (MergePlan({}, bias_terms={"b": (ONE, 1.0)}), MergePlan({}, bias_terms={"b": (ONE, 1.0)})),
    "replaced and changed": (MergePlan({}, replaced={"head": ONE}), MergePlan({"head": place("head")})),
    "loaded and changed": (MergePlan({"norm": place("norm")}), MergePlan({}, reloaded={"norm": ONE})),
    "untied in two ways": (MergePlan({}, untied={"head": "wte"}), MergePlan({}, untied={"head": "other"})),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_several_adapters_cannot_share(case: str) -> None:
    with pytest.raises(AdapterError, match=r"[ab]\.nola and [ab]\.nola") as e:
        combine_plans(CONFLICTS[case], ["a.nola", "b.nola"])
    assert e.value.code == "merge-conflict"


def test_what_several_adapters_share() -> None:
    first = MergePlan({"q": place("q")}, replaced={"head": ONE}, untied={"head": "wte"}, unties=True)
    second = MergePlan({"q": place("q"), "k": place("k")}, replaced={"head": ONE}, reloaded={"norm": OTHER})
    both = combine_plans([first, second], ["a.nola", "b.nola"])
    assert set(both.places) == {"q", "k"}
    assert (both.replaced, both.reloaded) == ({"head": ONE}, {"norm": OTHER})
    assert (both.untied, both.unties) == ({"head": "wte"}, True)
