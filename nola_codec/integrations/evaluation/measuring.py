"""Measure a model on rows of text: the loss of each row, and how the model continues a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.errors import EncodeError
from nola_codec.integrations.evaluation.statistics import Rows
from nola_codec.integrations.text_batches import Batch, ScoredLogits, make_batch, padding_token
from nola_codec.integrations.text_rows import Row, row_texts, tokenize

if TYPE_CHECKING:
    import torch

_MOST_LOGITS = 1 << 28
"""The most logits of a batch, one gibibyte in float32: a batch of long rows has fewer rows than the user allows."""
_PROMPT_TOKENS = 32
"""The most tokens of a text without a prompt that a model continues."""


@dataclass(frozen=True)
class ScoredRows:
    """Rows as batches of tokens.

    Attributes:
        batches: The batches. All subjects get the same ones, so that their losses are compared row by row.
        tokens: The number of scored tokens of each row, in the order of the batches.
        cut: The number of rows that were longer than the limit, and lost their end.
        unscored: The number of rows that were left out, since no token of them is scored.
    """

    batches: list[Batch]
    tokens: Rows
    cut: int
    unscored: int


def prepare_rows(rows: Sequence[Row], tokenizer: Any, vocabulary: int, batch: int, limit: int) -> ScoredRows:
    """Tokenize rows and put them into batches of similar lengths.

    Args:
        rows: The rows.
        tokenizer: A tokenizer of Transformers.
        vocabulary: The number of logits of a token.
        batch: The most rows of a batch.
        limit: The most tokens of a row.

    Raises:
        EncodeError: ``rows``: no row has a scored token; and those of `tokenize`.
    """
    whole = [tokenize(tokenizer, row, sys.maxsize) for row in rows]
    kept = [(ids[:limit], prompt) for ids, prompt in whole if max(prompt, 1) < min(len(ids), limit)]
    if not kept:
        message = f"no row has a scored token within its first {limit} tokens; allow more with max_tokens"
        raise EncodeError(message, code="rows")
    kept.sort(key=lambda row: len(row[0]))
    fill = padding_token(tokenizer)
    batches: list[Batch] = []
    while kept:
        count = 1
        while count < min(batch, len(kept)) and (count + 1) * len(kept[count][0]) * vocabulary <= _MOST_LOGITS:
            count += 1
        batches.append(make_batch(kept[:count], fill))
        kept = kept[count:]
    tokens = np.concatenate([(each["labels"][:, 1:] != -100).sum(1).numpy() for each in batches]).astype(np.float64)
    return ScoredRows(batches, tokens, sum(len(ids) > limit for ids, _ in whole), len(whole) - len(tokens))


def measure_rows(model: torch.nn.Module, rows: ScoredRows, tell: Callable[[int, int], None]) -> Rows:
    """Return the loss of each row: the sum over its scored tokens, in nats.

    Args:
        model: A causal language model in evaluation mode.
        rows: The rows.
        tell: Called as (batches done, batches in all).
    """
    import torch
    from torch.nn import functional

    logits_of = ScoredLogits()
    losses = []
    with torch.no_grad():
        for done, batch in enumerate(rows.batches):
            tell(done, len(rows.batches))
            logits, labels = logits_of(model, batch)
            each = functional.cross_entropy(logits.float(), labels, reduction="none").double().cpu()
            counts = (batch["labels"][:, 1:] != -100).sum(1)
            losses += [float(part.sum()) for part in torch.split(each, counts.tolist())]
    tell(len(rows.batches), len(rows.batches))
    return np.array(losses)


@dataclass(frozen=True)
class Prompt:
    """A prompt that every subject continues.

    Attributes:
        ids: Its tokens.
        text: Its text.
        expected: The continuation of the row that it comes from; empty if there is none.
    """

    ids: tuple[int, ...]
    text: str
    expected: str = ""


def make_prompts(rows: Sequence[Row], tokenizer: Any, limit: int) -> list[Prompt]:
    """Return the prompts of rows; a text without a prompt is cut in half, and half of it is the prompt.

    Args:
        rows: The rows.
        tokenizer: A tokenizer of Transformers.
        limit: The most tokens of a prompt. The first ones of a longer prompt are left out.
    """
    made = []
    for row in rows:
        prompt, expected = row_texts(tokenizer, row)
        if prompt:
            ids = tokenizer(prompt, add_special_tokens=not row.messages)["input_ids"]
        else:
            text = tokenizer(expected)["input_ids"]
            ids = text[: min(_PROMPT_TOKENS, max(1, len(text) // 2))]
            prompt = tokenizer.decode(ids, skip_special_tokens=True)
            expected = tokenizer.decode(text[len(ids) :], skip_special_tokens=True)
        made.append(Prompt(tuple(ids[-limit:]), prompt, expected))
    return made


def continue_prompt(model: Any, tokenizer: Any, prompt: Prompt, new_tokens: int) -> str:
    """Return the text with which a model continues a prompt: the likeliest token each time, so no seed plays a part."""
    import torch
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    ids = torch.tensor([prompt.ids], device=device)
    own = getattr(model, "generation_config", None)
    end = tokenizer.eos_token_id if own is None or own.eos_token_id is None else own.eos_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, eos_token_id=end,
        pad_token_id=padding_token(tokenizer),
    )  # fmt: skip
    # A model's own settings would fill in what is left out here, such as a repetition penalty.
    model.generation_config, kept = config, own
    try:
        with torch.no_grad():
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        model.generation_config = kept
    text: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return text
