"""Make batches of tokenized rows, and compute the logits of their scored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.integrations.calibration_data import Row

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
TokenizedRow = tuple[Sequence[int], int]
"""The token ids of a row, and the number of them that belong to the prompt."""


def sort_by_length(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by length, the shortest first, since batches of similar lengths need less padding."""
    return sorted(rows, key=lambda row: len(row.prompt) + len(row.completion) + sum(len(str(m)) for m in row.messages))


def padding_token(tokenizer: Any) -> int:
    """Return the id of the token that fills up the shorter rows of a batch."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def make_batch(rows: Sequence[TokenizedRow], fill: int) -> Batch:
    """Return input_ids, attention_mask and labels of rows, (rows, length) each; labels of unscored tokens are -100."""
    import torch

    length = max(len(ids) for ids, _ in rows)
    made = {
        "input_ids": torch.full((len(rows), length), fill),
        "attention_mask": torch.zeros((len(rows), length), dtype=torch.int64),
        "labels": torch.full((len(rows), length), -100),
    }
    for index, (ids, prompt) in enumerate(rows):
        tokens = torch.tensor(list(ids))
        made["input_ids"][index, : len(ids)] = tokens
        made["attention_mask"][index, : len(ids)] = 1
        made["labels"][index, prompt : len(ids)] = tokens[prompt:]
    return made


class ScoredLogits:
    """Computes the logits of the scored positions, and their labels.

    If a model is only a body and a head, the head is run on the scored positions alone, which saves much time. Some
    models also scale or cap their logits, so the first batch is run both ways to find out.
    """

    def __init__(self) -> None:
        self._plain: bool | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (scored, vocabulary) and the labels, int64 (scored,), row after row."""
        import torch

        device = next(model.parameters()).device
        labels = batch["labels"][:, 1:].to(device)
        scored = labels != -100
        inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": batch["attention_mask"].to(device)}
        if self._plain is None:
            with torch.no_grad():
                short = {name: tensor[:1] for name, tensor in inputs.items()}
                whole = model(**short, use_cache=False).logits
                parts = _body_and_head(model)
                self._plain = parts is not None and bool(
                    torch.allclose(parts[1](parts[0](**short, use_cache=False).last_hidden_state), whole, atol=1e-4)
                )
        parts = _body_and_head(model) if self._plain else None
        if parts is None:
            return model(**inputs, use_cache=False).logits[:, :-1][scored], labels[scored]
        hidden = parts[0](**inputs, use_cache=False).last_hidden_state[:, :-1]
        return parts[1](hidden[scored]), labels[scored]


def _body_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = getattr(model, getattr(model, "base_model_prefix", "") or " ", None)
    return None if head is None or body is None else (body, head)
