"""TinyLoRA (arXiv 2602.04118), as PEFT computes it (`tuners/tinylora/layer.py`, `tuners/tinylora/model.py`).

    delta = B R A,   R = sum_i v[i] P[i]

``base_model.tinylora_v.<group>`` v (u,) is trained; several layers may share it (``weight_tying``). ``tinylora_A``
(r, in) and ``tinylora_B`` (out, r) are made of the strongest singular vectors of the base weight, and PEFT saves them:
another machine may find them with another sign. ``tinylora_P`` (u, r, r) is in the file with ``save_projection``; else
PEFT draws it again. The group of a layer follows from its number in the model, which the file does not say; but the
seed of its P is ``projection_seed`` plus that number, so P tells it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import Values
from nola_codec.adapters.dialects.peft_config import positive_integer, real_number
from nola_codec.adapters.dialects.seeded import (
    Layer,
    MatrixPair,
    MethodTensors,
    SeededMethod,
    Shape,
    modules_of,
    require_flag,
    require_seed,
    require_shape,
)
from nola_codec.adapters.dialects.torch_draws import normal_numbers
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch

_VECTOR = "base_model.tinylora_v."
_SAMPLE = 256
"""The most numbers of P that are compared with draws."""
_FEWEST = 64
"""The fewest numbers of P that a rate may code: fewer would not tell the number of a layer after coding."""
_MOST_LAYERS = 1 << 12
"""The most layers among whose draws P is looked for; the work grows with the square of their number."""
_NEAR = 1e-4
"""The mean squared distance within which a P that was not coded lies from its draw, for a standard deviation of 1.

PEFT may have cast P to a dtype of 16 bits, and machines differ in the last bits of a draw.
"""


class TinyLoraMethod(SeededMethod):
    """The rules of TinyLoRA."""

    peft_type = "TINYLORA"
    title = "TinyLoRA"
    config_class = "TinyLoraConfig"
    coded = re.compile(r"base_model\.tinylora_v\.\d{1,6}|.+\.tinylora_[ABP]")

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the ranks, the seed and the sharing of vectors; errors as in `SeededMethod`."""
        positive_integer(config.get("r", 2), "r", where)
        positive_integer(config.get("u", 64), "u", where)
        require_seed(config, "projection_seed", 42, where)
        require_flag(config, "save_projection", True, where)
        if not 0 <= real_number(config.get("weight_tying", 0.0), "weight_tying", where) <= 1:
            message = mismatch("weight_tying", "a number from 0 to 1", config["weight_tying"])
            raise AdapterError(message, code="bad-config", where=where)

    def may_code(self, key: str, shape: Shape) -> bool:
        """Return True for the tensors of `coded`, but for a P of few numbers."""
        return super().may_code(key, shape) and (not key.endswith("_P") or math.prod(shape) >= _FEWEST)

    def check_shapes(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str) -> None:
        """Check the vectors, and the matrices of each layer; errors as in `SeededMethod`."""
        u, most = config.get("u", 64), config.get("r", 2)
        names = {
            key.rpartition(".")[0] for key in shapes if key.endswith((".tinylora_A", ".tinylora_B", ".tinylora_P"))
        }
        for module in sorted(names):
            rank, inputs = require_shape(shapes, f"{module}.tinylora_A", (None, None), where)
            rows, _ = require_shape(shapes, f"{module}.tinylora_B", (None, rank), where)
            if rank != min(most, rows, inputs):
                message = mismatch("rank", min(most, rows, inputs), rank)
                raise AdapterError(message, code="rank-mismatch", where=f"{where}: {module}.tinylora_A")
            if f"{module}.tinylora_P" in shapes:
                require_shape(shapes, f"{module}.tinylora_P", (u, rank, rank), where)
        vectors = {key for key in shapes if key.startswith(_VECTOR)}
        wanted = {f"{_VECTOR}{group}" for group in range(_groups(len(names), config)[0])} if names else vectors
        for key in sorted(wanted | vectors):
            require_shape(shapes, key, [u], where)
        if vectors != wanted:
            # With another number of layers, a vector would go to another layer.
            message = mismatch("vectors", f"{len(wanted)} for {len(names)} layers", len(vectors))
            raise AdapterError(message, code="bad-shape", where=where)

    def layers(self, tensors: MethodTensors, config: Mapping[str, Any]) -> dict[str, Layer]:
        """Return the layers whose P is in the file, and tells the layer's number in the model."""
        shapes = tensors.shapes
        modules = modules_of(shapes, ".tinylora_A")
        groups, size = _groups(len(modules), config) if modules else (1, 1)
        seed, found = config.get("projection_seed", 42), {}
        for module in modules:
            key = f"{module}.tinylora_P"
            if key not in shapes:
                continue
            number = 0 if groups == 1 else _find_number(tensors.floats(key), seed, len(modules))
            if number is None:
                continue
            keys = (f"{_VECTOR}{min(number // size, groups - 1)}", key, f"{module}.tinylora_B", f"{module}.tinylora_A")
            shape = (shapes[keys[2]][0], shapes[keys[3]][1])
            found[module] = Layer(keys, shape, partial(_make, keys))
        return found

    def describe_missing(self, tensors: MethodTensors, config: Mapping[str, Any]) -> str:
        """Return a message if P of some layer is not in the file, or does not tell the layer's number."""
        known = self.layers(tensors, config)
        lacking = [module for module in modules_of(tensors.shapes, ".tinylora_A") if module not in known]
        if not lacking:
            return ""
        if f"{lacking[0]}.tinylora_P" in tensors.shapes:
            return (
                f"{lacking[0]}.tinylora_P is not what PEFT draws from projection_seed, so the file does not tell which "
                "vector belongs to which layer: merge the decoded directory with PEFT"
            )
        return (
            f"the file does not have {lacking[0]}.tinylora_P (save_projection is off), and a merge needs it: save the "
            "adapter with save_projection=True and encode it again, or merge the decoded directory with PEFT"
        )


