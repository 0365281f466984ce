"""What this version can do with each of PEFT's methods, for the messages about those that are not coded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nola_codec.adapters.sources import CONFIG_NAME
from nola_codec.stores.files import read_json

CODED = (
    "LORA", "ADALORA", "LOHA", "LOKR", "VERA", "RANDLORA", "PVERA", "UNILORA", "TINYLORA", "VBLORA",
    "FOURIERFT", "WAVEFT",
)  # fmt: skip
"""The methods that are read, by PEFT's ``peft_type``."""

CONVERTIBLE = ("C3A", "DELORA", "GRALORA", "MISS", "PSOFT")
"""The methods that are not read, and whose adapters `peft.convert_to_lora` turns into LoRA (peft 0.21)."""

_PROMPTS = "it trains tokens or activations beside the model and changes no weight, so there is no delta to code"
_MULTIPLIES = "it multiplies the base weights, so what it adds to them depends on the base model"
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"), _PROMPTS),
    **dict.fromkeys(("CARTRIDGE", "ADAPTION_PROMPT"), _PROMPTS),
    "IA3": "it multiplies activations, so there is no delta that could be added to a weight",
    **dict.fromkeys(("OFT", "BOFT", "HRA", "HIRA", "ROAD"), _MULTIPLIES),
    "SHIRA": "it changes single elements of a weight, which low-rank factors cannot hold",
    "OSF": "it trains the small singular directions of the base weights, which only the base model tells",
    **dict.fromkeys(("GLORA", "DEFT", "PEANUT"), "its delta depends on the base weights"),
    "SUPERTUNING": "it trains single elements of a weight, which low-rank factors cannot hold",
    "SHADOW": "it trains a network beside the model, and has no delta of a weight",
    "XLORA": "it mixes several adapters for each token",
    "POLY": "it mixes several adapters for each task",
    "LN_TUNING": "it trains whole norm layers; use `nola-codec encode-delta` on the merged model",
    "TRAINABLE_TOKENS": "it trains rows of embeddings and no factors",
    "BEFT": "it trains numbers that are added to biases, and no factors; merge it with PEFT, and use "
    "`nola-codec encode-delta` on the merged model",
    "ADAMSS": "its factors act in subspaces that are found in the base weights, and PEFT has no way to turn it into "
    "LoRA",
    "FROD": "PEFT has no way to turn it into LoRA",
    "LILY": "its layers share factors that a router mixes for each token",
}


def is_convertible(source: str | os.PathLike[str]) -> bool:
    """Return True for a directory whose configuration names a method of `CONVERTIBLE`.

    Raises:
        AdapterError: Those of `read_json`.
    """
    path = Path(source) / CONFIG_NAME
    return path.is_file() and read_json(path).get("peft_type") in CONVERTIBLE


def describe_refusal(peft_type: object) -> str:
    """Return the message for a ``peft_type`` that is not read: the reason, and what to do instead, as a sentence."""
    if peft_type in CONVERTIBLE:
        return (
            f"{peft_type} is not coded as it is, and PEFT can turn it into LoRA first. The command encode does so with "
            "--base MODEL_DIR; in Python, encode the directory that nola_codec.integrations.peft_conversion.convert "
            "writes, or peft.save_as_lora"
        )
    reason = _REASONS.get(peft_type) if isinstance(peft_type, str) else None
    if reason is not None:
        return f"{peft_type} cannot be coded: {reason}"
    if isinstance(peft_type, str):
        return (
            f"{peft_type!r:.80} is a method of PEFT that this version does not know, so it cannot tell what the "
            f"tensors do to a weight; it reads {', '.join(CODED)}"
        )
    return f"peft_type: expected one of {', '.join(CODED)}, found {peft_type!r:.80}"
