"""Find places for a delta that is spread over several weights of a base model, or that changes a part of one.

Transformers keeps the experts of a layer in one tensor in memory and, for most models, one by one on disk. An adapter
may have either form, and so may the base. Fused projections (``gate_up_proj``, ``qkv``) are split and joined likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.checkpoints.key_renames import WeightName
from nola_codec.merger.arithmetic.parts import Region, region_shape
from nola_codec.merger.model_names import ModelNames, StoredPart, region_of
from nola_codec.merger.weight_places import Place

Shapes = Mapping[str, tuple[int, ...]]

EACH_EXPERT = "*"
"""Stands for the number of an expert in `MergeTarget.weight`: the slices of the delta belong to one weight each."""


def part_places(target: MergeTarget, names: ModelNames, shapes: Shapes) -> list[Place]:
    """Return the places of a delta whose weight is not stored as the adapter names it.

    Args:
        target: The delta, with the name of its weight.
        names: The stored tensors by name.
        shapes: The shape of each stored tensor.

    Returns:
        The places, which together take the whole delta; an empty list if there are none or they do not fit.
    """
    for weight in (target.weight, *target.alternatives):
        if EACH_EXPERT in weight:
            places = _places_of_experts(target, weight, names, shapes)
        else:
            places = _places(target, weight, (), names, shapes)
        if places:
            return places
    return []


def _places_of_experts(target: MergeTarget, weight: str, names: ModelNames, shapes: Shapes) -> list[Place]:
    """Return the places of a delta whose slices belong to one weight each; an empty list if one has none."""
    places: list[Place] = []
    for expert in range(target.shape[0]):
        name = weight.replace(EACH_EXPERT, str(expert))
        own = _places(target, name, ((expert, expert + 1),), names, shapes)
        if not own:
            return []
        places += own
    return places


def _places(target: MergeTarget, weight: str, taken: Region, names: ModelNames, shapes: Shapes) -> list[Place]:
    """Return the places of a delta, or of one slice of it."""
    shape = region_shape(taken, target.shape)[len(taken) :]
    stored = names.find(weight)
    if stored is not None:
        place = Place(target.name, stored, stored, False, taken)
        return _turned(place, shape, shapes[stored], target)
    read, parts = names.find_parts(weight)
    if not parts:
        return []
    if not read.is_whole:
        return [] if len(parts) != 1 else _in_whole(target, read, parts[0], taken, shape, shapes)
    return [] if taken else _over_parts(target, parts, shapes)


def _in_whole(
    target: MergeTarget, read: WeightName, part: StoredPart, taken: Region, shape: tuple[int, ...], shapes: Shapes
) -> list[Place]:
    """Return the place of a delta in a part of one stored weight."""
    whole = shapes[part.stored]
    put = region_of(read, whole)
    if put is None:
        return []
    place = Place(target.name, part.stored, part.stored, False, taken, put)
    inside = region_shape(put, whole)
    return _turned(place, shape, inside[1:] if read.expert is not None else inside, target)


def _turned(place: Place, shape: tuple[int, ...], stored: tuple[int, ...], target: MergeTarget) -> list[Place]:
    if stored == shape:
        return [place]
    turned = target.layout == "linear" and len(shape) == 2 and target.fan_in_fan_out and stored == shape[::-1]
    return [replace(place, transposed=True)] if turned else []


def _over_parts(target: MergeTarget, parts: Sequence[StoredPart], shapes: Shapes) -> list[Place]:
    """Return the places of a delta that is spread over all parts of its weight."""
    for turned in (False, True):
        found = list(_cut(target, parts, shapes, turned))
        sizes = sum(math.prod(shapes[place.weight]) for place in found)
        if len(found) == len(parts) and sizes == math.prod(target.shape):
            return found
    return []


def _cut(target: MergeTarget, parts: Sequence[StoredPart], shapes: Shapes, turned: bool) -> Iterator[Place]:
    """Yield the part of the delta that each stored weight gets; fewer if one does not fit.

    Args:
        target: The delta.
        parts: The stored weights.
        shapes: The shape of each stored tensor.
        turned: True if the delta is (in, out), as older versions of PEFT wrote the experts of all models.
    """
    starts: dict[int | None, int] = {}
    for part in sorted(parts, key=lambda each: (each.name.expert or 0, each.name.part)):
        expert, shape = part.name.expert, shapes[part.stored]
        lead: Region = () if expert is None else ((expert, expert + 1),)
        inner = target.shape[len(lead) :]
        if len(inner) != len(shape) or (lead and expert is not None and expert >= target.shape[0]):
            return
        start = starts.get(expert, 0)
        starts[expert] = stop = start + shape[0]
        if turned:
            fits = len(inner) == 2 and inner[0] == shape[1] and stop <= inner[1]
            taken = (*lead, (0, shape[1]), (start, stop))
        else:
            fits = inner[1:] == shape[1:] and stop <= inner[0]
            taken = (*lead, (start, stop))
        if not fits:
            return
        yield Place(target.name, part.stored, part.stored, turned, taken)
