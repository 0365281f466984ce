"""Make batches of tokenized rows, and compute the logits of their scored tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
TokenizedRow = tuple[Sequence[int], int]
"""The token ids of a row, and the number of them that belong to the prompt."""
_SHORT = 256
"""The most tokens of a row for which plain attention is quicker than a fused one (measured at 100 and at 512)."""
_WINDOW = 8
"""The number of batches whose rows are sorted by length among themselves."""


def measured_batches(rows: Sequence[TokenizedRow], fill: int) -> list[Batch]:
    """Return batches of 16 rows of similar lengths, to measure a loss on."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    return [make_batch(ordered[start : start + 16], fill) for start in range(0, len(ordered), 16)]


def similar_lengths(rows: Sequence[TokenizedRow], size: int, seed: int) -> list[list[TokenizedRow]]:
    """Shuffle rows and divide them into batches of similar lengths, which need less padding.

    Rows are sorted by length within windows of eight batches, so that a batch is still drawn from all rows.
    """
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    found = []
    for start in range(0, len(mixed), _WINDOW * size):
        window = sorted(mixed[start : start + _WINDOW * size], key=lambda row: len(row[0]))
        found += [window[first : first + size] for first in range(0, len(window), size)]
    return found


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
    models also scale or cap their logits, and some do not take the masks of packed batches (`packed_batches`), so the
    first batch is run both ways to find out.
    """

    def __init__(self) -> None:
        self._plain: bool | None = None
        self._packs: bool | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (scored, vocabulary) and the labels, int64 (scored,), row after row."""
        device = next(model.parameters()).device
        if self._plain is None:
            self._plain = self._is_body_and_head(model, batch)
        if "segments" in batch:
            from nola_codec.integrations.packed_batches import unpack

            if self._packs is None:
                self._packs = self._takes_packed(model, batch)
            batch = batch if self._packs else unpack(batch)
        with _quick_attention(device, batch["input_ids"].shape[1]):
            return self._run(model, batch)

    def _run(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        first = next(model.parameters())
        labels = batch["labels"][:, 1:].to(first.device)
        scored = labels != -100
        inputs = {"input_ids": batch["input_ids"].to(first.device)}
        if "segments" in batch:
            from nola_codec.integrations.packed_batches import attention_mask

            inputs["attention_mask"] = attention_mask(batch["segments"].to(first.device), first.dtype)
            inputs["position_ids"] = batch["position_ids"].to(first.device)
        else:
            inputs["attention_mask"] = batch["attention_mask"].to(first.device)
        parts = _body_and_head(model) if self._plain else None
        if parts is None:
            return model(**inputs, use_cache=False).logits[:, :-1][scored], labels[scored]
        hidden = parts[0](**inputs, use_cache=False).last_hidden_state[:, :-1]
        return parts[1](hidden[scored]), labels[scored]

    def _is_body_and_head(self, model: torch.nn.Module, batch: Batch) -> bool:
        """Return True if the head on the last hidden states of a row gives the logits of the whole model."""
        parts = _body_and_head(model)
        if parts is None:
            return False
        with _exact_pass(model):
            ids = batch["input_ids"][:1].to(next(model.parameters()).device)
            whole = model(input_ids=ids, use_cache=False).logits
            return _are_close(parts[1](parts[0](input_ids=ids, use_cache=False).last_hidden_state), whole)

    def _takes_packed(self, model: torch.nn.Module, batch: Batch) -> bool:
        """Return True if the logits of a packed row are those of rows of their own."""
        from nola_codec.integrations.packed_batches import unpack

        short = {name: tensor[:1] for name, tensor in batch.items()}
        with _exact_pass(model):
            try:
                packed, _ = self._run(model, short)
            except (TypeError, ValueError, RuntimeError):  # a model without position_ids, or with masks of its own
                return False
            return _are_close(packed, self._run(model, unpack(short))[0])


@contextmanager
def _exact_pass(model: torch.nn.Module) -> Iterator[None]:
    """Turn off gradients and autocast in this context."""
    import torch

    with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
        yield


def _are_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    import torch

    tolerance = 1e-3 if wanted.dtype == torch.float32 else 0.1
    return bool(torch.allclose(found.float(), wanted.float(), rtol=tolerance, atol=tolerance))


def _quick_attention(device: torch.device, length: int) -> AbstractContextManager[None]:
    """Return a context in which the attention of a training pass in bfloat16 over short rows is quick on a CPU.

    The backward pass of the fused attention takes more than twice as long there as plain products of matrices.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    plain = torch.is_grad_enabled() and torch.is_autocast_enabled(device.type) and length <= _SHORT
    if device.type != "cpu" or not plain:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def _body_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = getattr(model, getattr(model, "base_model_prefix", "") or " ", None)
    return None if head is None or body is None else (body, head)
