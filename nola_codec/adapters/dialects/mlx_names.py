"""The paths of layers in the models of mlx-lm, and in those of Transformers.

mlx-lm keeps the paths of most models. Some it renames when it reads a checkpoint (`sanitize` in `mlx_lm/models/*.py`),
and for others it has no model at all. `load_adapters` raises an error for a factor whose module is not in the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nola_codec.errors import AdapterError, mismatch

# The start of a layer's path, which both have.
_SHARED = re.compile(r"(?:model|language_model\.model|backbone)\.layers\.\d+\.(?P<leaf>.+)")
# GPT-2, GPT-J and GPT-BigCode of Transformers, with the start of a layer's path in mlx-lm by `model_type`.
_H_LAYERS = re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<leaf>.+)")
_H_MODELS = {"gpt2": "model.h.", "gptj": "model.h.", "gpt_bigcode": "transformer.h."}
_GPTJ_LEAVES = re.compile(r"attn\.[qkv]_proj|attn\.out_proj|mlp\.fc_(?:in|out)")
_GPT2_LEAVES = re.compile(r"attn\.c_(?:attn|proj)|mlp\.c_(?:fc|proj)")
_NEOX_LAYERS = re.compile(r"gpt_neox\.layers\.(?P<layer>\d+)\.(?P<leaf>.+)")
_NEOX_LEAVES = re.compile(r"attention\.(?:query_key_value|dense)|mlp\.dense_(?:h_to_4h|4h_to_h)")
_MLX_H_LAYERS = re.compile(r"model\.h\.(?P<layer>\d+)\.(?P<leaf>.+)")

# Modules outside of layers: the same in both, and those of GPT-2 and GPT-NeoX, whose paths differ.
_OUTSIDE = re.compile(r"(?:(?:model|language_model\.model|backbone)\.embed\w*|(?:language_model\.)?lm_head)")
_EMBEDDINGS = {"gpt_neox.embed_in": "model.embed_in"}
_H_EMBEDDINGS = re.compile(r"transformer\.(?P<leaf>wte|wpe)")
OUTSIDE = re.compile(rf"{_OUTSIDE.pattern}|(?:model|transformer)\.(?:wte|wpe)")
"""The path of a module of mlx-lm outside of the layers: embeddings and heads."""

LAYER = re.compile(r"(?:(?:model|language_model\.model|backbone)\.layers|(?:model|transformer)\.h)\.\d+\.(?P<leaf>.+)")
"""The path of a module in a layer of mlx-lm; the group ``leaf`` is the rest after the layer."""


def to_mlx(path: str, base: Mapping[str, Any] | None) -> str:
    """Return the path in mlx-lm of a module of Transformers.

    Args:
        path: The path in Transformers.
        base: ``config.json`` of the base model, or None.

    Raises:
        AdapterError: ``not-expressible`` for a module that no model of mlx-lm has in a layer; ``needs-base``: the path
            depends on the model.
    """
    shared = _SHARED.fullmatch(path)
    if shared is not None:
        if re.search(r"\bexperts\.\d+\.", shared["leaf"]):
            message = "mlx-lm stacks the experts of a layer in one module, so it has no module for one expert"
            raise AdapterError(message, code="not-expressible", where=path)
        return path
    if _OUTSIDE.fullmatch(path) is not None:
        return path
    if path in _EMBEDDINGS:
        return _EMBEDDINGS[path]
    neox = _NEOX_LAYERS.fullmatch(path)
    if neox is not None:
        return f"model.h.{neox['layer']}.{neox['leaf']}"
    layers = _H_LAYERS.fullmatch(path)
    if layers is not None and _GPTJ_LEAVES.fullmatch(layers["leaf"]):
        return f"model.h.{layers['layer']}.{layers['leaf']}"
    embedding = _H_EMBEDDINGS.fullmatch(path)
    if embedding is not None or (layers is not None and _GPT2_LEAVES.fullmatch(layers["leaf"])):
        model_type = None if base is None else base.get("model_type")
        if model_type is None:
            message = "GPT-2 and GPT-BigCode have this module, under different names in MLX: give the base with --base"
            raise AdapterError(message, code="needs-base", where=path)
        if model_type not in _H_MODELS:
            message = mismatch("model_type of the base", f"one of {', '.join(_H_MODELS)}", model_type)
            raise AdapterError(message, code="not-expressible", where=path)
        start = _H_MODELS[model_type]
        if layers is None:
            return f"{start.removesuffix('h.')}{path.rpartition('.')[2]}"
        return f"{start}{layers['layer']}.{layers['leaf']}"
    message = "MLX puts LoRA into the layers of a language model, and no model of mlx-lm has a layer with this module"
    raise AdapterError(message, code="not-expressible", where=path)


def from_mlx(path: str) -> str:
    """Return the path in Transformers of a module of mlx-lm; a path that is the same in both is returned as it is."""
    layers = _MLX_H_LAYERS.fullmatch(path)
    if path in ("model.wte", "model.wpe"):
        return path.replace("model.", "transformer.")
    if layers is None:
        return next((name for name, own in _EMBEDDINGS.items() if own == path), path)
    start = "gpt_neox.layers" if _NEOX_LEAVES.fullmatch(layers["leaf"]) else "transformer.h"
    return f"{start}.{layers['layer']}.{layers['leaf']}"
