"""Find the place of each delta in a base model, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from nola_codec.adapters.base_model import MergeTarget, delta_shape
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.checkpoints.embeddings import TiedEmbeddings, have_same_leaf
from nola_codec.merger.arithmetic.parts import Region, swap_last
from nola_codec.merger.layout_places import LayoutPlaces
from nola_codec.merger.misfits import Misfits
from nola_codec.merger.model_names import ModelNames
from nola_codec.merger.part_places import part_places
from nola_codec.merger.weight_places import Place
from nola_codec.model.records import CodedRecord

# Models with `transformers.pytorch_utils.Conv1D`, whose weights are stored (in, out), and their modules of that class.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})


def resolve_places(
    targets: Iterable[MergeTarget],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    tied: TiedEmbeddings | None = None,
    names: ModelNames | None = None,
) -> dict[str, Place]:
    """Find the place of every delta.

    Only names and shapes are looked at, so this serves a model in memory as well as a directory.

    Args:
        targets: The deltas of an adapter.
        shapes: The shape of each weight of the base model, by name.
        config: ``config.json`` of the base model.
        tied: The result of `tied_embeddings`. A delta of the missing weight then starts from the stored weight.
        names: The weights of the base model by name, if the caller has them; to read them takes time.

    Returns:
        `Place` by the name of the weight.

    Raises:
        AdapterError: ``base-mismatch``, with one line for each delta that found no weight of its shape.
    """
    targets = list(targets)
    names = names or ModelNames(shapes, config)
    order = _find_order(targets, names, shapes, config)
    layouts = LayoutPlaces(shapes)
    found = _Found()
    misfits = Misfits(shapes)
    for target in targets:
        wanted = wanted_names(target)
        stored = names.find_all(wanted)
        if not stored and tied is not None and have_same_leaf(tied.missing, wanted[0]):
            weight, source = tied.missing, tied.stored
        elif len(stored) == 1:
            weight = source = stored[0]
        else:
            parts = [] if stored else part_places(replace(target, weight=wanted[0]), names, shapes)
            parts = parts or ([] if stored else layouts.find(target, wanted[0]))
            if not parts:
                misfits.add_unfound(target, wanted[0], stored)
            for part in parts:
                found.add(part, misfits)
            continue
        if order != "as flagged" and _is_flagged(target) and _is_square(shapes[source]):
            if order == "mixed":
                misfits.add(target.name, f"{source} is square, and the model stores some weights (in, out), others not")
                continue
            target = replace(target, fan_in_fan_out=False)
        transposed = _fits_transposed(target, weight.rpartition(".")[0], shapes[source], config)
        if transposed is None:
            misfits.add_shape(target, source)
        else:
            found.add(Place(target.name, weight, source, transposed), misfits)
    misfits.raise_if_any()
    return {weight: replace(first, others=tuple(others)) for weight, (first, *others) in found.places.items()}


def _find_order(
    targets: Iterable[MergeTarget], names: ModelNames, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> Literal["as flagged", "straight", "mixed"]:
    """Return how square weights are stored whose deltas have PEFT's flag `fan_in_fan_out`, which may be wrong for them.

    Their shapes do not tell, but those of the other weights with the flag do: PEFT ignores it for a linear layer whose
    weight is stored (out, in).
    """
    if config.get("model_type") in _CONV1D_MODELS:
        return "as flagged"  # the names of modules decide
    found = set()
    for target in filter(_is_flagged, targets):
        for name in names.find_all(wanted_names(target)):
            if not _is_square(shapes[name]):
                found.add(_fits_transposed(target, name.rpartition(".")[0], shapes[name], config))
    if False not in found:
        return "as flagged"
    return "mixed" if True in found else "straight"


def _is_flagged(target: MergeTarget) -> bool:
    return target.fan_in_fan_out and target.layout == "linear" and not target.reshaped


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


class _Found:
    """The places that were found, by weight."""

    def __init__(self) -> None:
        self.places: dict[str, list[Place]] = {}
        self._owners: dict[tuple[str, Region], str] = {}

    def add(self, place: Place, misfits: Misfits) -> None:
        """Add a place, unless another delta changes the same part of the weight."""
        key = (place.weight, place.put)
        earlier = self.places.setdefault(place.weight, [])
        # Parts of one weight may stand side by side, and a whole stands alone.
        met = earlier if not place.put else [other for other in earlier[:1] if not other.put]
        if met or key in self._owners:
            owner = met[0].module if met else self._owners[key]
            misfits.add(place.module, f"{place.weight} is already changed by {owner}")
        else:
            self._owners[key] = place.module
            earlier.append(place)


def has_place(
    target: MergeTarget,
    names: ModelNames,
    layouts: LayoutPlaces,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> bool:
    """Return True if a delta has one place among stored weights, where its shape fits."""
    wanted = wanted_names(target)
    weight = names.find(*wanted)
    if weight is None:
        parts = part_places(replace(target, weight=wanted[0]), names, shapes)
        return bool(parts or layouts.find(target, wanted[0]))
    return _fits_transposed(target, weight.rpartition(".")[0], shapes[weight], config) is not None


def wanted_names(target: MergeTarget) -> tuple[str, ...]:
    """Return the names that the tensor of a target may have, the most usual first."""
    weight = target.weight or f"{module_path(target.name)}.weight"
    if weight.endswith(".weight") and not target.reshaped:
        # Multi-head attention of PyTorch keeps its three input projections in one parameter.
        return (weight, f"{weight.removesuffix('.weight')}.in_proj_weight", *target.alternatives)
    return (weight, *target.alternatives)


def _fits_transposed(target: MergeTarget, path: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool | None:
    """Return True if the delta fits a weight transposed, False if it fits as it is, and None if it does not fit."""
    if target.reshaped:
        return False if shape[:1] == target.shape[:1] and math.prod(shape) == math.prod(target.shape) else None
    # A kernel of one element is a linear layer: tools squeeze it, or keep it, as they like.
    same = _without_unit_kernel(shape) == _without_unit_kernel(target.shape)
    if target.layout != "linear":
        return False if same else None
    if is_stored_transposed(path, config, target.fan_in_fan_out) and shape == swap_last(target.shape):
        return True
    # The flag may come from another module, so a weight that fits as it is is not transposed.
    return False if same else None


def _without_unit_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def is_stored_transposed(path: str, config: Mapping[str, Any], fan_in_fan_out: bool) -> bool:
    """Return True if the weight of a linear module should be stored (in, out).

    If the type of the model is known to have such weights, it decides. For other models PEFT's flag decides. PEFT saves
    the flag of the last module only, so it may be wrong for a model that mixes both types.
    """
    if config.get("model_type") in _CONV1D_MODELS:
        return path.rpartition(".")[2] in _CONV1D_MODULES
    return fan_in_fan_out


def merge_target(record: CodedRecord) -> MergeTarget:
    """Return the target of a low-rank record."""
    kind = record.kind
    shape = delta_shape(kind.layout, *reversed(kind.stored_shapes))
    return MergeTarget(record.name, kind.layout, shape, kind.scaling, kind.fan_in_fan_out)
