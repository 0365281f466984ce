"""Find the layers of a model that an adapter changes, by the rules of a merge, so that any dialect can be trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import dialect_of
from nola_codec.errors import EncodeError
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.places import WeightShapes, grouped_deltas
from nola_codec.merger.plan import MergePlan, plan_merge
from nola_codec.model.adapter import Adapter

if TYPE_CHECKING:
    import torch

    from nola_codec.training.attach import PlacedModel


def place_adapter(model: torch.nn.Module, adapter: Adapter, components: Collection[str] | None = None) -> PlacedModel:
    """Find the layer of each module of an adapter, and put the tensors that the adapter carries into the model.

    Args:
        model: The base model; its biases and norms change if the adapter brings others.
        adapter: The adapter, of any dialect that a merge understands.
        components: The components of a pipeline that the model may be, as names of modules tell them; modules of other
            components get no layer. None is for a model that is no component.

    Raises:
        AdapterError: ``base-mismatch`` and the other errors of `plan_merge`: the adapter does not fit.
        EncodeError: ``task-form``: the adapter changes parts of weights, or nothing in this model.
    """
    import torch

    from nola_codec.decoder.torch_raw import to_torch
    from nola_codec.training.attach import PlacedModel

    dialect = dialect_of(adapter)

    def belongs(name: str) -> bool:
        return components is None or dialect.component_of(name) in {"", *components}

    memory = MemoryModel(model)
    base = WeightShapes.of(memory)
    found = {name: parts for name, parts in grouped_deltas(adapter).items() if belongs(name)}
    if not found:
        message = f"the adapter has no module of this model, of the component {' or '.join(sorted(components or ()))}"
        raise EncodeError(message, code="task-form", where=type(model).__name__)
    targets = dialect.merge_targets(adapter, found, base, "the adapter")
    carried = {key: tensor for key, tensor in dialect.model_tensors(adapter).items() if belongs(key)}
    config, stays_tied = dialect.merge_config(adapter), dialect.changes_stored_weights
    plan = plan_merge(memory, targets, carried, config, stays_tied=stays_tied, names=base.names)
    if plan.unties or plan.vocabulary is not None:
        message = "an adapter that unties or resizes embeddings cannot be trained on a task"
        raise EncodeError(message, code="task-form")
    with torch.no_grad():
        for name, tensor in {**plan.reloaded, **plan.replaced}.items():
            if name not in memory.parameters:
                raise EncodeError("the base model has no such parameter", code="task-form", where=name)
            memory.parameters[name].copy_(to_torch(tensor))
        for name, (tensor, scaling) in plan.bias_terms.items():
            memory.parameters[name].add_(to_torch(tensor).float(), alpha=scaling)
    return PlacedModel(model, _layer_paths(plan))


def _layer_paths(plan: MergePlan) -> dict[str, str]:
    """Return the path of the layer of each module, by the name of the module."""
    paths = {}
    for weight, place in plan.places.items():
        if place.others or place.taken or place.put or not weight.endswith(".weight"):
            message = (
                "this module changes a part of a weight of the base model, or several weights, which cannot be trained "
                "on a task; decode a file of the adapter with --format diffusers, and encode what comes out"
            )
            raise EncodeError(message, code="task-form", where=place.module)
        paths[place.module] = weight.removesuffix(".weight")
    return paths


def size_of_change(
    model: torch.nn.Module, adapter: Adapter, outputs: Callable[[torch.nn.Module, Any], torch.Tensor],
    batches: Sequence[Any],
) -> float:  # fmt: skip
    """Return the norm of the change that the adapter makes to the outputs of an item; the root of the mean square.

    Args:
        model: The model, without the adapter.
        adapter: The adapter.
        outputs: A function that returns the outputs (items, ...) of a batch.
        batches: The batches to measure on.

    Raises:
        EncodeError: ``task-data``: the adapter changes nothing, or the outputs are not finite.
    """
    import torch

    from nola_codec.training.attach import FactorPair, attach_factors

    pairs = {m.name: (torch.from_numpy(m.lora_B), torch.from_numpy(m.lora_A)) for m in adapter.modules}
    attached: dict[str, FactorPair] = {}
    total, items = 0.0, 0
    with torch.no_grad(), attach_factors(model, adapter.modules, lambda: attached):
        for batch in batches:
            attached = {}
            before = outputs(model, batch).double()
            attached = pairs
            total += float((outputs(model, batch).double() - before).square().sum())
            items += len(before)
    size = math.sqrt(total / max(1, items))
    if not 0 < size < float("inf"):
        message = f"the change that the adapter makes to the outputs of the model has the norm {size}; nothing can be "
        raise EncodeError(f"{message}learned from it. Is this the base model of the adapter?", code="task-data")
    return size


def hash_adapter(adapter: Adapter) -> str:
    """Return a hash of the factors of an adapter and of what they are called."""
    sha = hashlib.sha256()
    for module in adapter.modules:
        sha.update(f"{module.name} {module.scaling}".encode())
        for side in module.sides:
            sha.update(side.tobytes())
    return sha.hexdigest()
