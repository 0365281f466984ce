"""Tiny Transformers models, real PEFT adapters of them, and both as files; torch is imported only by what needs it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, with the same seed each time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """A base model, an adapter of it, and the adapter encoded."""

    model: Any
    base: Path
    adapter: Path
    encoded: bytes

    def fresh(self) -> Any:
        return copy.deepcopy(self.model)

    def logits(self, model: Any) -> torch.Tensor:
        import torch

        tokens = torch.arange(24).reshape(2, 12) % self.model.config.vocab_size
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=tokens).logits
        return logits


def _model(family: str, tie: bool, dtype: torch.dtype) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    if family == "gpt2":
        config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tie,
                            bos_token_id=0, eos_token_id=0)  # fmt: skip
        return GPT2LMHeadModel(config).to(dtype)
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         max_position_embeddings=32, num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=tie)  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture(scope="session")
def encodes() -> dict[tuple[bytes, str], bytes]:
    """The files of `make_case` so far, by the adapter's bytes and the options: many tests start from the same one."""
    return {}


@pytest.fixture
def make_case(tmp_path: Path, encodes: dict[tuple[bytes, str], bytes]) -> Callable[..., Case]:
    """`make_case(family, targets, tie=, dtype=, encode=, **LoraConfig)`."""
    import torch
    from peft import LoraConfig, get_peft_model

    import nola_codec

    def make(
        family: str = "llama",
        targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
        *,
        tie: bool = False,
        dtype: torch.dtype = torch.float32,
        encode: dict[str, Any] | None = None,
        **options: Any,
    ) -> Case:
        model = _model(family, tie, dtype)
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        model.save_pretrained(base)
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(targets), **options})
        wrapped = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        wrapped.save_pretrained(adapter, save_embedding_layers=False)
        chosen = encode or {"nmse": 0.05}
        parts = [path.read_bytes() for path in sorted(adapter.iterdir())]
        key = hashlib.sha256(b"".join(parts)).digest(), repr(sorted(chosen.items()))
        if key not in encodes:
            encodes[key], _ = nola_codec.encode_bytes(adapter, **chosen)
        return Case(model, base, adapter, encodes[key])

    return make


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Wrap a model, give every adapter parameter random values, save; returns the PeftModel and the directory."""
    import torch
    from peft import LoraConfig, get_peft_model

    def save(model: torch.nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Path]:
        wrapped = get_peft_model(model, LoraConfig(**options))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
        if dtype is not torch.float32:
            wrapped = wrapped.to(dtype)
        directory = tmp_path / "adapter"
        wrapped.save_pretrained(directory)
        return wrapped, directory

    return save
