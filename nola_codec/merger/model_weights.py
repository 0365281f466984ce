"""Find the places of deltas in a model in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.errors import AdapterError
from nola_codec.merger.matching import resolve_places
from nola_codec.merger.model_names import ModelNames
from nola_codec.merger.quantized_bases import require_unquantized_targets
from nola_codec.merger.quantized_modules import quantized_parameters
from nola_codec.merger.weight_places import Place

if TYPE_CHECKING:
    import torch

Targets = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Sequence[MergeTarget]]
"""``targets(shapes, config)`` returns the targets of a file, given the shapes of a model's weights and its config."""


def find_in_model(
    model: torch.nn.Module, targets: Targets, *, may_be_tied: bool = False
) -> tuple[dict[str, torch.nn.Parameter], dict[str, Place]]:
    """Return the parameters of a model by name, and the place of each delta by the weight's name.

    Args:
        model: The model to change.
        targets: A function that returns the targets of the file's deltas.
        may_be_tied: True to accept a weight that another module shares, so that the module changes too.

    Raises:
        AdapterError: ``base-mismatch``; ``quantized-base``; ``tied-weights``: a weight that changes is shared with
            another module.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(p.shape) for name, p in weights.items()}
    config: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
    wanted = list(targets(shapes, config))
    quantized = quantized_parameters(model, config)
    require_unquantized_targets(wanted, ModelNames({*shapes, *quantized}, config), quantized)
    places = resolve_places(wanted, shapes, config)
    uses = Counter(id(p) for p in weights.values())
    for place in places.values():
        if not may_be_tied and uses[id(weights[place.weight])] > 1:
            raise AdapterError(
                f"{place.weight} is tied to another weight, which would change with it; untie them, or merge with "
                "`decode --base`, which unties them", code="tied-weights", where=place.module
            )  # fmt: skip
    return weights, places
