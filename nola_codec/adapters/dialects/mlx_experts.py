"""Read and write the factors of experts in MLX's dialect: one pair of 3-D tensors for all experts of a layer.

    <path>.lora_a (E, r, in)    <path>.lora_b (E, out, r)       delta[e] = lora_b[e] @ lora_a[e] * scale

(`mlx_lm/tuner/lora.py`, `LoRASwitchLinear`.) In memory each expert is a module of its own, ``<path>[<expert>]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import MergeTarget
from nola_codec.adapters.dialects.pairs import check_shapes, read_floats
from nola_codec.adapters.dialects.peft_experts import expert_module, expert_number
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.tensor_store import TensorStore

_MAX_EXPERTS = 1 << 14
# Mixtral and its kind number the projections of an expert on disk.
_NUMBERED = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def read_experts(store: TensorStore, name: str, keys: tuple[str, str], scaling: float) -> list[LoraModule]:
    """Read a pair of 3-D factors as one module for each expert.

    Args:
        store: The file that holds both tensors.
        name: The name of the module.
        keys: The keys of lora_a and of lora_b.
        scaling: The scaling of the products.

    Raises:
        AdapterError: ``bad-shape``, ``rank-mismatch``, ``not-float``, ``not-finite``; ``limit``: too many experts.
    """
    a_key, b_key = keys
    a_shape, b_shape = store.tensors[a_key].shape, store.tensors[b_key].shape
    where_a, where_b = f"{store.name}: {a_key}", f"{store.name}: {b_key}"
    if len(b_shape) != 3 or a_shape[:1] != b_shape[:1]:
        expected = f"three dimensions, with {a_shape[0]} experts as lora_a has"
        raise AdapterError(mismatch("shape", expected, list(b_shape)), code="bad-shape", where=where_b)
    if not 0 < a_shape[0] <= _MAX_EXPERTS:
        message = mismatch("experts", f"1 to {_MAX_EXPERTS}", a_shape[0])
        raise AdapterError(message, code="limit", where=where_a)
    check_shapes("linear", a_shape[1:], b_shape[1:], where_a, where_b)
    a, b = read_floats(store, a_key), read_floats(store, b_key)
    dtypes = {store.tensors[key].dtype for key in keys}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    return [
        LoraModule(f"{name}[{expert}]", a[expert], b[expert], a_shape[1:], b_shape[1:], scaling, dtype=dtype)
        for expert in range(a_shape[0])
    ]


def expert_tensors(
    modules: Sequence[LoraModule], keys: Mapping[str, tuple[str, str]], dtype: str | None
) -> dict[str, RawTensor]:
    """Return the 3-D tensors of experts, by key.

    Args:
        modules: The experts of any number of layers.
        keys: The keys of lora_a and of lora_b by the name of the layer's module.
        dtype: The dtype that the factors are rounded to; None is the modules' own.

    Raises:
        AdapterError: ``missing-expert``; ``bad-shape``: the experts of one module differ in shape; ``overflow``.
    """
    layers: dict[str, dict[int, LoraModule]] = {}
    for module in modules:
        layers.setdefault(expert_module(module.name), {})[expert_number(module.name)] = module
    made: dict[str, RawTensor] = {}
    for name, experts in layers.items():
        if sorted(experts) != list(range(len(experts))):
            message = f"the numbers of the {len(experts)} experts are not 0 to {len(experts) - 1}"
            raise AdapterError(message, code="missing-expert", where=name)
        ordered = [experts[number] for number in range(len(experts))]
        if len({(m.lora_A.shape, m.lora_B.shape) for m in ordered}) > 1:
            raise AdapterError("the experts differ in shape", code="bad-shape", where=name)
        a_key, b_key = keys[name]
        own = dtype or ordered[0].dtype
        made[a_key] = from_float32(np.stack([m.lora_A for m in ordered]), own, where=a_key)
        made[b_key] = from_float32(np.stack([m.lora_B for m in ordered]), own, where=b_key)
    return made


def experts_target(path: str, parts: Sequence[AdapterDelta]) -> MergeTarget:
    """Return the target of the experts of a layer: MLX's 3-D weight, or the weight of each expert.

    Args:
        path: The path of the module in MLX's model.
        parts: The delta of each expert, in order.
    """
    parent, _, leaf = path.rpartition(".")
    experts = parent.removesuffix(".switch_mlp") + ".experts" if parent.endswith(".switch_mlp") else parent
    leaves = (leaf, _NUMBERED[leaf]) if leaf in _NUMBERED else (leaf,)
    one_by_one = tuple(f"{experts}.*.{each}.weight" for each in leaves)
    return MergeTarget(
        expert_module(parts[0].name), "linear", (len(parts), *parts[0].shape), weight=f"{path}.weight",
        alternatives=one_by_one,
    )  # fmt: skip
