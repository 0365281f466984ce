"""Draw images, latents and words at random, for models whose real inputs nobody gave."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_COARSEST = 4
"""The side of the coarsest image that is enlarged."""
_COMMON = 10
"""Ranks of words below this one are about as frequent as the first, as in natural text (Zipf's law)."""
WORDS = (4, 32)
"""The least and the most words of a text."""


def draw_images(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return images (count, channels, height, width), float32, whose values have mean 0 and variance 1.

    As in photographs and their latents, most of the variance is that of large patches: noise of all sizes is added up.
    """
    import torch
    from torch.nn import functional

    count, channels, height, width = shape
    total = torch.zeros(shape)
    side = _COARSEST
    while side < max(height, width):
        coarse = torch.randn((count, channels, side, side), generator=generator)
        total += functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        side *= 2
    total += torch.randn(shape, generator=generator)
    flat = total.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / centred.std(1, keepdim=True).clamp_min(1e-6)).reshape(shape)


def draw_texts(tokenizer: Any, count: int, seed: int) -> list[str]:
    """Return texts of random words of a tokenizer's vocabulary, early words more often than late ones.

    Vocabularies are sorted by frequency, roughly, so that the words of a text are about as frequent as in real text.
    """
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special]
    words = [word for word in (tokenizer.decode([token]).strip() for token in ids) if word.isalpha()]
    words = [word for word in words if len(word) > 1] or words  # the characters come before the frequent words
    weights = [1 / (rank + _COMMON) for rank in range(len(words))]
    rng = random.Random(f"texts {seed}")
    return [" ".join(rng.choices(words, weights, k=rng.randint(*WORDS))) for _ in range(count)] if words else []
