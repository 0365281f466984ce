"""`MemoryChange`: what a file changes in a model in memory, with the bits of a merge on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nola_codec.adapters import dialect_of
from nola_codec.adapters.base_changes import require_reference
from nola_codec.adapters.base_model import mismatch_message
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.deltas import RowDelta
from nola_codec.merger.arithmetic.rounding import add_rows
from nola_codec.merger.arithmetic.sum import merge_factors, merge_tensor
from nola_codec.merger.matching import merge_target
from nola_codec.merger.memory_model import MemoryModel, dtype_name
from nola_codec.merger.merge_files import MergeFile
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.plan import MergePlan, plan_merge
from nola_codec.merger.terms import DeltaTerm, sum_terms
from nola_codec.merger.weight_places import Place
from nola_codec.model.header import Header
from nola_codec.parallel import parallel_each
from nola_codec.stores.dtypes import to_float64

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 18
"""Elements of a weight that are changed at once, so that all arrays of a piece are small."""


@dataclass(frozen=True)
class MemoryChange:
    """What one decoded file changes in a model in memory. `plan_change` makes it, and has checked that it fits.

    Attributes:
        file: The decoded file.
        plan: The place of each delta, and the tensors that the file brings.
        stays_tied: True if the deltas belong to stored tensors and not to modules, so that tied weights stay tied.
    """

    file: MergeFile
    plan: MergePlan
    stays_tied: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the weights that `write` changes."""
        plan = self.plan
        return tuple(dict.fromkeys((*plan.reloaded, *plan.replaced, *plan.places, *plan.bias_terms)))

    @property
    def pairs(self) -> dict[str, Place]:
        """The places where one pair of factors is the whole delta of a whole weight, by the name of the weight."""
        return {name: place for name, place in self.plan.places.items() if self._is_pair(place)}

    def without(self, weights: Iterable[str]) -> MemoryChange:
        """Return the change without the deltas of some weights."""
        left = {name: place for name, place in self.plan.places.items() if name not in frozenset(weights)}
        return replace(self, plan=replace(self.plan, places=left))

    def require_untied(self, memory: MemoryModel) -> None:
        """Refuse to change a weight that another module shares. Raises AdapterError ``tied-weights``."""
        if not self.stays_tied:
            memory.require_untied((place.weight, place.module) for place in self.plan.places.values())
            memory.require_untied((name, name) for name in self.plan.replaced)

    def write(self, memory: MemoryModel) -> None:
        """Put the tensors that the file brings into the model, and add its deltas, each with one rounding.

        Raises:
            AdapterError: ``overflow``: a sum leaves the dtype of its weight. Other weights may have changed.
        """
        import torch

        from nola_codec.decoder.torch_raw import to_torch

        plan = self.plan
        with torch.no_grad():
            # A delta belongs to the weight that the adapter brings, so these come first.
            for name, tensor in (*plan.reloaded.items(), *plan.replaced.items()):
                memory.parameters[name].copy_(to_torch(tensor))
        if self.file.xp.has_threads:
            add_deltas((memory.parameters[name], self._delta(memory, place)) for name, place in plan.places.items())
        else:
            for name, place in plan.places.items():
                self._add_on_device(memory, memory.parameters[name], place)
        with torch.no_grad():
            for name, (term, scaling) in plan.bias_terms.items():
                bias = memory.parameters[name]
                merge_tensor(bias, torch.from_numpy(to_float64(term) * scaling).to(bias.device))

    def _is_pair(self, place: Place) -> bool:
        if place.others or place.taken or place.put:
            return False
        parts = self.file.parts[place.module]
        return len(parts) == 1 and parts[0].product is not None

    def _delta(self, memory: MemoryModel, place: Place) -> RowDelta:
        terms = [DeltaTerm(0, part.module, part.transposed, part.taken, part.put) for part in place.parts]
        return sum_terms([self.file], terms, tuple(memory.parameters[place.weight].shape))

    def _add_on_device(self, memory: MemoryModel, weight: torch.Tensor, place: Place) -> None:
        import torch

        if not self._is_pair(place):
            add_delta(weight, self._delta(memory, place))
            return
        decoded, kind = self.file.decoded[place.module], self.file.kinds[place.module]
        with torch.no_grad():
            merge_factors(weight, decoded, kind, self.file.xp, transposed=place.transposed)


