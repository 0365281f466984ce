"""Cases 15b and 19a: merging factors of experts, which are one tensor in memory and often many on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from peft_merges import make_adapter, merge_both, require_equal
from safetensors.torch import load_file, save_file

import nola_codec

# PEFT asks a model for a property that Transformers has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 32, "num_experts_per_tok": 2}  # fmt: skip
EXPERTS = 3


def qwen3_moe() -> Any:
    config = T.Qwen3MoeConfig(**SIZES, moe_intermediate_size=12, num_experts=EXPERTS, head_dim=8)
    return T.Qwen3MoeForCausalLM(config)


def mixtral() -> Any:
    return T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=EXPERTS))


def gpt_oss() -> Any:
    """A model whose experts are square matrices, one of them stored (in, out)."""
    sizes = SIZES | {"intermediate_size": 16}
    return T.GptOssForCausalLM(T.GptOssConfig(**sizes, num_local_experts=EXPERTS, head_dim=8))


def qwen3_5_moe() -> Any:
    config = T.Qwen3_5MoeTextConfig(
        **{key: size for key, size in SIZES.items() if key != "intermediate_size"}, moe_intermediate_size=12,
        shared_expert_intermediate_size=12, num_experts=EXPERTS, head_dim=8, layer_types=["full_attention"],
    )  # fmt: skip
    return T.Qwen3_5MoeForCausalLM(config)


MODELS = {each.__name__: each for each in (qwen3_moe, mixtral, gpt_oss, qwen3_5_moe)}
Made = dict[str, tuple[Any, Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The class of each model, the model on disk, and an adapter on both parameters of its experts."""
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(1)
        model, out = make(), tmp_path_factory.mktemp(name)
        model.save_pretrained(out / "base")
        options = {"target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
        found[name] = (type(model), out / "base", make_adapter(model, out / "adapter", **options))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_merge_of_peft(name: str, made: Made, tmp_path: Path) -> None:
    """Case 15b: the delta of a fused parameter, on experts that are fused on disk and on such that are not."""
    model_class, base, adapter = made[name]
    require_equal(*merge_both(model_class, base, adapter, tmp_path / "work"), base)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_memory_gets_the_same_bits(name: str, made: Made, tmp_path: Path) -> None:
    """Case 15b: `merge_into` adds to the fused parameters what a merge on disk adds to the experts there."""
    model_class, base, adapter = made[name]
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    model = model_class.from_pretrained(base)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(model)
    wanted = model_class.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in model.state_dict().items())


