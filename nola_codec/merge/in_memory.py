"""Where the deltas of a file go in a model in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.errors import AdapterError
from nola_codec.merge.matching import WeightMatch, resolve_weights

if TYPE_CHECKING:
    import torch

Targets = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Sequence[MergeTarget]]
"""From the shapes of a model's weights and its configuration."""


def find_in_model(
    model: torch.nn.Module, targets: Targets, *, may_be_tied: bool = False
) -> tuple[dict[str, torch.nn.Parameter], dict[str, WeightMatch]]:
    """Parameters by name, and the one that each delta is added to.

    Args:
        model: The model that is changed.
        targets: Returns the request of each delta.
        may_be_tied: Accept a weight that is shared with another module, which changes with it.

    Raises:
        AdapterError: ``base-mismatch``; ``tied-weights`` when one that changes is shared with another module.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(p.shape) for name, p in weights.items()}
    config: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
    matches = resolve_weights(targets(shapes, config), shapes, config)
    uses = Counter(id(p) for p in weights.values())
    for name, match in matches.items():
        if not may_be_tied and uses[id(weights[match.weight])] > 1:
            raise AdapterError(
                f"{match.weight} is tied to another weight, which would change with it; untie them, or merge with "
                "`decode --base`, which does", code="tied-weights", where=name
            )  # fmt: skip
    return weights, matches
