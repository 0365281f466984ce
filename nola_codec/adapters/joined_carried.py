"""The carried tensors of several adapters that are joined into one.

A carried tensor replaces a tensor of the model, and two adapters may bring it only if theirs are equal. A bias beside
lora_B (``lora_bias`` of PEFT) is different: it is added to the bias of the module, times the scaling. So with weights
w_i, scalings s_i and the scaling s of the joined module, the joined bias is the sum of the biases times w_i s_i / s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.adapters.dialects.peft_config import PREFIX, is_saved_module
from nola_codec.adapters.registry import dialect_of
from nola_codec.adapters.weighted import WeightedAdapter, is_exact
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32, from_float64, to_float64, written_dtype

LORA_BIAS = ".lora_B.bias"
"""The end of the key of a bias beside lora_B."""


@dataclass(frozen=True)
class _BiasTerm:
    """The bias beside lora_B of one adapter: its place for messages, the weight times the scaling, and the tensor."""

    where: str
    scaling: float
    tensor: RawTensor


def join_carried(parts: Sequence[WeightedAdapter], modules: Sequence[LoraModule]) -> tuple[dict[str, RawTensor], int]:
    """Return the carried tensors of all adapters by key, and how many of them were rounded.

    Alphas and scalars are left out, since the scalings contain them.

    Args:
        parts: The adapters, all of one dialect.
        modules: The joined modules, with the scalings that they have from now on.

    Raises:
        AdapterError: ``merge-conflict``: tensors of one name differ, a weight would have to multiply one, or a module
            is brought whole by one adapter and has factors in another; ``not-expressible``: PEFT allows no bias beside
            some factors; ``base-mismatch``: biases of several shapes; ``merge-unknown``: no factors belong to a bias;
            ``overflow``.
    """
    kept: dict[str, tuple[WeightedAdapter, RawTensor]] = {}
    terms: dict[str, list[_BiasTerm]] = {}
    for part in parts:
        names = _names_in_sum(part, modules)
        scalings = {module.name: module.scaling for module in part.adapter.modules}
        for key, tensor in part.adapter.raw.items():
            if key.endswith((".alpha", ".scalar")):
                continue
            if key.endswith(LORA_BIAS):
                scaling = part.weight * scalings.get(key.removesuffix(LORA_BIAS), 0.0)
                terms.setdefault(key, []).append(_BiasTerm(f"{part.name}: {key}", scaling, tensor))
                continue
            if part.weight != 1.0:
                message = f"a carried tensor replaces a weight, and cannot be multiplied by {part.weight:g}"
                raise AdapterError(message, code="merge-conflict", where=f"{part.name}: {key}")
            other, same = kept.setdefault(names[key], (part, tensor))
            if same != tensor:
                message = f"{other.name} and {part.name} carry different tensors of this name"
                raise AdapterError(message, code="merge-conflict", where=names[key])
    biases, rounded = _join_biases(terms, modules)
    if biases and dialect_of(parts[0].adapter).name == "peft":
        biases |= _missing_biases(biases, modules)
    return {key: tensor for key, (_, tensor) in kept.items()} | biases, rounded


def _names_in_sum(part: WeightedAdapter, modules: Sequence[LoraModule]) -> dict[str, str]:
    """Return the key in the sum of each carried tensor; PEFT calls the tensors of a module with factors otherwise.

    Raises:
        AdapterError: ``merge-conflict``: a module that is saved whole has factors in another adapter.
    """
    names = {key: key for key in part.adapter.raw}
    if dialect_of(part.adapter).name != "peft":
        return names
    own = {module_path(m.name) for m in part.adapter.modules}
    added = {module_path(m.name) for m in modules} - own
    for key in names:
        names[key] = _with_base_layers(key, added)
        if names[key] != key and is_saved_module(key, part.adapter.config or {}):
            message = f"{part.name} brings this module whole, and another adapter has factors of it"
            raise AdapterError(message, code="merge-conflict", where=key)
    return names


def _with_base_layers(key: str, targets: Collection[str]) -> str:
    """Return the key that PEFT gives to a tensor of the model if these modules have factors.

    PEFT puts a layer of its own around each of them, and calls what was there ``base_layer``. The modules are given by
    their paths in the model.
    """
    parts: list[str] = []
    *path, leaf = key.removeprefix(PREFIX).split(".")
    for part in path:
        parts.append(part)
        if part != "base_layer" and module_path(".".join(parts)) in targets:
            parts.append("base_layer")
    return key[: len(key) - len(key.removeprefix(PREFIX))] + ".".join([*parts, leaf])


def _join_biases(
    terms: Mapping[str, Sequence[_BiasTerm]], modules: Sequence[LoraModule]
) -> tuple[dict[str, RawTensor], int]:
    """Return the weighted sums of the biases beside lora_B, and how many of them were rounded."""
    scalings = {module.name: module.scaling for module in modules}
    joined, rounded = {}, 0
    for key, found in terms.items():
        name = key.removesuffix(LORA_BIAS)
        if name not in scalings:
            raise AdapterError("no factors belong to this bias", code="merge-unknown", where=found[0].where)
        factors = [term.scaling / scalings[name] for term in found]
        first = found[0].tensor
        if len(found) == 1 and factors[0] == 1.0:
            joined[key] = first
            continue
        total = np.zeros(first.shape, np.float64)
        for term, factor in zip(found, factors, strict=True):
            if term.tensor.shape != first.shape:
                message = mismatch("shape", list(first.shape), list(term.tensor.shape))
                raise AdapterError(message, code="base-mismatch", where=term.where)
            total += to_float64(term.tensor, where=term.where) * factor
        joined[key] = from_float64(total, "F32", where=key)
        rounded += len(found) > 1 or not is_exact(factors[0])
    return joined, rounded


def _missing_biases(biases: Collection[str], modules: Sequence[LoraModule]) -> dict[str, RawTensor]:
    """Return biases of zeros for the modules that have none, since PEFT's ``lora_bias`` is one option for all of them.

    Raises:
        AdapterError: ``not-expressible``: PEFT refuses the option for embeddings and for the factors of experts.
    """
    made = {}
    for module in modules:
        if module.layout == "embedding" or module.name.endswith("]"):
            kind = "an embedding" if module.layout == "embedding" else "experts"
            message = f"PEFT allows no lora_bias in an adapter with factors of {kind}; merge both with --base"
            raise AdapterError(message, code="not-expressible", where=module.name)
        key = module.name + LORA_BIAS
        if key not in biases:
            made[key] = from_float32(np.zeros(module.b_shape[0], np.float32), written_dtype(module.dtype))
    return made
