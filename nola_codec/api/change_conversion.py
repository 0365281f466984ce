"""Turn the change of a whole model (dialect `delta`) into a LoRA of PEFT that gives the changed model on its base.

A matrix that was coded as singular components is a pair of factors already. A small matrix, which was coded as one
vector, becomes a pair of full rank. Norms and other small modules are written whole (`modules_to_save`), and biases
under their own keys; both need the base model's values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.adapters.dialects.weight_changes import Weights, weight_name
from nola_codec.adapters.registry import DIALECTS
from nola_codec.array_types import Float32Array
from nola_codec.checkpoints.embeddings import embedding_names, tied_embeddings
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.matching import is_stored_transposed
from nola_codec.model.adapter import Adapter, Layout, LoraModule, VectorTensor
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64, to_float64

_OTHER_EMBEDDING = re.compile(r"(?:.*\.)?(?:wpe|position_embeddings|token_type_embeddings|embed_positions)")
# Modules of this name may store their weight (in, out), as GPT-2's do; only the type of the model tells.
_MAYBE_TRANSPOSED = ("c_attn", "q_attn", "c_proj", "c_fc")
_AGAIN = "encode the change again with --exclude to leave it out"


def change_as_lora(adapter: Adapter, base: str | os.PathLike[str] | None, config: Mapping[str, Any]) -> Adapter:
    """Return the change as an adapter of PEFT.

    Args:
        adapter: A decoded file of the dialect `delta`.
        base: The base model, a directory; None if it was not given.
        config: ``config.json`` of the base model; empty if it was not given.

    Raises:
        AdapterError: ``not-expressible``: a part of the change has no place in a LoRA, which the message names;
            ``needs-base``: a part needs the base model's values or its type; ``base-mismatch``: the base has no such
            weight.
    """
    if any(isinstance(config.get(part), dict) for part in ("text_config", "vision_config")):
        message = (
            "a model of several parts has other names in memory than on disk; merge the change with --base instead"
        )
        raise AdapterError(message, code="not-expressible", where="config.json")
    names = {m.name for m in adapter.modules}
    modules = list(adapter.modules)
    single = []
    for vector in adapter.vectors:
        weight = weight_name(vector.name)
        if weight in names:
            message = f"a rest beside low-rank factors has no place in a LoRA: encode with --no-residue, or {_AGAIN}"
            raise AdapterError(message, code="not-expressible", where=weight)
        if vector.values.ndim >= 2 and weight.endswith(".weight"):
            modules.append(_full_rank(weight, vector))
        else:
            single.append(vector)
    if not modules:
        message = "no matrix changed, so there is nothing that a LoRA could hold: merge the change with --base"
        raise AdapterError(message, code="not-expressible")
    _require_untied(modules, base, config)
    loras = [_as_lora(module, base, config) for module in modules]
    made = DIALECTS["peft"].from_modules(loras, {}, None)
    return _with_whole_tensors(made, single, base, config)


def _full_rank(weight: str, vector: VectorTensor) -> LoraModule:
    """Return a whole matrix, or a kernel as a matrix, as a pair of which one factor is the identity."""
    values = vector.values
    matrix = values.reshape(len(values), -1)
    out, into = matrix.shape
    if values.ndim == 2 and into < out:
        lora_B, lora_A = matrix, np.eye(into, dtype=np.float32)
    else:
        lora_B, lora_A = np.eye(out, dtype=np.float32), matrix
    rank = len(lora_A)
    kernel = values.shape[1:]
    layout: Layout = "linear" if values.ndim == 2 else "conv"
    return LoraModule(
        weight, lora_A, lora_B, (rank, *kernel), (out, rank, *(1 for _ in kernel[1:])), 1.0, layout, dtype=vector.dtype
    )


def _as_lora(module: LoraModule, base: str | os.PathLike[str] | None, config: Mapping[str, Any]) -> LoraModule:
    """Return the factors of a stored weight as those of its module, under the module's path in memory."""
    if not module.name.endswith(".weight"):
        message = f"a parameter that is not the weight of a module has no place in a LoRA: {_AGAIN}"
        raise AdapterError(message, code="not-expressible", where=module.name)
    path = _path(module.name.removesuffix(".weight"), config)
    leaf = path.rpartition(".")[2]
    inputs, _ = embedding_names({module.name: (1, 1)})
    if inputs or _OTHER_EMBEDDING.fullmatch(path):
        return _turned(replace(module, name=path, layout="embedding"))
    if base is None and leaf in _MAYBE_TRANSPOSED:
        message = "only the type of the model tells how this weight is stored: give the base model with --base"
        raise AdapterError(message, code="needs-base", where=module.name)
    if module.layout == "linear" and is_stored_transposed(path, config, False):
        return _turned(replace(module, name=path, fan_in_fan_out=True))
    return replace(module, name=path)


