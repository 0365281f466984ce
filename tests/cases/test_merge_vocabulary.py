"""Case 14: adapters that were trained after tokens were added, so that their embeddings are larger than the base's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T

import nola_codec

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning"),
]
ROWS, MORE = 24, 30
IDS = torch.tensor([[1, 5, ROWS + 1, MORE - 1, 3]])


def make(path: Path, *, tied: bool, **options: Any) -> tuple[Path, Path, Any]:
    """Save a base of `ROWS` tokens; return it, an adapter trained with `MORE` tokens, and the trained model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = T.LlamaForCausalLM(T.LlamaConfig(
        vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ))  # fmt: skip
    model.save_pretrained(path / "base")
    model.resize_token_embeddings(MORE, mean_resizing=False)
    tuned = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **options}))
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    tuned.save_pretrained(path / "adapter", save_embedding_layers="modules_to_save" not in options)
    return path / "base", path / "adapter", tuned.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def adapted(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of PEFT with a decoded adapter on the resized base."""
    from peft import PeftModel

    model = T.LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(MORE, mean_resizing=False)
    return logits(PeftModel.from_pretrained(model, adapter))


BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}
GROWING: dict[str, tuple[bool, dict[str, Any], bool]] = {
    "untied, modules_to_save": (False, BOTH, False),
    "untied, saved embeddings": (False, {}, False),
    "tied, both saved": (True, BOTH, False),
    "tied, saved embeddings": (True, {}, True),
    "tied, kept tied": (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
}


@pytest.mark.parametrize("case", GROWING)
def test_the_merged_model_has_the_larger_vocabulary(case: str, tmp_path: Path) -> None:
    """Case 14: larger matrices, `vocab_size`, and `tie_word_embeddings` false where the two differ."""
    tied, options, stays_tied = GROWING[case]
    base, adapter, _ = make(tmp_path, tied=tied, **options)
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    decoded = nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (MORE, stays_tied)
    merged = T.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), adapted(base, decoded), atol=2e-5, rtol=2e-5)


def test_an_undo_file_restores_the_smaller_vocabulary(tmp_path: Path) -> None:
    """Case 14: the base comes back byte for byte, with its configuration."""
    base, adapter, _ = make(tmp_path, tied=False, **BOTH)
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    nola_codec.merge([tmp_path / "a.nola"], base, tmp_path / "merged", keep_undo=True)
    nola_codec.unmerge([tmp_path / "a.nola"], tmp_path / "merged", tmp_path / "back")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (base / name).read_bytes()


REFUSED: dict[str, tuple[bool, dict[str, Any], str]] = {
    "the rows of a tied head are nowhere": (
        True, {"modules_to_save": ["embed_tokens"]}, f"has {MORE} rows of model.embed_tokens.weight, the base {ROWS}"),
    "LoRA on the embeddings": (False, {"target_modules": ["embed_tokens", "q_proj"]}, "the vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_grow_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """Case 14: a refusal names both numbers of rows, and writes nothing."""
    tied, options, words = REFUSED[case]
    base, adapter, _ = make(tmp_path, tied=tied, **options)
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    with pytest.raises(nola_codec.AdapterError, match=words):
        nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    assert not (tmp_path / "merged").exists()


def test_a_model_in_memory_must_be_resized_first(tmp_path: Path) -> None:
    """Case 14: `merge_into` says how, and then gives the same model."""
    base, adapter, _ = make(tmp_path, tied=False, **BOTH)
    nola_codec.encode(adapter, tmp_path / "a.nola", num_basis=64)
    decoded = nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    model = T.LlamaForCausalLM.from_pretrained(base)
    with nola_codec.load(tmp_path / "a.nola") as opened:
        with pytest.raises(nola_codec.AdapterError, match=rf"resize_token_embeddings\({MORE}\)"):
            opened.merge_into(model)
        model.resize_token_embeddings(MORE, mean_resizing=False)
        opened.merge_into(model)
    torch.testing.assert_close(logits(model), adapted(base, decoded), atol=2e-5, rtol=2e-5)
