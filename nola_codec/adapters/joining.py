"""Join several adapters into one whose deltas are the weighted sums of theirs, without a base model.

The factors of a module are put one after another: the delta of

    lora_B = [c_1 B_1 | c_2 B_2]    lora_A = [A_1 ; A_2]    with the scaling s

is s c_1 B_1 A_1 + s c_2 B_2 A_2, so that c_i = weight_i scaling_i / s. The rank is the sum of the ranks. This is what
PEFT's `add_weighted_adapter` calls "cat".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.conversion import convert
from nola_codec.adapters.joined_carried import join_carried
from nola_codec.adapters.ranks import with_factors
from nola_codec.adapters.registry import deltas, dialect_of
from nola_codec.adapters.weighted import WeightedAdapter, is_exact, times
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor


def join_adapters(parts: Sequence[WeightedAdapter], dialect: str | None = None) -> Adapter:
    """Return one adapter for several; its notes say what was rounded, and what differs between their configurations.

    Args:
        parts: The adapters, at least one.
        dialect: The dialect of the result; None is that of the first adapter.

    Raises:
        AdapterError: ``not-expressible``: a delta is no product of factors, or the dialect cannot hold the sum;
            ``base-mismatch``: a module has other shapes in another adapter; ``merge-dora``; ``merge-weight``: a weight
            is not finite; ``overflow``; those of `join_carried`, such as ``merge-conflict``; and those of `convert`.
    """
    for part in parts:
        if not math.isfinite(part.weight):
            message = f"the weight {part.weight} is not a finite number"
            raise AdapterError(message, code="merge-weight", where=part.name)
    target = dialect or parts[0].adapter.dialect
    converted = [replace(part, adapter=convert(part.adapter, target)) for part in parts]
    for part in converted:
        _require_sums(part)
    owner = dialect_of(converted[0].adapter)
    vectors, rounded = _join_vectors(converted)
    first = converted[0].adapter
    config = _join_configs([part.adapter for part in converted])
    notes = [note for part in converted for note in part.adapter.notes] + _base_notes(converted)
    frame = replace(first, vectors=vectors, config=config, draws={}, notes=())
    try:
        modules, folded = _join_modules(converted, common=None)
        raw, biases = join_carried(converted, modules)
        frame = replace(frame, raw=raw)
        joined = owner.with_modules(frame, modules) if modules else frame
    except AdapterError as error:
        if error.code != "not-expressible":
            raise
        # The dialect cannot state the scaling, so that it goes into lora_B.
        modules, folded = _join_modules(converted, common=1.0)
        raw, biases = join_carried(converted, modules)
        joined = owner.with_modules(replace(frame, raw=raw), modules)
    rounded += biases
    if rounded or folded:
        notes.append(
            f"weights and scalings are multiplied into {folded} of {len(modules)} lora_B"
            + (f" and into {rounded} other tensors" if rounded else "")
            + ", which rounds each number once to float32"
        )
    return replace(joined, notes=tuple(dict.fromkeys(notes)))


def _require_sums(part: WeightedAdapter) -> None:
    """Raise AdapterError for an adapter whose deltas cannot be added by putting factors together."""
    dialect = dialect_of(part.adapter)
    if dialect.needs_layer_shape:
        message = f"{part.name}: {dialect.title} is no LoRA, and its deltas cannot be joined without the base model"
        raise AdapterError(message, code="not-expressible")
    for delta in deltas(part.adapter):
        if delta.composite is not None:
            message = "a delta that is no product of two factors cannot be joined with another; merge it with --base"
            raise AdapterError(message, code="not-expressible", where=f"{part.name}: {delta.name}")
    for key in part.adapter.raw:
        if dialect.is_magnitude(key) or ".lora_magnitude_vector" in key:
            message = "DoRA divides by the norms of W + delta, so its deltas cannot be added"
            raise AdapterError(message, code="merge-dora", where=f"{part.name}: {key}")


def _join_modules(parts: Sequence[WeightedAdapter], common: float | None) -> tuple[list[LoraModule], int]:
    """Return the modules of all adapters, and how many of them hold rounded factors.

    Args:
        parts: The adapters.
        common: The scaling of every module; None chooses one for each module.
    """
    found: dict[str, list[tuple[WeightedAdapter, LoraModule]]] = {}
    for part in parts:
        for module in part.adapter.modules:
            found.setdefault(module.name, []).append((part, module))
    joined, rounded = [], 0
    for _, same in sorted(found.items()):
        _require_same_shapes(same)
        scales = [part.weight * module.scaling for part, module in same]
        scaling = common if common is not None else next((s for s in scales if s), 1.0)
        sides = [times(module.lora_B, s / scaling, part.name) for (part, module), s in zip(same, scales, strict=True)]
        rounded += any(not is_exact(s / scaling) or s / scaling * scaling != s for s in scales)
        lora_B = np.concatenate(sides, axis=1)
        lora_A = np.concatenate([module.lora_A for _, module in same])
        dtypes = {module.dtype for _, module in same}
        first = replace(same[0][1], scaling=scaling, dtype=dtypes.pop() if len(dtypes) == 1 else "F32")
        joined.append(with_factors(first, lora_A, lora_B))
    return joined, rounded


def _require_same_shapes(same: Sequence[tuple[WeightedAdapter, LoraModule]]) -> None:
    (first_part, first), *others = same
    shape = (first.layout, first.b_shape[0], first.a_shape[1:])
    for part, module in others:
        own = (module.layout, module.b_shape[0], module.a_shape[1:])
        if own != shape:
            described = [f"{layout}, {out} x {list(into)}" for layout, out, into in (shape, own)]
            message = mismatch("shape", f"{described[0]} as in {first_part.name}", described[1])
            raise AdapterError(f"{message}; are both adapters of one base model?", code="base-mismatch",
                               where=f"{part.name}: {module.name}")  # fmt: skip


def _join_vectors(parts: Sequence[WeightedAdapter]) -> tuple[tuple[VectorTensor, ...], int]:
    """Return the weighted sums of tensors that are added to weights, and how many of them were rounded."""
    sums: dict[str, VectorTensor] = {}
    rounded = set()
    for part in parts:
        for vector in part.adapter.vectors:
            own = times(vector.values, part.weight, part.name)
            if not is_exact(part.weight):
                rounded.add(vector.name)
            other = sums.get(vector.name)
            if other is None:
                sums[vector.name] = replace(vector, values=own)
                continue
            if other.values.shape != own.shape:
                message = mismatch("shape", list(other.values.shape), list(own.shape))
                raise AdapterError(message, code="base-mismatch", where=f"{part.name}: {vector.name}")
            total = (other.values.astype(np.float64) + own).astype(np.float32)
            sums[vector.name] = replace(other, values=total, dtype="F32")
            rounded.add(vector.name)
    return tuple(sums[name] for name in sorted(sums)), len(rounded)


def _join_configs(adapters: Sequence[Adapter]) -> Mapping[str, Any] | None:
    """Return the first configuration, with the lists that say which tensors are saved whole joined.

    Raises:
        AdapterError: ``merge-conflict`` for adapters with factors of different bare parameters or tokens.
    """
    configs = [adapter.config for adapter in adapters if adapter.config is not None]
    if not configs:
        return None
    joined = dict(configs[0])
    for option in ("target_parameters", "trainable_token_indices"):
        if any((config.get(option) or None) != (joined.get(option) or None) for config in configs):
            message = f"the adapters have different {option}, and one configuration cannot state both"
            raise AdapterError(message, code="merge-conflict", where=option)
    saved = [name for config in configs for name in _names(config.get("modules_to_save"))]
    if saved:
        joined["modules_to_save"] = list(dict.fromkeys(saved))
    if any(config.get("lora_bias") for config in configs):
        joined["lora_bias"] = True
        # PEFT allows the option only with its own initialisation, which a trained adapter no longer needs.
        joined["init_lora_weights"] = True
    bias = [config["bias"] for config in configs if config.get("bias", "none") != "none"]
    if bias:
        joined["bias"] = "all" if "all" in bias else bias[0]
    return joined


def _names(value: object) -> Iterable[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _base_notes(parts: Sequence[WeightedAdapter]) -> list[str]:
    """Return a note if the adapters name different base models; the last part of a path tells a model."""
    bases: dict[str, str] = {}
    for part in parts:
        name = dialect_of(part.adapter).base_model(part.adapter.config or {}, part.adapter.metadata)
        if name:
            bases.setdefault(name.rstrip("/").rpartition("/")[2], f"{name} ({part.name})")
    if len(bases) < 2:
        return []
    return [f"the adapters name different base models, so their sum may mean nothing: {', '.join(bases.values())}"]