def _turned(module: LoraModule) -> LoraModule:
    """Return the pair of the transposed product."""
    lora_A: Float32Array = np.ascontiguousarray(module.lora_B.T)
    lora_B: Float32Array = np.ascontiguousarray(module.lora_A.T)
    return replace(module, lora_A=lora_A, lora_B=lora_B, a_shape=lora_A.shape, b_shape=lora_B.shape)


def _path(stored: str, config: Mapping[str, Any]) -> str:
    """Return the path in memory; checkpoints of GPT-2 and BLOOM on the Hub lack ``transformer.``."""
    bare = config.get("model_type") in ("gpt2", "bloom") and re.match(r"(?:h\.\d|wte|wpe|ln_f|word_embeddings)", stored)
    return f"transformer.{stored}" if bare else stored


def _require_untied(modules: list[LoraModule], base: str | os.PathLike[str] | None, config: Mapping[str, Any]) -> None:
    """Refuse factors of embeddings that are also the output layer. Raises AdapterError ``not-expressible``."""
    inputs, _ = embedding_names({module.name: (1, 1) for module in modules})
    if not inputs:
        return
    if base is None:
        message = "only the base model tells if these embeddings are its output layer too: give it with --base"
        raise AdapterError(message, code="needs-base", where=inputs[0])
    with Weights(base) as weights:
        tied = tied_embeddings(config, {name: info.shape for name, info in weights.infos.items()}, ())
    if tied is not None:
        message = (
            f"the base ties its output layer to these embeddings, and a LoRA would change one of the two: {_AGAIN}"
        )
        raise AdapterError(message, code="not-expressible", where=inputs[0])


def _with_whole_tensors(
    adapter: Adapter, vectors: list[VectorTensor], base: str | os.PathLike[str] | None, config: Mapping[str, Any]
) -> Adapter:
    """Return the adapter with changed norms as `modules_to_save`, and changed biases under their own keys."""
    if not vectors:
        return adapter
    if base is None:
        message = "a changed norm or bias is written whole, which needs the base model's values: give it with --base"
        raise AdapterError(message, code="needs-base", where=weight_name(vectors[0].name))
    adapted = {module.name.removeprefix(PREFIX) for module in adapter.modules}
    changes = {weight_name(vector.name): vector.values for vector in vectors}
    raw: dict[str, RawTensor] = {}
    saved = []
    with Weights(base) as weights:
        for name in changes:
            stored, _, leaf = name.rpartition(".")
            path = _path(stored, config)
            if leaf == "bias":
                key = f"{path}.base_layer.bias" if path in adapted else f"{path}.bias"
                raw[PREFIX + key] = _changed(weights, name, changes)
            elif leaf == "weight" and changes[name].ndim == 1:
                saved.append(path)
            else:
                message = f"a parameter that is not the weight of a module has no place in a LoRA: {_AGAIN}"
                raise AdapterError(message, code="not-expressible", where=name)
        for path in saved:
            stored = path if f"{path}.weight" in weights.infos else path.removeprefix("transformer.")
            for name in (n for n in weights.infos if n.rpartition(".")[0] == stored):
                raw[f"{PREFIX}{path}.{name.rpartition('.')[2]}"] = _changed(weights, name, changes)
    found: dict[str, Any] = dict(adapter.config or {})
    if saved:
        found["modules_to_save"] = saved
    if any(not any(key.startswith(f"{PREFIX}{path}.") for path in saved) for key in raw):
        found["bias"] = "all"
    return replace(adapter, raw=raw, config=found)


def _changed(weights: Weights, name: str, changes: Mapping[str, Float32Array]) -> RawTensor:
    """Return a tensor of the base with its change added, rounded once to its dtype."""
    if name not in weights.infos:
        raise AdapterError("the base model has no such weight", code="base-mismatch", where=name)
    tensor = weights.read(name)
    if name not in changes:
        return tensor
    values = to_float64(tensor, where=name)
    if values.shape != changes[name].shape:
        message = mismatch("shape", list(changes[name].shape), list(values.shape))
        raise AdapterError(message, code="base-mismatch", where=name)
    return from_float64(values + changes[name], tensor.dtype, where=name)
