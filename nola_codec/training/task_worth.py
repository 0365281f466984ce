"""What each component of an adapter is worth on the data of a task, so that a plan keeps those that matter.

Let a in [0, 1] scale all components at once, from the base model (a = 0) to the adapter (a = 1). The worth of component
c is its integrated gradient (Sundararajan et al., arXiv 1703.01365),

    worth_c = - integral over a of  d loss / d a_c,

and the sum over all components is the loss of the base model minus that of the adapter. Each batch takes one a, so that
the integral costs one forward and one backward pass a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from nola_codec.array_types import Float64Array
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.components import unit_vectors
from nola_codec.model.adapter import Codable
from nola_codec.training.attach import FactorPair

_LEAST = 1e-6
"""The least weight of a component, over the mean weight: a component without worth is the first to go."""


def component_worth(
    items: Sequence[Codable],
    loss: Callable[[Mapping[str, FactorPair], int], torch.Tensor],
    batches: int,
    device: torch.device,
    tell: Callable[[int, int], None],
) -> list[Float64Array]:
    """Return the worth of the components of each item, float64 (rank,), the strongest component first.

    Args:
        items: The modules; all of them are pairs of factors.
        loss: A function of factors by module name and the number of a batch: the mean loss of the batch, with autograd.
        batches: The number of batches; a takes the middles of as many equal parts of [0, 1].
        device: The device of the model.
        tell: Called as (batches done, batches in all).
    """
    parts = {}
    for item in items:
        (u, v), singular = unit_vectors(item.sides)
        left, right = (torch.from_numpy(np.ascontiguousarray(side)).to(device) for side in (u, v))
        parts[item.name] = (left.T, right, torch.tensor(singular, dtype=torch.float32, device=device))
    worth = {item.name: np.zeros(item.rank) for item in items}
    for number in range(batches):
        tell(number, batches)
        share = ((number * _stride(batches)) % batches + 0.5) / batches
        gains = {name: torch.full_like(s, share).requires_grad_() for name, (_, _, s) in parts.items()}
        loss({name: (u * (s * gains[name]), v) for name, (u, v, s) in parts.items()}, number).backward()  # type: ignore[no-untyped-call]
        for name, gain in gains.items():
            if gain.grad is not None:
                worth[name] -= gain.grad.double().cpu().numpy() / batches
    tell(batches, batches)
    return [worth[item.name] for item in items]


def _stride(batches: int) -> int:
    """Return a step that visits all parts in an order without a trend: batches may be sorted by length."""
    return next(step for step in range(max(1, int(0.382 * batches)), 2 * batches + 2) if np.gcd(step, batches) == 1)


def weigh_by_worth(form: CanonicalForm, worth: Sequence[Float64Array]) -> CanonicalForm:
    """Return a form whose strengths are the square roots of the components' worth, scaled to the energy of before.

    Args:
        form: The form; units of one item stand together, the strongest first.
        worth: The worth of the components of each item, (rank,).
    """
    weight = np.maximum(np.array([worth[r][c] for r, c in zip(form.record, form.component, strict=True)]), 0)
    energy = form.strength**2
    weight = np.where(energy > 0, np.maximum(weight, _LEAST * weight.mean()), 0)
    if not weight.any():
        return form
    return replace(form, strength=np.sqrt(weight * energy.sum() / weight.sum()), energy=energy)
