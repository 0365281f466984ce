"""Which tensor of a base model each delta of an adapter is added to, in every dialect that names its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects import peft_diagonals
from nola_codec.adapters.dialects.delta import SUFFIX as DIFF
from nola_codec.adapters.dialects.deltas import AdapterDelta, deltas
from nola_codec.adapters.dialects.diagonals import Diagonals
from nola_codec.adapters.dialects.formats import path_of
from nola_codec.adapters.dialects.paths import component_of, kohya_split
from nola_codec.adapters.dialects.peft import module_path
from nola_codec.adapters.dialects.peft_experts import expert_module, expert_number, is_expert
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError, expected
from nola_codec.merge.matching import MergeTarget, StoredNames, delta_shape, is_stored_transposed, mismatch_message
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor

# Endings of the names of vectors: which tensor of the module they change.
_TENSORS = {DIFF: "weight", ".diff_b": "bias", ".w_norm": "weight", ".b_norm": "bias"}


def grouped_deltas(adapter: Adapter) -> dict[str, list[AdapterDelta]]:
    """Deltas by name; the experts of one parameter are one, in order."""
    found: dict[str, list[AdapterDelta]] = {}
    for delta in deltas(adapter):
        if adapter.dialect == "peft" and is_expert(delta.name):
            found.setdefault(expert_module(delta.name), []).append(delta)
        else:
            found[delta.name] = [delta]
    return {name: sorted(parts, key=lambda part: expert_number(part.name)) for name, parts in found.items()}


def diagonal_targets(
    adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any], where: str,
) -> list[MergeTarget]:  # fmt: skip
    """What each delta of a VeRA or a RandLoRA asks of a base model; how many inputs it has only the model tells.

    Args:
        adapter: Of one of the two.
        found: From `grouped_deltas`.
        shapes: Of the model's weights.
        config: ``config.json`` of the model.
        where: The file, for messages.

    Raises:
        AdapterError: ``merge-projections`` for frozen matrices that are not in the file.
    """
    peft_diagonals.require_projections(adapter, where)
    names, flag = StoredNames(shapes), bool((adapter.config or {}).get("fan_in_fan_out"))
    targets = []
    for name, (delta,) in found.items():
        weight = names.find(f"{module_path(name)}.weight")
        stored = () if weight is None else shapes[weight]
        turned = is_stored_transposed(module_path(name), config, flag)
        shape = stored[::-1] if turned else stored
        composite = delta.composite
        fits = isinstance(composite, Diagonals) and composite.fits(shape)
        targets.append(MergeTarget(name, "linear", shape if fits else delta.shape, fan_in_fan_out=turned))
    return targets


def merge_targets(
    dialect: str, found: Mapping[str, Sequence[AdapterDelta]], checkpoint: Checkpoint
) -> list[MergeTarget]:
    """What each delta asks of a base model.

    Args:
        dialect: Of the adapter.
        found: From `grouped_deltas`.
        checkpoint: The base model.

    Raises:
        AdapterError: ``not-expressible`` for dialects that number their modules; ``merge-components`` for an adapter of
            several components of a pipeline; ``base-mismatch`` for names that no weight has; ``merge-gguf``,
            ``merge-network``.
    """
    if dialect == "parameters":
        raise AdapterError("holds a network's own weights, and no change of another's", code="merge-network")
    if dialect == "gguf":
        message = "llama.cpp permutes rows and renames tensors; `decode --format peft --base MODEL`, and encode that"
        raise AdapterError(message, code="merge-gguf")
    _require_one_component(found, dialect)
    stored = _Flattened(checkpoint) if dialect == "kohya" else None
    return [
        _experts(name, parts, checkpoint)
        if dialect == "peft" and is_expert(parts[0].name)
        else _target(parts[0], dialect, stored)
        for name, parts in found.items()
    ]


def merged_tensors(adapter: Adapter) -> dict[str, RawTensor]:
    """Carried tensors that have a place in a model; what only says how the deltas are made is left out.

    Raises:
        AdapterError: ``merge-dora``; ``merge-unknown`` for tensors whose meaning to a model is not known.
    """
    if peft_diagonals.method_of(adapter.config) is not None and adapter.dialect == "peft":
        return peft_diagonals.model_tensors(adapter)
    if adapter.dialect == "peft":
        return dict(adapter.raw)
    kept = {}
    for key, tensor in adapter.raw.items():
        if key.endswith((".alpha", ".scalar")):
            continue
        if key.endswith(".dora_scale") or (adapter.dialect == "mlx" and key.endswith(".m")):
            message = "DoRA divides by the norms of W + delta, and cannot be merged to the same bits everywhere"
            raise AdapterError(message, code="merge-dora", where=key)
        if adapter.dialect not in ("loralib", "diffusers"):
            message = "was carried as it came; what it does to a weight is not known"
            raise AdapterError(message, code="merge-unknown", where=key)
        kept[key] = tensor
    return kept


class _Flattened:
    """Finds modules by names in which dots have become underscores."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._paths: dict[str, set[str]] = {}
        for name in checkpoint.weights:
            path = name.rpartition(".")[0]
            self._paths.setdefault(path.replace(".", "_"), set()).add(path)

    def find(self, name: str) -> str:
        found = self._paths.get(name, set())
        if len(found) == 1:
            return next(iter(found))
        # A model with a head has its layers one level further down.
        longer = {path for flat, paths in self._paths.items() if flat.endswith("_" + name) for path in paths}
        if not found and len(longer) == 1:
            return next(iter(longer))
        what = "no module of the base model" if not found | longer else f"{len(found | longer)} modules, with"
        raise AdapterError(mismatch_message([f"{name}: {what} flattened to it"]), code="base-mismatch")


