"""Recognise quantized weights, and name the method, from the names and dtypes of a model's tensors and its config.

A method stores other tensors in the place of a weight, or beside it: ``qweight`` and ``qzeros``, ``weight_scale``.
These tell the method even where no configuration does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nola_codec.stores.dtypes import FLOAT_DTYPES

_METHODS: tuple[tuple[str, str], ...] = (
    (r"\.weight\.quant_state\.bitsandbytes__\w+|\.weight\.(?:nested_)?(?:absmax|quant_map)", "bitsandbytes in 4 bits"),
    (r"\.SCB|\.weight_format", "bitsandbytes in 8 bits"),
    (r"\.g_idx", "GPTQ"),
    (r"\.qzeros|\.qweight", "GPTQ or AWQ"),
    (r"\.W_q", "HQQ"),
    (r"\.weight_packed", "compressed-tensors"),
    (r"\.weight_scale_inv", "FP8 with a scale for each block"),
    (r"\.weight_scale_2", "NVFP4"),
    (r"\.(?:scale_weight|comfy_quant)", "ComfyUI's scaled FP8"),
    (r"\.weight\._(?:data|scale|zeropoint|shift)", "Quanto"),
    (r"\._?weight[_:](?:qdata|tensor_impl.*)", "torchao"),
    (r"\.weight_scale", "scaled weights, as compressed-tensors stores them"),
    (r"\.(?:codes|codebooks)", "AQLM"),
    (r"\.Qidxs", "QuIP"),
    (r"\.(?:trellis|q_weight)", "EXL"),
    (r"\.wscales", "SVDQuant"),
    (r"\.weight_scales|\.weight_scaler", "EETQ"),
)  # fmt: skip
"""The end of a tensor's name that tells a method, and the method. The first of several decides."""

_ENDINGS = re.compile("(?P<module>.+?)(?:" + "|".join(f"(?P<m{n}>{end})" for n, (end, _) in enumerate(_METHODS)) + ")")
_MXFP4 = re.compile(r"(?P<weight>.+)_blocks")

_TITLES: Mapping[str, str] = {
    "bitsandbytes": "bitsandbytes", "bitsandbytes_4bit": "bitsandbytes in 4 bits",
    "bitsandbytes_8bit": "bitsandbytes in 8 bits", "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ",
    "fp8": "FP8 with a scale for each block", "fbgemm_fp8": "FBGEMM's FP8",
    "compressed-tensors": "compressed-tensors", "torchao": "torchao", "mxfp4": "MXFP4", "quanto": "Quanto",
    "eetq": "EETQ", "aqlm": "AQLM", "bitnet": "BitNet", "auto-round": "AutoRound", "modelopt": "ModelOpt",
    "gguf": "GGUF", "mlx": "MLX",
}  # fmt: skip


def configured_method(config: Mapping[str, Any]) -> str:
    """Return the title of the quantization method that a ``config.json`` names; an empty string if there is none."""
    found = config.get("quantization_config") or config.get("compression_config")
    if isinstance(found, dict):
        method = found.get("quant_method")
        if isinstance(method, str) and method:
            name = method.lower().replace("_", "-") if method.lower() not in _TITLES else method.lower()
            if name == "bitsandbytes":
                name += "_4bit" if found.get("load_in_4bit") else "_8bit" if found.get("load_in_8bit") else ""
            return _TITLES.get(name, method[:40])
        if found.get("load_in_4bit") or found.get("load_in_8bit"):
            return _TITLES["bitsandbytes_4bit" if found.get("load_in_4bit") else "bitsandbytes_8bit"]
        return "a method that its configuration does not name"
    # mlx_lm writes {"group_size": 64, "bits": 4}, under both names in its newer releases.
    return _TITLES["mlx"] if isinstance(config.get("quantization"), dict) else ""


def quantized_weights(dtypes: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each quantized weight, and the title of its method.

    A weight is quantized if tensors beside it say so, or if its own dtype is not one of `FLOAT_DTYPES`. It gets the
    name that it has in a model that is not quantized, so ``q_proj.qweight`` counts for ``q_proj.weight``. A
    configuration alone does not make a weight quantized, because methods skip some modules.

    Args:
        dtypes: The dtype of each stored tensor, by name.
        config: The parsed ``config.json``.
    """
    found: dict[str, str] = {}
    configured = configured_method(config)
    for name, dtype in dtypes.items():
        match = _ENDINGS.fullmatch(name)
        if match is not None:
            method = next(title for n, (_, title) in enumerate(_METHODS) if match[f"m{n}"] is not None)
            weight = f"{match['module']}.weight"
            found[weight] = _preferred(found.get(weight), method)
        elif name.endswith(".scales") and f"{name.removesuffix('scales')}biases" in dtypes:
            found[f"{name.removesuffix('.scales')}.weight"] = _TITLES["mlx"]
        elif (mxfp4 := _MXFP4.fullmatch(name)) is not None and f"{mxfp4['weight']}_scales" in dtypes:
            found[mxfp4["weight"]] = _TITLES["mxfp4"]
        elif name.rpartition(".")[2] == "weight" and dtype not in FLOAT_DTYPES:
            found.setdefault(name, f"FP8 without scales, {dtype}" if dtype.startswith("F8") else f"stored as {dtype}")
    return {name: configured or method for name, method in found.items()}


def _preferred(known: str | None, method: str) -> str:
    """Return the method that the table has first, since it is the more certain one."""
    order = [title for _, title in _METHODS]
    return method if known not in order or order.index(method) < order.index(str(known)) else str(known)
