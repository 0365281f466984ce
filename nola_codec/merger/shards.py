"""The tensors of each merged shard, before any delta is added."""

from __future__ import annotations

from dataclasses import dataclass

from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.merger.plan import MergePlan
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of a merged shard.

    Attributes:
        dtype: The dtype, as in `RawTensor`.
        shape: The shape.
        source: The tensor of the base shard that holds the value before the delta; empty if there is none.
        value: The value before the delta if it is not that of the base shard, else None.
        has_delta: True if a delta is added.
    """

    dtype: str
    shape: tuple[int, ...]
    source: str
    value: RawTensor | None
    has_delta: bool


def shard_layout(checkpoint: Checkpoint, plan: MergePlan, shard: str) -> dict[str, MergedTensor]:
    """Return the tensors of a merged shard by name, in the order of the file.

    The tensors of the base keep their order. After them come weights that are separated from a tied one and, in the
    last shard, tensors with names that the base does not have.

    Raises:
        AdapterError: ``overflow``: a bias is too large for its dtype; and those of `SafetensorsFile`.
    """
    with checkpoint.open_shard(shard) as file:
        sources = {name: name for name in file.tensors}
        sources |= {name: source for name, source in plan.untied.items() if source in file.tensors}
        if shard == checkpoint.shards[-1]:
            new = (name for name in plan.replaced if name not in checkpoint.weights and name not in plan.untied)
            sources |= dict.fromkeys(new, "")
        tensors = {}
        for name, source in sources.items():
            value = plan.replaced.get(name) or plan.reloaded.get(source)
            if name in plan.bias_terms:
                value = _add_bias_term(value or file.read(source), *plan.bias_terms[name], name)
            origin = value or file.tensors[source]
            tensors[name] = MergedTensor(origin.dtype, origin.shape, source, value, name in plan.places)
        return tensors


def _add_bias_term(bias: RawTensor, term: RawTensor, scaling: float, name: str) -> RawTensor:
    # Elementwise IEEE operations in a fixed order: the same bits everywhere.
    return from_float64(to_float64(bias) + to_float64(term) * scaling, bias.dtype, where=name)
