"""Uni-LoRA (arXiv 2506.00799), as PEFT computes it (`tuners/unilora/layer.py`, `tuners/unilora/model.py`).

    delta = B A,   A[k, q] = theta[i_A[k, q]] s_A[k, q],   B[p, k] = theta[i_B[p, k]] s_B[p, k]

``base_model.unilora_theta_d`` theta (d,) is all that is trained. ``unilora_indices_A`` (r, in), ``unilora_indices_B``
(out, r) and ``unilora_scales_A``, ``unilora_scales_B`` of the same shapes are in the file only with ``save_indices``.
Without it PEFT draws the indices again when it loads the adapter, from ``proj_seed``, NumPy's generator and the order
of the layers in the model. The scale of an index is the inverse square root of its number of places in the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from nola_codec.adapters.adapter_delta import Values
from nola_codec.adapters.dialects.peft_config import positive_integer
from nola_codec.adapters.dialects.seeded import (
    Integers,
    Layer,
    MatrixPair,
    MethodTensors,
    SeededMethod,
    Shape,
    modules_of,
    require_count,
    require_flag,
    require_seed,
    require_shape,
)

THETA = "base_model.unilora_theta_d"


class UniLoraMethod(SeededMethod):
    """The rules of Uni-LoRA."""

    peft_type = "UNILORA"
    title = "Uni-LoRA"
    config_class = "UniLoraConfig"
    coded = re.compile(re.escape(THETA))
    exact = re.compile(r".+\.unilora_(?:indices|scales)_[AB]")

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Check the rank, the length of theta and the seed; errors as in `SeededMethod`."""
        positive_integer(config.get("r", 4), "r", where)
        require_count(config, "theta_d_length", 256, where)
        require_seed(config, "proj_seed", 42, where)
        require_flag(config, "save_indices", False, where)

    def check_shapes(self, shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str) -> None:
        """Check theta, and the indices and scales if there are any; errors as in `SeededMethod`."""
        require_shape(shapes, THETA, [config.get("theta_d_length", 256)], where)
        rank = config.get("r", 4)
        for module in sorted({key.rpartition(".")[0] for key in shapes if self.exact.fullmatch(key)}):
            for side, wanted in (("A", (rank, None)), ("B", (None, rank))):
                shape = require_shape(shapes, f"{module}.unilora_indices_{side}", wanted, where)
                require_shape(shapes, f"{module}.unilora_scales_{side}", shape, where)

    def layers(self, tensors: MethodTensors, config: Mapping[str, Any]) -> dict[str, Layer]:
        """Return the layers whose indices are in the file."""
        shapes, length, found = tensors.shapes, config.get("theta_d_length", 256), {}
        for module in modules_of(shapes, ".unilora_indices_A"):
            indices = [tensors.integers(f"{module}.unilora_indices_{side}", length) for side in "AB"]
            scales = tuple(f"{module}.unilora_scales_{side}" for side in "AB")
            shape = (indices[1].shape[0], indices[0].shape[1])
            found[module] = Layer((THETA, *scales), shape, partial(_make, indices[0], indices[1], scales))
        return found

    def describe_missing(self, tensors: MethodTensors, config: Mapping[str, Any]) -> str:
        """Return a message if the indices are not in the file."""
        if any(self.exact.fullmatch(key) for key in tensors.shapes):
            return ""
        return (
            "the file has the vector of Uni-LoRA and not the indices, which PEFT draws for the order of the layers in "
            "the model: save the adapter with save_indices=True and encode it again, merge the decoded directory with "
            "PEFT, or turn it into LoRA with peft.save_as_lora"
        )


def _make(
    indices_A: Integers, indices_B: Integers, scales: tuple[str, ...], values: Values, shape: tuple[int, int]
) -> MatrixPair:
    """Return B (out, r) and A (r, in), one rounding an element."""
    theta = values[THETA]
    return theta[indices_B] * values[scales[1]], theta[indices_A] * values[scales[0]]


UNILORA = UniLoraMethod()
