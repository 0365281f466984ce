"""`encode-delta --rank R --no-residue` leaves as a LoRA: PEFT loads it onto the base, and it is the changed model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import nola_codec
from nola_codec.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out", "ignore:Setting `save_embed")

IDS = torch.tensor([[1, 5, 9, 3]])


def make_llama(tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=136, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=40, n_layer=1, n_head=2, vocab_size=24, n_positions=8)).eval()


def save_models(make: Callable[[], PreTrainedModel], folder: Path, changed: str) -> tuple[Path, Path]:
    """Save a base, and a model whose tensors with these endings changed, matrices by a change of rank 3."""
    base, tuned = make(), make()
    base.save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if not name.endswith(tuple(changed.split())):
                continue
            change = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                u, v = (torch.randn(size, 3, generator=generator) for size in weight.shape)
                change = u @ v.T / 3
            weight += 0.1 * change
    tuned.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


CASES: dict[str, tuple[Callable[[], PreTrainedModel], str, dict[str, Any]]] = {
    # down_proj and up_proj have over 4096 elements and become factors; q_proj is coded whole.
    "matrices, large and small": (make_llama, "q_proj.weight down_proj.weight", {}),
    "norms": (make_llama, "down_proj.weight input_layernorm.weight norm.weight", {}),
    "biases of adapted modules and of others": (make_llama, "q_proj.weight q_proj.bias k_proj.bias", {}),
    "embeddings and head": (make_llama, "down_proj.weight embed_tokens.weight lm_head.weight",
                            {"embeddings": True, "head": True}),
    "Conv1D": (make_gpt2, "c_fc.weight attn.c_attn.weight ln_1.bias ln_1.weight c_attn.bias", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_changed_model(case: str, tmp_path: Path) -> None:
    """The logits of PEFT on the base are those of the file merged into the base, and no key is left over."""
    make, changed, options = CASES[case]
    base, tuned = save_models(make, tmp_path, changed)
    nola_codec.encode_delta(tuned, base, tmp_path / "d.nola", rank=4, residue=False, nmse=0.05, **options)
    nola_codec.decode(tmp_path / "d.nola", tmp_path / "lora", base=base, format="peft")
    nola_codec.decode(tmp_path / "d.nola", tmp_path / "merged", base=base)
    merged = type(make()).from_pretrained(tmp_path / "merged").eval()
    adapted = PeftModel.from_pretrained(make(), tmp_path / "lora").eval()
    with torch.no_grad():
        wanted, found, before = merged(IDS).logits, adapted(IDS).logits, make()(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    assert (wanted - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    for key, tensor in load_file(tmp_path / "lora" / "adapter_model.safetensors").items():
        assert torch.equal(again[key], tensor), key


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str, dict[str, Any], bool, str, str]] = {
    "residue": (make_llama, "down_proj.weight", {"residue": True}, True, "not-expressible", "--no-residue"),
    "norm without the base": (make_llama, "q_proj.weight norm.weight", {}, False, "needs-base", "norm"),
    "Conv1D without the base": (make_gpt2, "c_fc.weight", {}, False, "needs-base", "c_fc"),
    "embeddings without the base": (make_llama, "embed_tokens.weight", {"embeddings": True}, False, "needs-base",
                                    "embed_tokens"),
    "tied embeddings": (lambda: make_llama(tied=True), "embed_tokens.weight", {"embeddings": True}, True,
                        "not-expressible", "embed_tokens"),
    "norms alone": (make_llama, "norm.weight", {}, True, "not-expressible", "no matrix"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, changed, options, has_base, code, words = REFUSED[case]
    base, tuned = save_models(make, tmp_path, changed)
    chosen = {"rank": 2, "residue": False, "nmse": 0.05, **options}
    nola_codec.encode_delta(tuned, base, tmp_path / "d.nola", **chosen)
    with pytest.raises(AdapterError, match=words) as caught:
        nola_codec.decode(tmp_path / "d.nola", tmp_path / "lora", base=base if has_base else None, format="peft")
    assert caught.value.code == code
    assert not (tmp_path / "lora").exists()
