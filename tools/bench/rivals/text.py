"""E2E NLG on SmolLM2-135M for rivals: the rows to train on, and the held-out loss.

The loss is that of `e2e_loss.loss`, over the same rows. It costs less here: rows of similar length are evaluated
together, and the head runs on scored tokens only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

Row = tuple[list[int], int]
"""The token ids of a row, and how many of them are the prompt."""


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass.

    Attributes:
        inputs: The arguments of the body of the model.
        scored: Positions whose next token is scored, as indices (scored,) into the flattened hidden states.
        targets: Those next tokens, (scored,).
    """

    inputs: Mapping[str, torch.Tensor]
    scored: torch.Tensor
    targets: torch.Tensor


def pad(rows: Sequence[Row]) -> Batch:
    """Put rows below each other, padded at their ends."""
    longest = max(len(ids) for ids, _ in rows)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    mask, scored = torch.zeros_like(tokens), torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (ids, prompt) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        mask[i, : len(ids)] = 1
        scored[i, prompt : len(ids)] = True
    places = torch.nonzero(scored.ravel())[:, 0]
    return Batch({"input_ids": tokens, "attention_mask": mask}, places - 1, tokens.ravel()[places])


class TextTask:
    """The base model and the rows of the task.

    Attributes:
        base: The directory of the base model.
        model: The model in float32, in evaluation mode and frozen.
    """

    def __init__(self, base: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.base = base
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model: Any = model.eval().requires_grad_(False)
        self._training_rows: list[Row] = []

    def rows(self, split: str, start: int, stop: int) -> list[Row]:
        """Tokens of the rows `start` to `stop` of a shuffled split of `e2e_loss`."""
        import e2e_loss  # on the path once `common` is imported

        found = []
        for meaning, text in e2e_loss.rows(split, stop)[start:]:
            prompt = self._tokenizer("data: " + meaning + "\ntext:")["input_ids"]
            target = self._tokenizer(" " + text + "\n")["input_ids"]
            found.append(([*prompt, *target, self._tokenizer.eos_token_id], len(prompt)))
        return found

    def training_rows(self) -> list[Row]:
        """All rows to train on, those that the adapter was trained on."""
        if not self._training_rows:
            self._training_rows = self.rows("valid", 0, 10**6)
        return self._training_rows

    def loss_sum(self, batch: Batch, model: Any = None) -> torch.Tensor:
        """Nats, summed over the scored tokens of a batch."""
        model = self.model if model is None else model
        hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        return functional.cross_entropy(model.lm_head(hidden[batch.scored]).float(), batch.targets, reduction="sum")

    @torch.no_grad()
    def loss(self, rows: Sequence[Row], size: int = 16) -> float:
        """Nats a scored token over all rows, in float32."""
        ordered = sorted(rows, key=lambda row: len(row[0]))
        total = scored = 0.0
        for start in range(0, len(ordered), size):
            batch = pad(ordered[start : start + size])
            total += self.loss_sum(batch).item()
            scored += len(batch.targets)
        return total / scored


def shuffled(rows: Sequence[Row], seed: int, steps: int, size: int) -> Iterator[list[Row]]:
    """Yield the rows of each step; every row comes once before any comes again."""
    draw = random.Random(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = list(range(len(rows)))
            draw.shuffle(order)
        yield [rows[order.pop()] for _ in range(size)]
