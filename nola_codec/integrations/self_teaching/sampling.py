"""Sample text from a causal language model, many rows at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nola_codec.integrations.self_teaching.contrast import Contrast, ContrastProcessor
from nola_codec.integrations.text_batches import TokenizedRow, padding_token

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SamplingSettings:
    """How text is drawn.

    Attributes:
        temperature: The temperature of the distribution; 1 is the model's own.
        new_tokens: The most tokens of an answer.
        batch: The number of rows that are drawn side by side.
        seed: The seed.
        least_tokens: The least tokens of an answer before its end-of-sequence token.
        banned: The ids of tokens that are never drawn.
        contrast: The model that text is drawn away from; None draws what the model itself writes.
    """

    temperature: float = 1.0
    new_tokens: int = 96
    batch: int = 64
    seed: int = 0
    least_tokens: int = 0
    banned: Sequence[int] = ()
    contrast: Contrast | None = None


def end_tokens(model: torch.nn.Module, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text: those of the model's settings, else that of the tokenizer."""
    settings: Any = getattr(model, "generation_config", None)
    end = tokenizer.eos_token_id if settings is None or settings.eos_token_id is None else settings.eos_token_id
    return {end} if isinstance(end, int) else set(end or ())


def sample_answers(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    tell: Callable[[int, int], None],
) -> list[TokenizedRow]:
    """Return one answer to each prompt, as (prompt and answer, length of the prompt).

    Both together are no longer than the context of the model: answers take at most half of it, and prompts that are too
    long lose their beginnings.

    An answer ends with the end-of-sequence token, unless it was cut at the most tokens. The rows come in the order of
    the prompts. One seed gives the same rows on one machine; the state of PyTorch's generator stays as it was.

    Args:
        model: A causal language model of Transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, at least one.
        settings: How text is drawn.
        tell: Called as (prompts done, prompts in all).
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    own: Any = model
    device = next(model.parameters()).device
    kept = getattr(own, "generation_config", None)
    ends = end_tokens(model, tokenizer)
    fill = padding_token(tokenizer)
    found = getattr(own.config, "max_position_embeddings", None)
    context = found if isinstance(found, int) and found > 1 else 1 << 30
    new_tokens = min(settings.new_tokens, context // 2)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens, min_new_tokens=min(settings.least_tokens, new_tokens), do_sample=True,
        temperature=settings.temperature, top_k=0, top_p=1.0,
        num_beams=1, repetition_penalty=1.0, eos_token_id=sorted(ends) or None, pad_token_id=fill,
        suppress_tokens=list(settings.banned) or None,
    )  # fmt: skip
    prompts = [list(prompt)[-(context - new_tokens) :] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding
    rows: list[TokenizedRow] = [((), 0)] * len(prompts)
    devices = [device] if device.type == "cuda" else []
    # A model's own settings would fill in what is left out here, such as a repetition penalty.
    own.generation_config = config
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed)
            for start in range(0, len(order), settings.batch):
                tell(start, len(order))
                chosen = order[start : start + settings.batch]
                ids, mask = _pad_left([prompts[i] for i in chosen], fill)
                report = _make_reporter(
                    partial(_tell_rows, tell, start, len(chosen), len(order)), ids.shape[1], new_tokens
                )
                processors = LogitsProcessorList(_contrast_rows(settings.contrast, chosen, mask.to(device), own))
                made = own.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    logits_processor=processors,
                    stopping_criteria=StoppingCriteriaList([report]),
                )[:, ids.shape[1] :].tolist()
                for index, answer in zip(chosen, made, strict=True):
                    prompt = list(prompts[index])
                    rows[index] = (prompt + _cut(answer, ends), len(prompt))
    finally:
        own.generation_config = kept
    tell(len(order), len(order))
    return rows


def _contrast_rows(
    contrast: Contrast | None, chosen: Sequence[int], mask: torch.Tensor, model: Any
) -> list[ContrastProcessor]:
    """Return the processor of these rows, whose numbers choose their strengths; none without a contrast."""
    if contrast is None:
        return []
    strengths = [contrast.strengths[index % len(contrast.strengths)] for index in chosen]
    return [ContrastProcessor(contrast, strengths, mask, inspect.signature(model.forward).parameters)]


def _tell_rows(tell: Callable[[int, int], None], start: int, rows: int, total: int, share: float) -> None:
    """Report the rows before a batch and a share of its rows, which grow side by side."""
    tell(start + int(rows * share), total)


def _make_reporter(tell: Callable[[float], None], length: int, new_tokens: int) -> Callable[..., torch.Tensor]:
    """Return a stopping criterion that stops nothing, and tells the share of the new tokens that are drawn.

    Args:
        tell: A function of the share.
        length: The number of tokens before the new ones.
        new_tokens: The most new tokens.
    """
    import torch

    def report(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        tell((ids.shape[1] - length) / new_tokens)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return report


def _cut(answer: list[int], ends: set[int]) -> list[int]:
    """Return an answer up to its first end-of-sequence token, and with it."""
    stop = next((place for place, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: stop + 1]


def _pad_left(prompts: Sequence[Sequence[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input_ids and attention_mask, int64 (rows, length), of prompts that end in the last column."""
    import torch

    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), fill)
    mask = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, length - len(prompt) :] = 1
    return ids, mask
