"""Batches in which several answers share one prompt, which the model then reads once.

A packed row is the prompt without its last token, and then for each answer a segment: the last token of the prompt, and
the answer. A token sees the prompt and the tokens before it in its own segment, at the positions that it would have in
a row of its own, so that the logits of the answers are those of rows of their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nola_codec.integrations.text_batches import Batch, TokenizedRow, make_batch

if TYPE_CHECKING:
    import torch

_SHORTEST = 8
"""The least tokens of a prompt that is worth sharing."""
_TOGETHER = 4
"""The number of answers that share a prompt; the others of a batch belong to other prompts."""


def pack_batches(rows: Sequence[TokenizedRow], size: int, fill: int, seed: int) -> list[Batch] | None:
    """Return shuffled batches of about `size` rows, packed by prompt; None if prompts are too short or seldom shared.

    Args:
        rows: The rows; those with equal prompts are packed together.
        size: The number of answers of a batch.
        fill: The token that fills up shorter rows.
        seed: The seed of the order.
    """
    by_prompt: dict[tuple[int, ...], list[TokenizedRow]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row[0][: row[1]]), []).append(row)
    shared = sum(len(prompt) * (len(own) - 1) for prompt, own in by_prompt.items() if len(prompt) >= _SHORTEST)
    if 4 * shared < sum(len(ids) for ids, _ in rows):
        return None
    order = random.Random(seed)
    groups = []
    for own in by_prompt.values():
        order.shuffle(own)
        groups += [own[start : start + _TOGETHER] for start in range(0, len(own), _TOGETHER)]
    order.shuffle(groups)
    count = max(1, size // _TOGETHER)
    return [make_packed(groups[start : start + count], fill) for start in range(0, len(groups), count)]


def make_packed(groups: Sequence[Sequence[TokenizedRow]], fill: int) -> Batch:
    """Return one packed row for each group of rows with an equal prompt.

    The batch has input_ids, labels, position_ids and segments, int64 (groups, length) each. Segment 0 is the prompt,
    segment k the k-th answer, and -1 the padding.
    """
    import torch

    packed = []
    for group in groups:
        first, prompt = group[0]
        ids, labels = list(first[: prompt - 1]), [-100] * (prompt - 1)
        places, segments = list(range(prompt - 1)), [0] * (prompt - 1)
        for number, (tokens, _) in enumerate(group, 1):
            own = list(tokens[prompt - 1 :])
            ids += own
            labels += [-100, *own[1:]]
            places += range(prompt - 1, prompt - 1 + len(own))
            segments += [number] * len(own)
        packed.append((ids, labels, places, segments))
    length = max(len(ids) for ids, *_ in packed)

    def table(index: int, padding: int) -> torch.Tensor:
        return torch.tensor([row[index] + [padding] * (length - len(row[index])) for row in packed])

    return {
        "input_ids": table(0, fill),
        "labels": table(1, -100),
        "position_ids": table(2, 0),
        "segments": table(3, -1),
    }


def unpack(batch: Batch) -> Batch:
    """Return the same answers, in the same order, as rows of their own."""
    rows: list[TokenizedRow] = []
    for ids, segments in zip(batch["input_ids"], batch["segments"], strict=True):
        prompt = ids[segments == 0].tolist()
        rows += [([*prompt, *ids[segments == k].tolist()], len(prompt) + 1) for k in range(1, int(segments.max()) + 1)]
    return make_batch(rows, int(batch["input_ids"][0, 0]))


def attention_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask that is added to the scores of the attention, (rows, 1, length, length); see `make_packed`."""
    import torch

    length = segments.shape[1]
    place = torch.arange(length, device=segments.device)
    own, other = segments[:, :, None], segments[:, None, :]
    seen = (place[:, None] >= place) & ((other == 0) | (other == own))
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