def _groups(layers: int, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of vectors for a number of layers, and how many layers share one."""
    groups = max(1, round(layers * (1.0 - config.get("weight_tying", 0.0))))
    return groups, max(1, layers // groups)


def _find_number(P: Float64Array, seed: int, layers: int) -> int | None:
    """Return the number of the layer whose seed draws P; None if no draw is like P, or more than one.

    Coding moves P away from its draw. Unlike draws have a mean squared distance of 2.
    """
    if layers > _MOST_LAYERS:
        return None
    wanted = P.reshape(-1)[:_SAMPLE] * math.sqrt(P.shape[1])
    distances = np.square(_draws(seed, layers, P.size) - wanted).mean(axis=1)
    best = int(np.argmin(distances))
    nearest, second = float(distances[best]), float(np.min(np.delete(distances, best), initial=2.0))
    if P.size >= _FEWEST:
        return best if nearest < 0.5 * min(second, 2.0) else None
    return best if nearest < _NEAR and second > 100 * _NEAR else None


@lru_cache(maxsize=8)
def _draws(seed: int, layers: int, size: int) -> Float64Array:
    """Return the first numbers that PEFT draws for each layer, in standard deviations: (layers, at most _SAMPLE).

    The result is kept, since all layers look for theirs among the same.
    """
    drawn = np.stack([normal_numbers(seed + number, size)[:_SAMPLE] for number in range(layers)])
    drawn.setflags(write=False)
    return drawn


def _make(keys: tuple[str, ...], values: Values, shape: tuple[int, int]) -> MatrixPair:
    """Return B R (out, r) and A (r, in); R and B R are sums in the order of v and of r, one rounding each."""
    v, P, lora_B, lora_A = (np.asarray(values[key], np.float64) for key in keys)
    R = np.zeros(P.shape[1:])
    for weight, matrix in zip(v, P, strict=True):
        R = R + weight * matrix
    left = np.zeros(lora_B.shape)
    for k in range(len(R)):
        left = left + lora_B[:, k : k + 1] * R[k]
    return left, lora_A


TINYLORA = TinyLoraMethod()
