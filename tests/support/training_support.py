"""A tiny Llama, trained a little and evaluated."""

from __future__ import annotations

from typing import Any

import torch


def tiny() -> Any:
    """48 wide, two layers, always the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2)
    )  # fmt: skip


def step(model: Any, tokens: torch.Tensor, steps: int = 12, rate: float = 1e-2, **options: Any) -> float:
    """Train a little; the last loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, **options)
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluated(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits in evaluation mode."""
    logits: torch.Tensor = model.eval()(input_ids=tokens).logits
    return logits
