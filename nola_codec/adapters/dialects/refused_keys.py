"""Keys of methods and files that cannot be read as an adapter, and the reason for each."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nola_codec.errors import AdapterError

# (pattern that is searched in a key, code, reason). The first one that matches counts.
_REFUSED: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), code, reason)
    for pattern, code, reason in (
        (
            r"\.(?:oft_blocks|oft_diag|oft_R|boft_\w+)(?:\.\w+)?$",
            "multiplicative",
            "orthogonal fine-tuning (OFT, BOFT) multiplies the base weight, so it has no delta of its own",
        ),
        (r"\.on_input$", "multiplicative", "(IA)^3 multiplies activations, so it has no delta of its own"),
        (r"\.(?:a1|a2|b1|b2|bm)\.weight$", "glora", "GLoRA's delta depends on the base weight"),
        (
            r"\.(?:lambda_layer|q_layer\.weight|p_layer\.weight)$",
            "incomplete-delta",
            "T-LoRA's delta is a difference to its first values, which the file does not have",
        ),
        (r"\.bias_(?:indices|values|size)$", "sparse-bias", "sparse biases are not supported"),
        (
            r"^lllite_(?:unet|dit)",
            "not-an-adapter",
            "ControlNet-LLLite is a network beside the model and changes no weight, so it is not a LoRA",
        ),
        (
            r"^lora_controlnet$",
            "not-an-adapter",
            "a Control-LoRA holds a whole ControlNet, of which only some weights are low-rank, so it is not a LoRA",
        ),
        (
            r"^ip_adapter\.|^image_proj\.|\.to_[kv]_ip\.weight$",
            "not-an-adapter",
            "an IP-Adapter has layers of its own beside the model, so it is not a LoRA",
        ),
        (
            r"^(?:emb_params|clip_[lg]|t5xxl|string_to_param(?:\..+)?|<[^<>]+>)$",
            "not-an-adapter",
            "an embedding of textual inversion, which has no factors: it is not a LoRA",
        ),
        (r"^\d+\.\d+\.linear\d?\.", "not-an-adapter", "a hypernetwork has layers of its own, so it is not a LoRA"),
    )
)


def find_refusal(keys: Iterable[str], where: str) -> AdapterError | None:
    """Return the error for the first of these keys that belongs to something that is not read; None if none does."""
    for key in keys:
        for pattern, code, reason in _REFUSED:
            if pattern.search(key):
                return AdapterError(reason, code=code, where=f"{where}: {key}")
    return None
