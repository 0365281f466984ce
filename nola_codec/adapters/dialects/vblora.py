"""VB-LoRA (arXiv 2405.15179), as PEFT computes it (`tuners/vblora/layer.py`, `tuners/vblora/model.py`).

    delta = B A;   each piece of l elements of a row of A, or of a column of B, is sum_j w_j bank[i_j]      j below topk

``base_model.vblora_vector_bank`` (n, l) is shared by all layers. ``vblora_logits_A`` (r, in / l, n) and
``vblora_logits_B`` (out / l, r, n) choose from it: i are the indices of the largest logits, and w is the softmax of
these logits. With ``save_only_topk_weights`` the file has i and w instead, without the last w, which makes the sum 1.
That form serves to run and to merge, and not to go on training. A rate turns logits into it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import Values
from nola_codec.adapters.dialects.fixed_functions import fixed_exp
from nola_codec.adapters.dialects.lycoris import MAX_ELEMENTS
from nola_codec.adapters.dialects.peft_config import positive_integer
from nola_codec.adapters.dialects.seeded import (
    Integers,
    Layer,
    MatrixPair,
    MethodTensors,
    SeededMethod,
    Shape,
    require_flag,
    require_shape,
    with_raw,
)
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float64

BANK = "base_model.vblora_vector_bank"
_LOGITS = re.compile(r"(?P<module>.+)\.vblora_logits_(?P<side>[AB])(?P<form>|_topk_indices|_topk_weights)")
_FORM_NOTE = (
    "the logits of VB-LoRA were brought into the form of save_only_topk_weights, which PEFT runs and merges but does "
    "not train; without a rate they stay as they are"
)


class VbLoraMethod(SeededMethod):
    """The rules of VB-LoRA."""

    peft_type = "VBLORA"
    title = "VB-LoRA"
    config_class = "VBLoRAConfig"
    coded = re.compile(re.escape(BANK))
    exact = _LOGITS

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the sizes and the form of the logits; errors as in `SeededMethod`."""
        for option, default in (("r", 4), ("num_vectors", 256), ("vector_length", 256), ("topk", 2)):
            positive_integer(config.get(option, default), option, where)
        require_flag(config, "save_only_topk_weights", False, where)
        if config.get("topk", 2) > config.get("num_vectors", 256):
            message = mismatch("topk", f"at most num_vectors, {config.get('num_vectors', 256)}", config.get("topk", 2))
            raise AdapterError(message, code="bad-config", where=where)

    def check_shapes(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str) -> None:
        """Check the bank, and the logits or what is left of them; errors as in `SeededMethod`."""
        rank, count, length, topk = _sizes(config)
        require_shape(shapes, BANK, (count, length), where)
        for module in _modules(shapes):
            tiles_of = [shapes[key][0] * shapes[key][1] for key in _pieces_of(module, shapes) if len(shapes[key]) == 3]
            if sum(tiles_of) * length > MAX_ELEMENTS:
                message = mismatch("elements of A and B", f"at most {MAX_ELEMENTS}", sum(tiles_of) * length)
                raise AdapterError(message, code="limit", where=f"{where}: {module}")
            for side in "AB":
                tiles = (rank, None) if side == "A" else (None, rank)
                key = f"{module}.vblora_logits_{side}"
                if not config.get("save_only_topk_weights", False):
                    require_shape(shapes, key, (*tiles, count), where)
                    continue
                shape = require_shape(shapes, f"{key}_topk_indices", (*tiles, topk), where)
                if topk > 1:
                    require_shape(shapes, f"{key}_topk_weights", (*shape[:2], topk - 1), where)

    def layers(self, tensors: MethodTensors, config: Mapping[str, Any]) -> dict[str, Layer]:
        """Return all layers."""
        length, found = _sizes(config)[2], {}
        for module in _modules(tensors.shapes):
            (i_A, w_A), (i_B, w_B) = (_choose(tensors, f"{module}.vblora_logits_{side}", config) for side in "AB")
            shape = (i_B.shape[0] * length, i_A.shape[1] * length)
            found[module] = Layer((BANK,), shape, partial(_make, i_A, w_A, i_B, w_B))
        return found

    def describe_missing(self, tensors: MethodTensors, config: Mapping[str, Any]) -> str:
        """Return nothing, since a file has all of every delta."""
        return ""

    def reduce(self, adapter: Adapter) -> Adapter:
        """Return the adapter with the indices and weights of the largest logits, as PEFT saves them."""
        config = dict(adapter.config or {})
        if config.get("save_only_topk_weights", False):
            return adapter
        tensors, made = MethodTensors(adapter), dict[str, RawTensor]()
        gone = [key for key in adapter.raw if (match := _LOGITS.fullmatch(key)) and not match["form"]]
        for key in gone:
            indices, weights = _choose(tensors, key, config)
            made[f"{key}_topk_indices"] = _pack_indices(indices, _sizes(config)[1])
            made[f"{key}_topk_weights"] = from_float64(
                np.ascontiguousarray(weights[..., :-1]), adapter.raw[key].dtype, where=key
            )
        config["save_only_topk_weights"] = True
        return replace(adapter, raw=with_raw(adapter, made, gone), config=config, notes=(*adapter.notes, _FORM_NOTE))


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return r, the number and the length of the vectors, and topk."""
    return config.get("r", 4), config.get("num_vectors", 256), config.get("vector_length", 256), config.get("topk", 2)


def _modules(shapes: Mapping[str, Shape]) -> list[str]:
    return sorted({match["module"] for key in shapes if (match := _LOGITS.fullmatch(key))})


def _pieces_of(module: str, shapes: Mapping[str, Shape]) -> list[str]:
    """Return the keys of the tensors of a module that have an entry for each piece of A and of B."""
    keys = [f"{module}.vblora_logits_{side}{form}" for side in "AB" for form in ("", "_topk_indices")]
    return [key for key in keys if key in shapes]


def _choose(tensors: MethodTensors, key: str, config: Mapping[str, Any]) -> tuple[Integers, Float64Array]:
    """Return the indices and the weights of the vectors of each piece, (tiles, r or r, tiles, topk) each.

    The softmax subtracts the largest logit, takes `fixed_exp`, and divides by the sum in order. Of equal logits, the
    one of the smaller index counts as the larger.
    """
    _, count, _, topk = _sizes(config)
    if config.get("save_only_topk_weights", False):
        indices = tensors.integers(f"{key}_topk_indices", count)
        if topk == 1:
            return indices, np.ones(indices.shape)
        weights = tensors.floats(f"{key}_topk_weights")
        return indices, np.concatenate([weights, 1.0 - _ordered_sum(weights)[..., None]], axis=-1)
    logits = tensors.floats(key)
    if np.isnan(logits).any() or (logits == np.inf).any():
        raise AdapterError("a logit is not a number or is infinite", code="not-finite", where=key)
    indices = np.argsort(-logits, axis=-1, kind="stable")[..., :topk].astype(np.int64)
    chosen = np.take_along_axis(logits, indices, axis=-1)
    if not np.isfinite(chosen[..., :1]).all():
        raise AdapterError("all logits of a piece are minus infinity", code="not-finite", where=key)
    weights = fixed_exp(chosen - chosen[..., :1])
    return indices, weights / _ordered_sum(weights)[..., None]


def _ordered_sum(values: Float64Array) -> Float64Array:
    """Return the sum over the last dimension, in order, one rounding each."""
    total = np.zeros(values.shape[:-1])
    for j in range(values.shape[-1]):
        total = total + values[..., j]
    return total


def _pieces(bank: Float64Array, indices: Integers, weights: Float64Array) -> Float64Array:
    """Return sum_j w_j bank[i_j] in order, (.., .., l)."""
    total = np.zeros((*indices.shape[:2], bank.shape[1]))
    for j in range(indices.shape[-1]):
        total = total + weights[..., j, None] * bank[indices[..., j]]
    return total


def _make(
    i_A: Integers, w_A: Float64Array, i_B: Integers, w_B: Float64Array, values: Values, shape: tuple[int, int]
) -> MatrixPair:
    """Return B (out, r) and A (r, in)."""
    bank = np.asarray(values[BANK], np.float64)
    lora_A = _pieces(bank, i_A, w_A).reshape(len(i_A), -1)
    lora_B = _pieces(bank, i_B, w_B).transpose(0, 2, 1).reshape(-1, i_B.shape[1])
    return lora_B, lora_A


def _pack_indices(indices: Integers, count: int) -> RawTensor:
    """Return indices in the dtype in which PEFT saves them."""
    dtype, stored = ("U8", "u1") if count < 1 << 8 else ("I16", "<i2") if count < 1 << 15 else ("I32", "<i4")
    return RawTensor(dtype, indices.shape, indices.astype(stored).tobytes())


VBLORA = VbLoraMethod()
