"""Adapters of PEFT whose embeddings share one pair of factors (``ensure_weight_tying``): merges agree with PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import nola_codec
from nola_codec.adapters import read

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

IDS = torch.arange(20).reshape(2, 10)


def make_base(out: Path, *, tied: bool = True) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(out))
    return out


def model(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]


def make_adapter(base: Path, out: Path, **options: Any) -> Path:
    torch.manual_seed(1)
    adapted = get_peft_model(model(base), LoraConfig(r=2, lora_alpha=4, ensure_weight_tying=True, **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(str(out), save_embedding_layers=False)
    return out


@torch.no_grad()
def logits(adapted: Any) -> Tensor:
    return adapted(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head"], ["lm_head", "q_proj"], ".*(embed_tokens|q_proj)"])
def test_the_merge_is_the_decoded_adapter(targets: Any, tmp_path: Path) -> None:
    """PEFT reads all factors of the decoded directory, and a merge computes the same to the last digits."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "a", target_modules=targets)
    report = nola_codec.encode(adapter, tmp_path / "a.nola", nmse=0.1)
    assert any("ensure_weight_tying" in note for note in report.notes)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "merged", base=base)
    decoded = logits(PeftModel.from_pretrained(model(base), tmp_path / "decoded").eval())
    torch.testing.assert_close(logits(model(tmp_path / "merged")), decoded, rtol=0, atol=1e-5)


def test_the_adapter_as_read_computes_the_same(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "a", target_modules=["embed_tokens", "lm_head"])
    nola_codec.adapters.write(read(adapter), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["ensure_weight_tying"] is False
    wanted = logits(PeftModel.from_pretrained(model(base), adapter).eval())
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model(base), tmp_path / "again").eval()), wanted)


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_the_option_stays_where_it_ties_nothing(tmp_path: Path) -> None:
    """In a model without tied embeddings PEFT trains two pairs, and the configuration comes back as it was."""
    base = make_base(tmp_path / "base", tied=False)
    found = read(make_adapter(base, tmp_path / "a", target_modules=["embed_tokens", "lm_head"]))
    assert found.config is not None
    assert found.config["ensure_weight_tying"] is True
    assert found.notes == ()
