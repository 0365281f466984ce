"""Find the weight of a base model that each delta belongs to, by names and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nola_codec.adapters.base_model import MergeTarget, delta_shape, mismatch_message
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.checkpoints.embeddings import TiedEmbeddings, have_same_leaf
from nola_codec.errors import AdapterError, expected
from nola_codec.model.records import LowRankRecord

# Models made of `transformers.pytorch_utils.Conv1D`, whose weights are (in, out), and the modules that are.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})


@dataclass(frozen=True)
class WeightMatch:
    """Where a module's delta goes.

    Attributes:
        module: The module's name, as in `LoraModule`.
        weight: Name of the weight in the merged checkpoint.
        source: Stored tensor that holds its base value; differs from ``weight`` where tied weights are separated.
        transposed: The weight is stored (in, out): add the delta's transpose.
    """

    module: str
    weight: str
    source: str
    transposed: bool


class Names:
    """Find stored tensors by the names a model gives them.

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
        """The stored tensor that ``name`` means, or None when there is none or more than one."""
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


def resolve_weights(
    targets: Iterable[MergeTarget],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    tied: TiedEmbeddings | None = None,
) -> dict[str, WeightMatch]:
    """The base weight of every module.

    Works on names and shapes alone, so it serves a model in memory as well as a directory.

    Args:
        targets: The adapter's modules.
        shapes: Shape by weight name of the base model.
        config: ``config.json`` of the base model.
        tied: From `tied_embeddings`: lets a module of the missing weight start from the stored one.

    Returns:
        `WeightMatch` by module name.

    Raises:
        AdapterError: ``base-mismatch``, with one line for each module that found no weight of its shape.
    """
    names = Names(shapes)
    matches: dict[str, WeightMatch] = {}
    taken: dict[str, str] = {}
    problems: list[str] = []
    for target in targets:
        path = target.weight.rpartition(".")[0] if target.weight else module_path(target.name)
        # Multi-head attention of PyTorch keeps its three input projections in one parameter.
        found = (
            names.find(target.weight)
            if target.weight
            else names.find(f"{path}.weight") or names.find(f"{path}.in_proj_weight")
        )
        weight, source = found, found
        if found is None and tied is not None and have_same_leaf(tied.missing, f"{path}.weight"):
            weight, source = tied.missing, tied.stored
        if weight is None or source is None:
            problems.append(f"{target.name}: no weight {target.weight or f'{path}.weight'}")
            continue
        transposed = _orientation(target, path, shapes[source], config)
        if transposed is None:
            found_shape = f"{list(shapes[source])} ({source})"
            problems.append(f"{target.name}: " + expected("shape", list(target.shape), found_shape))
        elif weight in taken:
            problems.append(f"{target.name}: {weight} is already changed by {taken[weight]}")
        else:
            taken[weight] = target.name
            matches[target.name] = WeightMatch(target.name, weight, source, transposed)
    if problems:
        raise AdapterError(mismatch_message(problems), code="base-mismatch")
    return matches


def _orientation(target: MergeTarget, path: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool | None:
    """Whether the weight is stored transposed; None when neither way fits."""
    if target.reshaped:
        return False if shape[:1] == target.shape[:1] and math.prod(shape) == math.prod(target.shape) else None
    if target.layout != "linear":
        return False if shape == target.shape else None
    if stored_transposed(path, config, target.fan_in_fan_out) and shape == target.shape[::-1]:
        return True
    # The flag may be left on from another module; a plain weight of the right shape is then meant as it is.
    return False if shape == target.shape else None


def stored_transposed(path: str, config: Mapping[str, Any], fan_in_fan_out: bool) -> bool:
    """Whether a linear module's weight should be stored (in, out): by the model's type where that tells.

    PEFT saves its flag as the last module's type left it: right unless a model mixes both types.
    """
    if config.get("model_type") in _CONV1D_MODELS:
        return path.rpartition(".")[2] in _CONV1D_MODULES
    return fan_in_fan_out


def merge_target(record: LowRankRecord) -> MergeTarget:
    """What a record asks of a base model."""
    kind = record.kind
    shape = delta_shape(kind.layout, kind.a_shape, kind.b_shape)
    return MergeTarget(record.name, kind.layout, shape, kind.scaling, kind.fan_in_fan_out)