def _target(delta: AdapterDelta, dialect: str, stored: _Flattened | None) -> MergeTarget:
    module = delta.product
    if dialect == "peft" and module is not None:
        return MergeTarget.of(module)
    stem, tensor = delta.name, "weight"
    for ending, meant in _TENSORS.items():
        if not delta.modules and delta.composite is None and delta.name.endswith(ending):
            stem, tensor = delta.name.removesuffix(ending), meant
    if dialect == "delta":
        weight = stem
    else:
        path = stored.find(kohya_split(stem)[1]) if stored is not None else _without_component(path_of(stem, dialect))
        weight = f"{path}.{tensor}"
    if module is not None:
        shape = delta_shape(module.layout, module.a_shape, module.b_shape)
        return MergeTarget(delta.name, module.layout, shape, module.scaling, module.fan_in_fan_out, weight)
    return MergeTarget(delta.name, "linear", delta.shape, weight=weight, reshaped=True)


def _experts(name: str, parts: Sequence[AdapterDelta], checkpoint: Checkpoint) -> MergeTarget:
    """The parameter of a module whose experts these are, by its shape: (experts, out, in), or (experts, in, out)."""
    module = parts[0].product
    assert module is not None, "experts are pairs"
    out, inputs = module.vector_lengths
    shapes = {(len(parts), out, inputs), (len(parts), inputs, out)}
    path = module_path(name)
    fitting = [
        weight
        for weight, info in checkpoint.weights.items()
        if info.shape in shapes
        and (weight.rpartition(".")[0] == path or path.endswith("." + weight.rpartition(".")[0]))
    ]
    if len(fitting) != 1 or out == inputs:
        problem = f"{name}: " + expected("parameter", f"one of shape {sorted(shapes)[0]}", fitting or "none")
        if out == inputs:
            problem = f"{name}: experts of {out} x {out}: which way round the parameter has them cannot be told"
        raise AdapterError(mismatch_message([problem]), code="base-mismatch", where=str(checkpoint.directory))
    return MergeTarget(name, "linear", checkpoint.weights[fitting[0]].shape, weight=fitting[0])


def components(dialect: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of deltas by the component of a pipeline that they say; an empty string where they say none."""
    found: dict[str, list[str]] = {}
    for name in names:
        component = kohya_split(name)[0] if dialect == "kohya" else component_of(name)
        found.setdefault(component, []).append(name)
    return found


def _require_one_component(names: Iterable[str], dialect: str) -> None:
    found = components(dialect, names)
    if len(found) > 1:
        listed = ", ".join(f"{len(own)} of {component or 'no component'}" for component, own in found.items())
        message = f"deltas of several components of a pipeline ({listed}); give the pipeline's directory as the base"
        raise AdapterError(message, code="merge-components")


def _without_component(path: str) -> str:
    component = component_of(path)
    return path[len(component) + 1 :] if component else path