def test_an_undo_file_restores_split_experts(made: Made, tmp_path: Path) -> None:
    """Case 15b: a delta that was spread over many weights is taken off each of them."""
    _, base, adapter = made["mixtral"]
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    nola_codec.merge([tmp_path / "a.nola"], base, tmp_path / "merged", keep_undo=True)
    nola_codec.unmerge([tmp_path / "a.nola"], tmp_path / "merged", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


NAMES = {
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
}


def expert_factors(name: str, make_key: Callable[[int, str, str], str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, inner = SIZES["hidden_size"], 12 if name == "qwen3_moe" else 24
    tensors = {}
    for expert in range(EXPERTS):
        for projection in NAMES[name][1]:
            shape = (hidden, inner) if projection in ("down_proj", "w2") else (inner, hidden)
            tensors[make_key(expert, projection, "A")] = torch.randn(2, shape[1], generator=generator) * 0.3
            tensors[make_key(expert, projection, "B")] = torch.randn(shape[0], 2, generator=generator) * 0.3
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_adapters_of_single_experts(name: str, made: Made, tmp_path: Path) -> None:
    """Case 15b: an adapter of an older Transformers has factors for each expert; PEFT fuses them when it loads it."""
    from peft import PeftModel

    model_class, base, _ = made[name]
    parent, projections = NAMES[name]

    def key(expert: int, projection: str, side: str) -> str:
        return f"base_model.model.model.layers.0.{parent}.experts.{expert}.{projection}.lora_{side}.weight"

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(expert_factors(name, key), adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": list(projections)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    decoded = nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    fusing = PeftModel.from_pretrained(model_class.from_pretrained(base), decoded)
    fusing.save_pretrained(tmp_path / "fused")
    merged = fusing.merge_and_unload()
    merged.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in ("merged", "theirs"))
    require_equal(ours, theirs, base, changed=3 * EXPERTS)
    # The fused adapter has twice the rank in one parameter, and its configuration names no parents.
    require_equal(*merge_both(model_class, base, tmp_path / "fused", tmp_path / "work"), base, changed=3 * EXPERTS)
    fused = model_class.from_pretrained(base)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(fused)
    wanted = model_class.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in fused.state_dict().items())


def mlx_adapter(path: Path) -> dict[str, torch.Tensor]:
    """An adapter as `LoRASwitchLinear` of mlx-lm writes it, for the experts of the tiny Qwen3."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for projection, (out, inputs) in {"gate_proj": (12, 16), "up_proj": (12, 16), "down_proj": (16, 12)}.items():
        module = f"model.layers.0.mlp.switch_mlp.{projection}"
        tensors[f"{module}.lora_a"] = torch.randn(EXPERTS, 2, inputs, generator=generator) * 0.3
        tensors[f"{module}.lora_b"] = torch.randn(EXPERTS, out, 2, generator=generator) * 0.3
    path.mkdir()
    save_file(tensors, path / "adapters.safetensors", metadata={"format": "mlx"})
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 10.0, "dropout": 0.0}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def test_mlx_experts_are_coded_and_written_back(tmp_path: Path) -> None:
    """Case 19a: 3-D factors leave in their shapes; the deltas are close to those of the source."""
    source = mlx_adapter(tmp_path / "in")
    nola_codec.encode(tmp_path / "in", tmp_path / "a.nola", nmse=0.01)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapters.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]) == (2, 10.0)
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in source.items()}
    for module in {key.rpartition(".")[0] for key in source}:
        ours, theirs = (each[f"{module}.lora_b"] @ each[f"{module}.lora_a"] for each in (found, source))
        assert (ours - theirs).square().sum() < 0.02 * theirs.square().sum()
    with pytest.raises(nola_codec.AdapterError, match="experts"):
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "peft", format="peft")


@pytest.mark.parametrize("layout", ["mlx", "split", "fused"])
def test_mlx_experts_are_merged(layout: str, made: Made, tmp_path: Path) -> None:
    """Case 19a: onto MLX's own weights, onto single experts on disk, and onto fused experts in memory."""
    mlx_adapter(tmp_path / "in")
    nola_codec.encode(tmp_path / "in", tmp_path / "a.nola", num_basis=64)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "out")
    model_class, base, _ = made["qwen3_moe"]
    factors = load_file(tmp_path / "out" / "adapters.safetensors")
    stem = "model.layers.0.mlp"
    deltas = {}
    for each in ("gate_proj", "up_proj", "down_proj"):
        lora_a, lora_b = (factors[f"{stem}.switch_mlp.{each}.lora_{side}"].double() for side in "ab")
        deltas[each] = 10 * lora_b @ lora_a
    before = load_file(base / "model.safetensors")

    def stack(weights: dict[str, torch.Tensor], each: str) -> torch.Tensor:
        return torch.stack([weights[f"{stem}.experts.{n}.{each}.weight"] for n in range(EXPERTS)])

    single = {each: stack(before, each) for each in deltas}
    if layout == "fused":
        model = model_class.from_pretrained(base)
        with nola_codec.load(tmp_path / "a.nola") as opened:
            opened.merge_into(model)
        experts = model.model.layers[0].mlp.experts
        found = {"gate_proj": experts.gate_up_proj[:, :12], "up_proj": experts.gate_up_proj[:, 12:],
                 "down_proj": experts.down_proj}  # fmt: skip
    else:
        if layout == "mlx":
            base = tmp_path / "base"
            base.mkdir()
            stacked = {f"{stem}.switch_mlp.{each}.weight": weight for each, weight in single.items()}
            save_file(stacked, base / "model.safetensors")
            (base / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
        merged = load_file(tmp_path / "merged" / "model.safetensors")
        found = {
            each: merged[f"{stem}.switch_mlp.{each}.weight"] if layout == "mlx" else stack(merged, each)
            for each in deltas
        }
    for each, delta in deltas.items():
        torch.testing.assert_close(found[each].double(), single[each].double() + delta, rtol=1e-6, atol=1e-6, msg=each)
