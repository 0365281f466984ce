"""`merge A B` without a base, of adapters with biases: PEFT computes the weighted sum of what it computed of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import nola_codec
from nola_codec.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]


def save_adapter(folder: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    adapted = get_peft_model(model(), LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(str(folder))
    return folder


def change(folder: Path) -> dict[str, Tensor]:
    """What PEFT's own merge of an adapter changes."""
    before = model().state_dict()
    merged = PeftModel.from_pretrained(model(), folder).merge_and_unload().state_dict()
    return {key: merged[key] - before[key] for key in before}


def nola_change(folder: Path) -> dict[str, Tensor]:
    """What a merge of this package changes."""
    before, merged = model().state_dict(), model()
    nola_codec.encode(folder, f"{folder}.nola", size="200KB")
    with nola_codec.load(f"{folder}.nola") as file:
        file.merge_into(merged)
    return {key: merged.state_dict()[key] - before[key] for key in before}


QV = ["q_proj", "v_proj"]
PLAIN: dict[str, Any] = {"target_modules": QV, "lora_alpha": 4}
DOUBLE: dict[str, Any] = {"target_modules": QV, "lora_alpha": 8, "lora_bias": True}
TRIPLE: dict[str, Any] = {"target_modules": QV, "lora_alpha": 12, "lora_bias": True}
PATTERNS: dict[str, Any] = {
    "target_modules": QV, "lora_bias": True, "alpha_pattern": {"q_proj": 20}, "rank_pattern": {"v_proj": 2},
}  # fmt: skip
Q_ALL: dict[str, Any] = {"target_modules": ["q_proj"], "lora_alpha": 8, "bias": "all"}
ONLY: dict[str, Any] = {"target_modules": ["q_proj"], "bias": "lora_only"}
NO_INIT: dict[str, Any] = {"target_modules": ["o_proj"], "init_lora_weights": False}

CASES: dict[str, list[tuple[dict[str, Any], float]]] = {
    "lora_bias of another scaling": [(PLAIN, 1.0), (DOUBLE, 1.0)],
    "the other order": [(DOUBLE, 1.0), (PLAIN, 1.0)],
    "a scaling that rounds": [(PLAIN, 1.0), (TRIPLE, 1.0)],
    "weights": [(PLAIN, 0.7), (TRIPLE, 0.3)],
    "two lora_bias": [(DOUBLE, 1.0), (TRIPLE, -0.5)],
    "patterns": [(PLAIN, 1.0), (PATTERNS, 1.0)],
    "lora_bias of other modules": [(NO_INIT, 1.0), (DOUBLE, 1.0)],
    "bias of a module that becomes a target": [(Q_ALL, 1.0), (PLAIN, 1.0)],
    "the same in the other order": [(PLAIN, 1.0), (Q_ALL, 1.0)],
    "lora_bias and bias": [(DOUBLE, 1.0), (Q_ALL, 1.0)],
    "lora_bias and the biases of targets": [(ONLY, 1.0), (TRIPLE, 1.0)],
}


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_sum(case: str, tmp_path: Path) -> None:
    """All keys are PEFT's own, its merge of the sum is the sum of its merges, and so is the merge of this package."""
    parts = CASES[case]
    folders = [save_adapter(tmp_path / str(n), n, **options) for n, (options, _) in enumerate(parts)]
    sources: list[Any] = [(folder, weight) for folder, (_, weight) in zip(folders, parts, strict=True)]
    nola_codec.merge_adapters(sources, tmp_path / "sum")
    changes = [change(folder) for folder in folders]
    found, own = change(tmp_path / "sum"), nola_change(tmp_path / "sum")
    for key in found:
        wanted = sum(part[key] * weight for part, (_, weight) in zip(changes, parts, strict=True))
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=1e-5)
        if key.endswith(".bias"):  # biases are carried, and weights are coded
            torch.testing.assert_close(own[key], wanted, rtol=0, atol=1e-5)
    loaded = PeftModel.from_pretrained(model(), tmp_path / "sum").state_dict()
    keys = {key.replace(".default", "") for key in loaded}
    made = load_file(tmp_path / "sum" / "adapter_model.safetensors").keys()
    assert made <= keys
    assert {key for key in keys if ".lora_" in key} <= made


def test_zeros_need_no_bias(tmp_path: Path) -> None:
    """A module without a bias gets zeros beside its lora_B, which a merge into the model leaves out."""
    torch.manual_seed(0)
    a = save_adapter(tmp_path / "a", 1, **DOUBLE)
    b = save_adapter(tmp_path / "b", 2, target_modules=["up_proj"])
    nola_codec.merge_adapters([a, b], tmp_path / "sum")
    zeros = load_file(tmp_path / "sum" / "adapter_model.safetensors")
    assert not zeros["base_model.model.model.layers.0.mlp.up_proj.lora_B.bias"].any()
    key = "model.layers.0.self_attn.q_proj.bias"
    torch.testing.assert_close(nola_change(tmp_path / "sum")[key], change(a)[key])


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "two trained biases": (Q_ALL, {"target_modules": QV, "bias": "lora_only"}, "merge-conflict"),
    "a module saved whole": (
        {"target_modules": QV, "modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}, "merge-conflict",
    ),
    "an embedding": (DOUBLE, {"target_modules": ["embed_tokens"]}, "not-expressible"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    first, second, code = REFUSED[case]
    folders = [save_adapter(tmp_path / str(n), n, **options) for n, options in enumerate((first, second))]
    with pytest.raises(AdapterError) as caught:
        nola_codec.merge_adapters(folders, tmp_path / "sum")
    assert caught.value.code == code


def test_all_biases_stay_all(tmp_path: Path) -> None:
    """The sum says that all biases were trained if one adapter brings those of modules without factors."""
    one = save_adapter(tmp_path / "one", 1, target_modules=["v_proj"], bias="lora_only")
    every = save_adapter(tmp_path / "every", 2, target_modules=["o_proj"], bias="all")
    tensors = load_file(every / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "v_proj" not in k}, every / "adapter_model.safetensors")
    nola_codec.merge_adapters([one, every], tmp_path / "sum")
    assert json.loads((tmp_path / "sum" / "adapter_config.json").read_text())["bias"] == "all"
