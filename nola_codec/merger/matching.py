"""The place of each delta in a base model, found by names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nola_codec.adapters.base_model import MergeTarget, delta_shape, mismatch_message
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.checkpoints.embeddings import TiedEmbeddings, have_same_leaf
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.records import CodedRecord

# Models with `transformers.pytorch_utils.Conv1D`, whose weights are stored (in, out), and their modules of that class.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})


@dataclass(frozen=True)
class Place:
    """The weight of a base model that a delta is added to.

    Attributes:
        module: The name of the delta, as in `MergeTarget`.
        weight: The name of the weight in the merged checkpoint.
        source: The stored tensor that holds the base value; differs from ``weight`` where tied weights are separated.
        transposed: True if the weight is stored (in, out), so that the transpose of the delta is added.
    """

    module: str
    weight: str
    source: str
    transposed: bool


class StoredNames:
    """The stored tensors of a model, found by the names that another model gives them.

    The same weight is ``transformer.h.0.attn.c_attn.weight`` in a model with a head and ``h.0.attn.c_attn.weight`` in
    one without, and a checkpoint of either loads into both: up to two leading components may be missing on one side.
    """

    def __init__(self, stored: Iterable[str]) -> None:
        self._stored = frozenset(stored)
        self._by_suffix: dict[tuple[int, str], list[str]] = {}
        for name in self._stored:
            parts = name.split(".")
            for dropped in (1, 2):
                if len(parts) - dropped >= 2:
                    self._by_suffix.setdefault((dropped, ".".join(parts[dropped:])), []).append(name)

    def find(self, name: str) -> str | None:
        """Return the stored tensor that ``name`` means, or None if there is none or more than one."""
        if name in self._stored:
            return name
        parts = name.split(".")
        for dropped in (1, 2):
            shorter = ".".join(parts[dropped:])
            longer = self._by_suffix.get((dropped, name), [])
            found = longer + ([shorter] if len(parts) - dropped >= 2 and shorter in self._stored else [])
            if found:
                return found[0] if len(found) == 1 else None
        return None


def resolve_places(
    targets: Iterable[MergeTarget],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    tied: TiedEmbeddings | None = None,
) -> dict[str, Place]:
    """Find the place of every delta.

    Only names and shapes are looked at, so this serves a model in memory as well as a directory.

    Args:
        targets: The deltas of an adapter.
        shapes: The shape of each weight of the base model, by name.
        config: ``config.json`` of the base model.
        tied: The result of `tied_embeddings`: a module of the missing weight then starts from the stored one.

    Returns:
        `Place` by the name of the delta.

    Raises:
        AdapterError: ``base-mismatch``, with one line for each delta that found no weight of its shape.
    """
    names = StoredNames(shapes)
    places: dict[str, Place] = {}
    owners: dict[str, str] = {}
    problems: list[str] = []
    for target in targets:
        path = target.weight.rpartition(".")[0] if target.weight else module_path(target.name)
        weight = source = _stored_weight(target, path, names)
        if source is None and tied is not None and have_same_leaf(tied.missing, f"{path}.weight"):
            weight, source = tied.missing, tied.stored
        if weight is None or source is None:
            problems.append(f"{target.name}: no weight {target.weight or f'{path}.weight'}")
            continue
        transposed = _orientation(target, path, shapes[source], config)
        if transposed is None:
            found_shape = f"{list(shapes[source])} ({source})"
            problems.append(f"{target.name}: " + mismatch("shape", list(target.shape), found_shape))
        elif weight in owners:
            problems.append(f"{target.name}: {weight} is already changed by {owners[weight]}")
        else:
            owners[weight] = target.name
            places[target.name] = Place(target.name, weight, source, transposed)
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch")
    return places


def _stored_weight(target: MergeTarget, path: str, names: StoredNames) -> str | None:
    """The stored tensor that a target means, or None."""
    if target.weight:
        return names.find(target.weight)
    # Multi-head attention of PyTorch keeps its three input projections in one parameter.
    return names.find(f"{path}.weight") or names.find(f"{path}.in_proj_weight")


def _orientation(target: MergeTarget, path: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool | None:
    """Return True if the weight is stored transposed; None if neither orientation fits its shape."""
    if target.reshaped:
        return False if shape[:1] == target.shape[:1] and math.prod(shape) == math.prod(target.shape) else None
    if target.layout != "linear":
        return False if shape == target.shape else None
    if is_stored_transposed(path, config, target.fan_in_fan_out) and shape == target.shape[::-1]:
        return True
    # The flag may be left on from another module; a plain weight of the right shape is then meant as it is.
    return False if shape == target.shape else None


def is_stored_transposed(path: str, config: Mapping[str, Any], fan_in_fan_out: bool) -> bool:
    """Return True if the weight of a linear module should be stored (in, out).

    The type of the model decides where it tells. Else PEFT's flag does: PEFT saves it as the last module's type left
    it, which is right unless a model mixes both types.
    """
    if config.get("model_type") in _CONV1D_MODELS:
        return path.rpartition(".")[2] in _CONV1D_MODULES
    return fan_in_fan_out


def merge_target(record: CodedRecord) -> MergeTarget:
    """The target of a low-rank record."""
    kind = record.kind
    shape = delta_shape(kind.layout, *reversed(kind.stored_shapes))
    return MergeTarget(record.name, kind.layout, shape, kind.scaling, kind.fan_in_fan_out)
