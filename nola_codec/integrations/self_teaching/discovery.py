"""Find what an adapter is for, without a prompt: grow text from the beginnings on which it disagrees with its base.

Text that a language model writes from nothing is seldom text of the adapter's task. But where it is, the adapter
predicts other tokens than the base model. So texts are drawn, those with the largest log-ratio

    1/n * sum over the n tokens of  log p(token | adapter) - log p(token | base model)

are kept, and new texts are drawn that go on from their beginnings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nola_codec.integrations.text_batches import Batch, TokenizedRow

if TYPE_CHECKING:
    import torch


LogitsOf = Callable[[Batch], "tuple[torch.Tensor, torch.Tensor]"]


@dataclass(frozen=True)
class DiscoverySettings:
    """How the domain is looked for.

    Attributes:
        first: The number of texts that are drawn from nothing, or from other beginnings.
        rounds: The number of times that new texts grow from the best ones.
        grown: The number of texts that are drawn in a round.
        best: The number of texts whose beginnings go on in a round.
    """

    first: int = 192
    rounds: int = 2
    grown: int = 160
    best: int = 24


def discover(
    draw: Callable[[Sequence[Sequence[int]], int], list[TokenizedRow]],
    disagreement: Callable[[Sequence[TokenizedRow]], list[float]],
    begins: Sequence[Sequence[int]],
    count: int,
    settings: DiscoverySettings,
    seed: int,
) -> list[TokenizedRow]:
    """Return texts of the adapter's domain, the one of the largest disagreement first.

    Args:
        draw: A function of prompts and of the number of the draw, that returns an answer to each prompt.
        disagreement: A function that returns the log-ratio of each row.
        begins: The tokens that the first texts begin with, at least one sequence; they are not scored.
        count: The number of texts that are returned.
        settings: How the domain is looked for.
        seed: The seed of the places where beginnings end.
    """
    own = random.Random(seed)
    found = draw([begins[place % len(begins)] for place in range(settings.first)], 0)
    scores = disagreement(found)
    for number in range(1, settings.rounds + 1):
        order = sorted(range(len(found)), key=lambda i: -scores[i])[: settings.best]
        prompts, starts = [], []
        for place in range(settings.grown):
            ids, start = found[order[place % len(order)]]
            prompts.append(list(ids)[: start + own.randint(1, max(1, (len(ids) - start) // 2))])
            starts.append(start)
        grown = [(ids, start) for (ids, _), start in zip(draw(prompts, number), starts, strict=True)]
        found += grown
        scores += disagreement(grown)
    order = sorted(range(len(found)), key=lambda i: -scores[i])[:count]
    return [found[i] for i in order]
