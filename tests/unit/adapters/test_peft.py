"""Real PEFT adapters: read, compare with PEFT's own delta, write, and load with PEFT again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from nola_codec.adapters import read, write
from nola_codec.adapters.dialects.peft import factor_keys, module_path, state_dict
from nola_codec.errors import AdapterError, OutputExists
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor

# PEFT's own remarks (a pattern here is meant to match nothing), and its use of what Transformers deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following alpha_pattern:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LINEAR = ["q", "k", "out"]
CASES: dict[str, dict[str, Any]] = {
    "linear": {"r": 3, "lora_alpha": 7, "target_modules": LINEAR},
    "rslora": {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "lora_alpha": 5,
        "rank_pattern": {"block.q": 2, "^block.k": 7, ".*t": 3},
        "alpha_pattern": {"(q|k)": 9, "lock.out": 1},
        "target_modules": LINEAR,
    },
    "patterns rslora": {
        "r": 4,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {"q": 2},
        "alpha_pattern": {"k": 3},
        "target_modules": LINEAR,
    },
    "embedding": {"r": 3, "lora_alpha": 5, "target_modules": ["embed", "q"]},
    "conv": {"r": 3, "lora_alpha": 5, "target_modules": ["conv1", "conv2", "conv3", "point"]},
    "attention": {"r": 3, "lora_alpha": 5, "target_modules": ["attention"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q", "conv2", "embed"]},
    "modules_to_save": {"r": 3, "target_modules": ["q"], "modules_to_save": ["head"]},
    "lora_bias": {"r": 3, "lora_bias": True, "target_modules": ["q", "conv2"]},
    "bias lora_only": {"r": 3, "bias": "lora_only", "target_modules": ["q"]},
    "bias all": {"r": 3, "bias": "all", "target_modules": ["q"]},
    "trainable tokens": {"r": 3, "target_modules": ["q"], "trainable_token_indices": {"embed": [1, 4]}},
    "mica": {"r": 3, "init_lora_weights": "mica", "target_modules": ["q"]},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal", "target_modules": ["q"]},
}


def deltas(model: Any) -> dict[str, torch.Tensor]:
    found = {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert found
    return found


def delta_of(module: LoraModule) -> np.ndarray[Any, np.dtype[np.float64]]:
    delta = module.scaling * (module.lora_B.astype(np.float64) @ module.lora_A.astype(np.float64))
    if module.layout == "embedding":
        return delta.T
    if module.layout == "conv":
        return delta.reshape(module.b_shape[0], *module.a_shape[1:])
    return delta.T if module.fan_in_fan_out else delta


def load_checked(model: torch.nn.Module, directory: Path) -> Any:
    """`from_pretrained`, after checking that no key is missing and none unexpected."""
    fresh = get_peft_model(model, LoraConfig.from_pretrained(directory))
    result = set_peft_model_state_dict(fresh, load_file(directory / "adapter_model.safetensors"))
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key] == []
    return fresh


@pytest.mark.parametrize("case", CASES)
def test_read_gives_pefts_delta_and_write_gives_it_back(
    case: str, zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    wrapped, directory = save_adapter(zoo(), **CASES[case])
    adapter = read(directory)
    wanted = deltas(wrapped)
    assert [m.name for m in adapter.modules] == sorted(wanted)
    for module in adapter.modules:
        # PEFT adds the delta of an attention's output twice, in its forward pass too.
        times = 2 if module.name.endswith("attention.base_layer.out_proj") else 1
        np.testing.assert_allclose(delta_of(module), times * wanted[module.name].numpy(), rtol=1e-4, atol=1e-5)
        assert module.scaling == times * wrapped.get_submodule(module.name).scaling["default"]

    out = write(adapter, tmp_path / "out")
    assert (out / "adapter_model.safetensors").read_bytes() == (directory / "adapter_model.safetensors").read_bytes()
    assert json.loads((out / "adapter_config.json").read_text()) == adapter.config
    load_checked(zoo(), out)
    loaded = PeftModel.from_pretrained(zoo(), out)
    for name, parameter in wrapped.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "raw"),
    [
        ("dora", {"block.q.lora_magnitude_vector", "conv2.lora_magnitude_vector", "embed.lora_magnitude_vector"}),
        ("modules_to_save", {"head.weight", "head.bias"}),
        ("lora_bias", {"block.q.lora_B.bias", "conv2.lora_B.bias"}),
        ("bias lora_only", {"block.q.base_layer.bias"}),
        ("trainable tokens", {"embed.token_adapter.trainable_tokens_delta"}),
        ("linear", set()),
    ],
)
def test_the_rest_is_carried_raw(
    case: str, raw: set[str], zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any]
) -> None:
    _, directory = save_adapter(zoo(), **CASES[case])
    stored = load_file(directory / "adapter_model.safetensors")
    adapter = read(directory)
    assert set(adapter.raw) == {f"base_model.model.{key}" for key in raw}
    for key, tensor in adapter.raw.items():
        assert tensor.data == stored[key].numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_come_back_as_they_were(
    dtype: torch.dtype, zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    _, directory = save_adapter(zoo(), dtype=dtype, r=2, target_modules=["q", "conv2", "embed"])
    adapter = read(directory)
    stored = load_file(directory / "adapter_model.safetensors")
    for module in adapter.modules:
        a_key, b_key = factor_keys(module.name, module.layout)
        np.testing.assert_array_equal(module.lora_A.reshape(module.a_shape), stored[a_key].float().numpy())
        np.testing.assert_array_equal(module.lora_B.reshape(module.b_shape), stored[b_key].float().numpy())
    out = write(adapter, tmp_path / "out")
    for key, tensor in load_file(out / "adapter_model.safetensors").items():
        assert tensor.dtype == dtype
        if dtype is not torch.float64:  # those were narrowed to float32
            assert torch.equal(tensor, stored[key])
    out = write(adapter, out, dtype="BF16", overwrite=True)
    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_gpt2_with_conv1d(save_adapter: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def make() -> torch.nn.Module:
        torch.manual_seed(2)
        return GPT2LMHeadModel(
            GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8, bos_token_id=1, eos_token_id=1)
        )

    wrapped, directory = save_adapter(make(), r=3, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True)
    adapter = read(directory)
    wanted = deltas(wrapped)
    for module in adapter.modules:
        assert module.fan_in_fan_out
        np.testing.assert_allclose(delta_of(module), wanted[module.name].numpy(), rtol=1e-4, atol=1e-5)
    out = write(adapter, tmp_path / "out")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wrapped.eval()
        loaded = PeftModel.from_pretrained(make(), out).eval()
        assert torch.equal(loaded(ids).logits, wrapped(ids).logits)


def test_saved_embeddings_of_an_adapted_embedding(save_adapter: Callable[..., Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    _, directory = save_adapter(LlamaForCausalLM(config), r=2, target_modules=["embed_tokens", "q_proj"])
    adapter = read(directory)
    assert list(adapter.raw) == ["base_model.model.model.embed_tokens.base_layer.weight"]


def with_rank(module: LoraModule, rank: int) -> LoraModule:
    from dataclasses import replace

    rng = np.random.default_rng(rank)
    return replace(
        module,
        lora_A=rng.standard_normal((rank, module.lora_A.shape[1]), dtype=np.float32),
        lora_B=rng.standard_normal((module.lora_B.shape[0], rank), dtype=np.float32),
    )


@pytest.mark.parametrize("case", ["linear", "rslora", "patterns", "patterns rslora", "conv", "orthogonal", "mica"])
def test_other_ranks_adapt_the_configuration(
    case: str, zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    from dataclasses import replace

    _, directory = save_adapter(zoo(), **CASES[case])
    adapter = read(directory)
    changed = replace(adapter, modules=tuple(with_rank(m, 1 + i) for i, m in enumerate(adapter.modules)))
    out = write(changed, tmp_path / "out")
    loaded = load_checked(zoo(), out)
    for module in changed.modules:
        layer = loaded.get_submodule(module.name)
        assert layer.r["default"] == module.rank
        assert layer.scaling["default"] == pytest.approx(module.scaling, rel=4e-16)
    again = read(out)
    assert [m.a_shape for m in again.modules] == [(m.rank, *m.a_shape[1:]) for m in changed.modules]
    for before, after in zip(changed.modules, again.modules, strict=True):
        np.testing.assert_array_equal(before.lora_B, after.lora_B)


def test_uniform_new_rank_needs_no_patterns(
    zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    from dataclasses import replace

    _, directory = save_adapter(zoo(), r=4, lora_alpha=8, target_modules=LINEAR)
    adapter = read(directory)
    out = write(replace(adapter, modules=tuple(with_rank(m, 6) for m in adapter.modules)), tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (6, 12, {}, {})


@pytest.mark.parametrize("kind", ["path", "bytes", "stream"])
def test_a_lone_file_has_scaling_one(
    kind: str, zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    _, directory = save_adapter(zoo(), r=3, lora_alpha=9, target_modules=["q"], modules_to_save=["head"])
    data = (directory / "adapter_model.safetensors").read_bytes()
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes(data)
    adapter = read({"path": lone, "bytes": data, "stream": io.BytesIO(data)}[kind])
    assert adapter.config is None
    assert [m.scaling for m in adapter.modules] == [1.0]
    assert len(adapter.raw) == 2
    out = write(adapter, tmp_path / "again.safetensors")
    assert out.read_bytes() == data


def test_a_configuration_beside_or_given_is_used(
    zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any]
) -> None:
    _, directory = save_adapter(zoo(), r=3, lora_alpha=9, target_modules=["q"])
    weights = directory / "adapter_model.safetensors"
    config = json.loads((directory / "adapter_config.json").read_text())
    for adapter in (read(weights), read(weights.read_bytes(), config=config), read(directory, config=config)):
        assert adapter.modules[0].scaling == 3.0
        assert adapter.config is not None


def test_a_lone_file_takes_only_exact_scalings(
    zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    _, directory = save_adapter(zoo(), r=2, lora_alpha=8, target_modules=["q"])
    adapter = read(directory)
    folded = read(write(adapter, tmp_path / "lone.safetensors")).modules[0]
    np.testing.assert_array_equal(folded.lora_B, adapter.modules[0].lora_B * 4)
    _, directory = save_adapter(zoo(), r=2, lora_alpha=3, target_modules=["q"])
    with pytest.raises(AdapterError, match="write a directory") as e:
        write(read(directory), tmp_path / "other.safetensors")
    assert e.value.code == "needs-directory"


def test_nothing_is_overwritten_unasked(
    zoo: Callable[[], torch.nn.Module], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    _, directory = save_adapter(zoo(), r=2, lora_alpha=2, target_modules=["q"])
    adapter = read(directory)
    for out in (directory, write(adapter, tmp_path / "lone.safetensors")):
        with pytest.raises(OutputExists):
            write(adapter, out)
    (directory / "notes.txt").write_text("mine")
    write(adapter, directory, overwrite=True)
    assert (directory / "notes.txt").read_text() == "mine"
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_state_dict_refuses_what_peft_cannot_load() -> None:
    def module(a: Any, b: Any) -> LoraModule:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        return LoraModule("base_model.model.q", a, b, a.shape, b.shape, 1.0)

    ok = module(np.ones((1, 2)), np.ones((3, 1)))
    assert list(state_dict([ok], {})) == ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"]
    for bad, raw, dtype, code in (
        (module(np.ones((0, 2)), np.ones((3, 0))), {}, None, "zero-rank"),
        (module([[np.nan, 1]], np.ones((3, 1))), {}, None, "not-finite"),
        (module([[1e9, 1]], np.ones((3, 1))), {}, "F16", "overflow"),
        (ok, {"base_model.model.q.lora_A.weight": RawTensor("F32", (0,), b"")}, None, "duplicate-key"),
    ):
        with pytest.raises(AdapterError) as e:
            state_dict([bad], raw, dtype)
        assert e.value.code == code


def test_module_path() -> None:
    assert module_path("base_model.model.model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert module_path("base_model.model.attention.base_layer.out_proj") == "attention.out_proj"


def test_unknown_dialects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as e:
        write(Adapter("klingon", ()), tmp_path / "x")
    assert e.value.code == "foreign-dialect"
