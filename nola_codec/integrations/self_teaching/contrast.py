"""Draw text that a model finds likely, and another model of the same vocabulary does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LEAST = 0.05
"""The least probability of a token that can be drawn, as a share of the probability of the most likely token."""


@dataclass(frozen=True)
class Contrast:
    """The model that text is drawn away from.

    Attributes:
        forward: A forward pass of a causal language model of Transformers, with its arguments and outputs.
        strengths: The strengths s of `ContrastProcessor`, each at least 1. The rows take them in turns; 1 changes
            nothing but the tokens that can be drawn.
    """

    forward: Callable[..., Any]
    strengths: Sequence[float]


class ContrastProcessor:
    """A logits processor of Transformers that strengthens the difference between two models.

    With the log-probabilities a of the model that writes, and b of the other one, it returns a + (s - 1) (a - b): for
    s = 1 the text of the first model, and for larger s what this model does more often than the other one. Tokens that
    the first model finds unlikely are left out, since their differences mean little (contrastive decoding,
    arXiv 2210.15097).

    Args:
        contrast: The other model.
        strengths: s of each row.
        mask: The attention mask of the prompts, int64 (rows, length).
        takes: The names of the arguments of the forward pass, which not all models have.
    """

    def __init__(
        self, contrast: Contrast, strengths: Sequence[float], mask: torch.Tensor, takes: Collection[str]
    ) -> None:
        import torch

        self._forward, self._takes = contrast.forward, takes
        self._strengths = torch.tensor(list(strengths), device=mask.device)[:, None]
        self._mask = mask
        self._cache: Any = None

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the strengthened logits, (rows, vocabulary).

        Args:
            ids: The tokens up to now, int64 (rows, length); each call has one more than the call before.
            scores: The logits of the model that writes, (rows, vocabulary); -inf for tokens that are not to be drawn.
        """
        import torch

        new = ids if self._cache is None else ids[:, -1:]
        mask = torch.cat([self._mask, self._mask.new_ones(len(ids), ids.shape[1] - self._mask.shape[1])], 1)
        some = {
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :],  # the prompts are padded on the left
            "logits_to_keep": 1,  # those of all positions of long prompts would take gigabytes
        }
        made = self._forward(
            input_ids=new, attention_mask=mask, past_key_values=self._cache, use_cache=True,
            **{name: value for name, value in some.items() if name in self._takes},
        )  # fmt: skip
        self._cache = getattr(made, "past_key_values", None)  # without one, as in Mamba, all is passed through again
        own = scores.float().log_softmax(-1)
        other: torch.Tensor = made.logits[:, -1].float().log_softmax(-1)
        found = own + (self._strengths - 1) * (own - other)
        return found.masked_fill(own < own.amax(-1, keepdim=True) + math.log(_LEAST), -math.inf)
