"""Train the few numbers of a rival as `encode --fit task` trains ours: Adam, a warm-up, and a cosine to zero."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from quantizers import FileWriter, Integers
from torch import nn

from nola_codec.training import TaskSettings
from rivals.text import Row, TextTask, pad, shuffled

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Path of a linear layer -> (lora_B (out, r), lora_A (r, in)), the scaling in one of them."""


class Form(Protocol):
    """Numbers to train, and the factors that they stand for."""

    def parameters(self) -> Sequence[tuple[nn.Parameter, float]]:
        """Return what is trained, each with its learning rate as a multiple of that of the budget."""

    def factors(self) -> Factors:
        """Return the factors as they are now, with autograd."""

    def write(self, bits: int) -> tuple[int, Factors]:
        """Round the numbers to some bits; return the bytes of a file, and the factors that it holds."""


@dataclass(frozen=True)
class Budget:
    """The training that every rival gets: that of `--fit task`.

    Attributes:
        steps, rows: Steps, and rows of text in each.
        rate: Adam's learning rate at its highest.
        seed: The order of the rows.
    """

    rate: float
    steps: int = 100
    rows: int = 8
    seed: int = 0


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers but the head, as `target_modules="all-linear"` of PEFT does."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")}


def train(task: TextTask, form: Form, rows: Sequence[Row], budget: Budget) -> list[float]:
    """Train a form in place, and return the loss of every step.

    The model runs in bfloat16 where the processor multiplies it faster, as `--fit task` does. The numbers are
    float32. Attention is that of plain matrix products: the fused one of PyTorch has a slow backward pass on CPUs.
    """
    dtype = torch.bfloat16 if TaskSettings().uses_bfloat16(task.model) else torch.float32
    model = copy.deepcopy(task.model).to(dtype)
    model.set_attn_implementation("eager")
    current: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            lora_B, lora_A = current[name]
            return output + inputs[0] @ lora_A.T @ lora_B.T

        return add

    for name, layer in linear_layers(model).items():
        layer.register_forward_hook(hook(name))
    rates = [rate for _, rate in form.parameters()]
    optimizer = torch.optim.Adam([{"params": [p]} for p, _ in form.parameters()], betas=(0.9, 0.99))
    losses = []
    for step, chosen in enumerate(shuffled(rows, budget.seed, budget.steps, budget.rows)):
        fall = 0.5 + 0.5 * math.cos(math.pi * step / budget.steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * budget.rate * min(1.0, (step + 1) / 5) * fall
        current.update({name: (b.to(dtype), a.to(dtype)) for name, (b, a) in form.factors().items()})
        batch = pad(chosen)
        loss = task.loss_sum(batch, model) / len(batch.targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"step {step + 1} of {budget.steps}: loss {sum(losses[-10:]) / 10:.4f}", file=sys.stderr, flush=True)
    return losses


@torch.no_grad()
def rounded(numbers: torch.Tensor, bits: int, header: object) -> tuple[int, torch.Tensor]:
    """Round numbers (rows, n) in groups of 64; return the bytes of a file, and the rounded numbers."""
    coded = Integers(bits)(numbers.detach().numpy())
    writer = FileWriter(header, compress=True)
    writer.add(coded, range(len(coded.values)))
    return len(writer.blob()), torch.from_numpy(coded.values).float()


def arrays(factors: Factors) -> dict[str, tuple[Any, Any]]:
    """Return factors as arrays."""
    return {name: (b.detach().numpy(), a.detach().numpy()) for name, (b, a) in factors.items()}
