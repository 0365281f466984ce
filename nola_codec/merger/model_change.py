"""Combine all files of a merge into one change of one base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nola_codec.adapters import dialect_of
from nola_codec.adapters.base_changes import require_reference
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.deltas import RowDelta
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.plan import MergePlan, combine_plans, plan_merge
from nola_codec.merger.terms import DeltaTerm, sum_terms

OpenDelta = Callable[[str, tuple[int, ...]], RowDelta]
"""``open_delta(weight name, shape)`` returns the delta of one weight. It is called right before the weight changes."""


@dataclass(frozen=True)
class PlacedFile:
    """A file, and the plan that gives each of its deltas a place."""

    file: MergeFile
    plan: MergePlan


@dataclass(frozen=True)
class ModelChange:
    """The change of a base model.

    Attributes:
        plan: The weights that change, and the delta of each.
        open_delta: A function that makes the delta of a weight in ``plan.places``.
        sources: JSON values that identify the files and weights that the change was made from.
        terms: The terms of each weight's delta, by the weight's name; an undo file needs them.
    """

    plan: MergePlan
    open_delta: OpenDelta
    sources: Sequence[Any] = ()
    terms: Mapping[str, Sequence[DeltaTerm]] = field(default_factory=dict)


def place_file(file: MergeFile, checkpoint: Checkpoint) -> PlacedFile:
    """Find the place of each delta of a file.

    Raises:
        AdapterError: The errors of the dialect's `merge_targets` and `model_tensors`, and of `plan_merge`;
            ``merge-weight``: the file has a weight other than 1, and a tensor that is not a delta; ``base-mismatch``:
            the file holds a change of another tensor than the base model has.
    """
    adapter = file.adapter
    dialect = dialect_of(adapter, file.name)
    base = WeightShapes.of(checkpoint)
    targets = dialect.merge_targets(adapter, file.parts, base, file.name)
    carried = dialect.model_tensors(adapter)
    if carried and file.weight != 1:
        message = f"carries {next(iter(carried))}, which is not a delta and cannot be weighted by {file.weight}"
        raise AdapterError(message, code="merge-weight", where=file.name)
    config, stays_tied = dialect.merge_config(adapter), dialect.changes_stored_weights
    plan = plan_merge(checkpoint, targets, carried, config, stays_tied=stays_tied, names=base.names)
    for place in plan.places.values():
        reference = adapter.references.get(place.module)
        if reference is not None:
            where = f"{checkpoint.directory}: {place.source}"
            require_reference(checkpoint.read(place.source), reference.sha256, where)
    return PlacedFile(file, plan)


def combine_files(placed: Sequence[PlacedFile]) -> ModelChange:
    """Combine files that are placed in the same base model into one change.

    Raises:
        AdapterError: ``merge-conflict``, as `combine_plans` does.
    """
    files = [each.file for each in placed]
    plan = combine_plans([each.plan for each in placed], [file.name for file in files])
    terms = {
        weight: [
            DeltaTerm(number, part.module, part.transposed, part.taken, part.put)
            for number, each in enumerate(placed)
            if weight in each.plan.places
            for part in each.plan.places[weight].parts
        ]
        for weight in plan.places
    }

    def open_delta(weight: str, shape: tuple[int, ...]) -> RowDelta:
        return sum_terms(files, terms[weight], shape)

    return ModelChange(plan, open_delta, [file.key for file in files], terms)