def plan_change(file: MergeFile, memory: MemoryModel, base: WeightShapes | None = None) -> MemoryChange:
    """Find the place of everything that a file changes in a model in memory.

    Args:
        file: The decoded file.
        memory: The model.
        base: The weights of the model by name, if the caller has them; to read them takes time.

    Raises:
        AdapterError: ``merge-projections``, ``merge-vectors``; ``vocabulary``: the embeddings of the model have another
            number of rows; and those of `require_reference` and `plan_merge`.
    """
    from nola_codec.decoder.torch_raw import from_torch

    dialect = dialect_of(file.adapter)
    strange = [vector.name for vector in file.adapter.vectors if vector.name not in file.adapter.references]
    if strange and dialect is PEFT:
        message = (
            f"the file has tensors coded as vectors ({strange[0]}, ...), which only its dialect knows how to merge"
        )
        raise AdapterError(message, code="merge-vectors", where=file.name)
    base = base or WeightShapes.of(memory)
    targets = dialect.merge_targets(file.adapter, file.parts, base, file.name)
    carried, stays_tied = dialect.model_tensors(file.adapter), dialect.changes_stored_weights
    config = dialect.merge_config(file.adapter)
    plan = plan_merge(memory, targets, carried, config, stays_tied=stays_tied, names=base.names)
    if plan.vocabulary is not None:
        message = f"its embeddings need {plan.vocabulary} rows: call resize_token_embeddings({plan.vocabulary}) first"
        raise AdapterError(message, code="vocabulary", where=str(memory.directory))
    lacking = [name for name in plan.replaced if name not in memory.parameters]
    if lacking:
        message = mismatch_message(
            [f"{name}: the adapter brings it, and the model has no such weight" for name in lacking]
        )
        raise AdapterError(message, code="base-mismatch", where=str(memory.directory))
    for place in plan.places.values():
        reference = file.adapter.references.get(place.module)
        if reference is not None:
            stored = from_torch(memory.parameters[place.source].detach().cpu())
            require_reference(stored, reference.sha256, f"{memory.directory}: {place.source}")
    return MemoryChange(file, plan, stays_tied)


def plan_pairs(header: Header, memory: MemoryModel, base: WeightShapes) -> dict[str, Place] | None:
    """Find the places of a file from its header alone, if it is a LoRA of PEFT with nothing but pairs of factors.

    Args:
        header: The header.
        memory: The model.
        base: The weights of the model by name.

    Returns:
        The place of each pair, by weight. None if there is more in the file, or if a pair changes a part of a weight;
        `plan_change` then needs the decoded file.

    Raises:
        AdapterError: Those of `plan_merge`.
    """
    dialect = dialect_of(header)
    if dialect is not PEFT or header.raw or header.vectors or header.drawn:
        return None
    if any(dialect.slice_of(record.name)[0] != record.name for record in header.pairs):
        return None
    targets = [merge_target(record) for record in header.pairs]
    places = plan_merge(memory, targets, {}, header.config, names=base.names).places
    return None if any(place.others or place.taken or place.put for place in places.values()) else dict(places)


def add_deltas(changes: Iterable[tuple[torch.Tensor, RowDelta]]) -> None:
    """Add deltas to weights in place, on threads. Errors as in `add_delta`; other weights may have changed."""
    parallel_each(lambda change: add_delta(*change), changes)


def add_delta(weight: torch.Tensor, delta: RowDelta) -> None:
    """Add a delta to a weight in place, with one sum and one rounding.

    Args:
        weight: The weight, on any device.
        delta: A delta of the same shape.

    Raises:
        AdapterError: ``overflow``: a sum leaves the dtype. The weight does not change then.
    """
    import torch

    rows = weight.shape[0] if weight.dim() else 1
    if weight.device.type != "cpu" or not weight.is_contiguous():
        with torch.no_grad():
            merge_tensor(weight, torch.from_numpy(delta.rows(0, rows)).to(weight.device))
        return
    flat = weight.detach().reshape(-1)
    before = flat.clone()
    data = flat.view(torch.uint8).numpy().data
    width = len(data) // max(1, rows)
    step = max(1, _PIECE // max(1, weight.numel() // max(1, rows)))
    try:
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            add_rows(data[start * width : stop * width], dtype_name(weight), delta, start, stop)
    except AdapterError:
        flat.copy_(before)
        raise
