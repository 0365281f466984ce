"""PEFT adapters as trainers write them: heads, names of adapters, and the methods beside LoRA.

The expected values come from PEFT itself: a decoded adapter is loaded by it, and a merge is compared with its merge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import nola_codec

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers and PEFT warn of each other's old names

IDS = torch.tensor([[1, 3, 5, 9]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _llama(kind: str) -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return getattr(transformers, f"LlamaFor{kind}")(config)


def _bert(kind: str) -> Any:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    return getattr(transformers, f"BertFor{kind}")(config)


def _train(model: Any) -> None:
    """Move every trained tensor away from its start, as a training does."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)


def _edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        made = model.eval()(IDS)
    logits: torch.Tensor = made.logits if hasattr(made, "logits") else torch.cat([made.start_logits, made.end_logits])
    return logits


def _require_same(make: Callable[[], Any], base: Path, adapter: Path, tmp_path: Path) -> None:
    """Encode an adapter, and compare what is decoded and merged with what PEFT loads and merges."""
    nola_codec.encode(adapter, tmp_path / "a.nola", error=0.001)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    expected = PeftModel.from_pretrained(make(), adapter)
    again = PeftModel.from_pretrained(make(), tmp_path / "again")
    torch.testing.assert_close(_outputs(again), _outputs(expected), atol=0.05, rtol=0.05)
    nola_codec.merge([tmp_path / "a.nola"], base, tmp_path / "merged")
    merged = type(make()).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(_outputs(merged), _outputs(again.merge_and_unload()), atol=1e-5, rtol=1e-5)


HEADS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "score": ("SEQ_CLS", lambda: _llama("SequenceClassification"), "score.weight"),
    "classifier": ("TOKEN_CLS", lambda: _bert("TokenClassification"), "classifier.bias"),
    "qa_outputs": ("QUESTION_ANS", lambda: _bert("QuestionAnswering"), "qa_outputs.weight"),
}


@pytest.mark.parametrize("head", HEADS)
def test_task_type_implies_the_head(head: str, tmp_path: Path) -> None:
    """PEFT adds the head to modules_to_save by itself, so the configuration on disk may leave it out."""
    task, make, key = HEADS[head]
    make().save_pretrained(tmp_path / "base")
    names = ["q_proj", "query"]
    model = get_peft_model(make(), LoraConfig(r=2, lora_alpha=8, target_modules=names, task_type=task))
    _train(model)
    model.save_pretrained(tmp_path / "adapter")
    _edit_config(tmp_path / "adapter", modules_to_save=None)
    _require_same(make, tmp_path / "base", tmp_path / "adapter", tmp_path)
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors")[f"base_model.model.{key}"]
        for name in ("adapter", "again")
    )
    assert torch.equal(before, after)


def test_head_without_a_task_is_unknown(tmp_path: Path) -> None:
    """Without task_type, a head that no entry names stays an unknown tensor."""
    model = get_peft_model(
        _llama("SequenceClassification"), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    model.save_pretrained(tmp_path / "adapter")
    _edit_config(tmp_path / "adapter", modules_to_save=None, task_type=None)
    with pytest.raises(nola_codec.NolaError, match=r"score\.weight.*unknown key"):
        nola_codec.encode(tmp_path / "adapter")
