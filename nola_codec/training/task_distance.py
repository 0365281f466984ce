"""Distances between the outputs of a model with trained coefficients and those of the model with the adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional

Kept = tuple[torch.Tensor, ...]
"""What a distance keeps of the adapter's outputs on one batch: tensors whose first dimension counts the items."""


class Distance(Protocol):
    """The contract of `TaskData.distance`."""

    def keep(self, outputs: torch.Tensor, base: Callable[[], torch.Tensor]) -> Kept:
        """Return what `measure` needs of the adapter's outputs; it is kept in memory or on disk for all steps.

        Args:
            outputs: The outputs with the adapter, (items, ...).
            base: A function that returns the outputs of the model without an adapter; it costs a forward pass.
        """

    def measure(self, outputs: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, int]:
        """Return the distance summed over all items of a batch, with autograd, and the number of items."""


class Divergence:
    """The Kullback-Leibler divergence from the distribution of the adapter, in nats.

    Let p be the distribution of the adapter, q that of the trained model, and K the `top` classes of largest p. All
    other classes count as one, so that the distance is

        sum over i in K of p_i log(p_i / q_i)  +  P log(P / Q),   P = 1 - sum over K of p,   Q = 1 - sum over K of q

    which is at most the divergence over all classes.
    """

    def __init__(self, top: int = 128) -> None:
        self.top = top

    def keep(self, outputs: torch.Tensor, base: Callable[[], torch.Tensor]) -> Kept:
        """Return log p of the classes in K, float32 (items, top), and their numbers, int32 (items, top)."""
        logs = functional.log_softmax(outputs.float(), -1)
        values, places = logs.topk(min(self.top, logs.shape[-1]), -1)
        return values, places.to(torch.int32)

    def measure(self, outputs: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, int]:
        """Return the divergence of logits (items, classes), summed over the items; see `Distance`."""
        values, places = kept
        logits = outputs.float()
        found = logits.gather(-1, places.long()) - logits.logsumexp(-1, keepdim=True)
        total = (values.exp() * (values - found)).sum()
        if places.shape[-1] < logits.shape[-1]:
            rest, left = _log_rest(values), _log_rest(found)
            total = total + (rest.exp() * (rest - left)).sum()
        return total, len(logits)


def _log_rest(logs: torch.Tensor) -> torch.Tensor:
    """Return log(1 - sum of exp(logs)) over the last dimension; a rest below 1e-7 counts as 1e-7."""
    return (1 - logs.exp().sum(-1)).clamp_min(1e-7).log()


class SquaredError:
    """The squared error of the outputs: of each item, summed over its numbers.

    With `relative`, that of an item is divided by the squared change that the adapter makes of the item, so that all
    items weigh alike; the base model then has the distance 1.
    """

    def __init__(self, *, relative: bool = False) -> None:
        self.relative = relative

    def keep(self, outputs: torch.Tensor, base: Callable[[], torch.Tensor]) -> Kept:
        """Return the outputs, float32 (items, numbers), and the weight of each item, float32 (items,)."""
        wanted = outputs.float().flatten(1)
        weight = torch.ones(len(wanted), device=wanted.device)
        if self.relative:
            change = (wanted - base().float().flatten(1)).square().sum(1)
            weight = 1 / change.clamp_min(1e-6 * float(change.mean()) + 1e-30)
        return wanted, weight

    def measure(self, outputs: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, int]:
        """Return the weighted squared error of outputs (items, ...), summed over the items; see `Distance`."""
        wanted, weight = kept
        return ((outputs.float().flatten(1) - wanted).square().sum(1) * weight).sum(), len(wanted)
