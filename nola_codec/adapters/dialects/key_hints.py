"""Guess the dialect of keys, for errors about files that mix dialects or whose dialect cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nola_codec.adapters.dialects.refused_keys import find_refusal
from nola_codec.errors import AdapterError

# The name of each dialect, and a pattern that is searched in keys. The first match counts, so specific ones come first.
_DIALECTS: tuple[tuple[str, str], ...] = (
    ("LyCORIS", r"\.(hada_w[12]|hada_t[12]|lokr_[wt][12])"),
    ("kohya", r"^lora_(unet|te\d?|prior|transformer)_.*\.(lora_down|lora_up|lora_mid|alpha|dora_scale)"),
    ("MLX", r"\.lora_[ab]$"),
    ("XLabs", r"\.processor\.(qkv|proj)_lora\d\.(down|up)\.weight$"),
    ("diffusers", r"(_lora|lora_linear_layer)\.(down|up)\.weight$"),
    ("ComfyUI", r"^diffusion_model\..*\.lora_(A|B|down|up)"),
    ("diffusers", r"^(unet|transformer|text_encoder(_\d)?|prior)\..*\.lora_(A|B)\.weight$"),
    ("cloneofsimo lora", r"^(unet|text_encoder):\d+:(up|down)$"),
    ("loralib", r"\.lora_[AB]$"),
    ("SAM LoRA (w_a_/w_b_)", r"^w_[ab]_\d+$"),
    ("PEFT without the base_model.model. prefix", r"\.lora_[AB]\.weight$"),
    ("PEFT's VeRA (read with its adapter_config.json)", r"\.vera_lambda_[bd]$"),
    ("PEFT's PVeRA (read with its adapter_config.json)", r"\.pvera_lambda_[bd]$"),
    ("PEFT's Uni-LoRA (read with its adapter_config.json)", r"\.unilora_(theta_d|indices|scales)"),
    ("PEFT's TinyLoRA (read with its adapter_config.json)", r"\.tinylora_[vABP]"),
    ("PEFT's VB-LoRA (read with its adapter_config.json)", r"\.vblora_(vector_bank|logits)"),
    ("PEFT's FourierFT (read with its adapter_config.json)", r"\.fourierft_spectrum$"),
    ("PEFT's WaveFT (read with its adapter_config.json)", r"\.waveft_spectrum$"),
    ("PEFT's RandLoRA (read with its adapter_config.json)", r"\.randlora_(lambda|gamma)$"),
    ("another LoRA tool", r"lora"),
)  # fmt: skip


def describe_keys(keys: Iterable[str]) -> str | None:
    """Return the name of the dialect that some keys look like, or None if no key looks like LoRA."""
    names = list(keys)
    for dialect, pattern in _DIALECTS:
        search = re.compile(pattern).search
        if any(search(name) for name in names):
            return dialect
    return None


def unknown_key(key: str, dialect: str, where: str) -> AdapterError:
    """Return the error for a key that a dialect does not know.

    It gives the reason why the key is not read, if there is one, or names the dialect that the key looks like.
    """
    refusal = find_refusal([key], where)
    if refusal is not None:
        return refusal
    message = f"unknown key in an adapter of the dialect {dialect}; --carry-unknown carries such tensors as they are"
    other = describe_keys([key])
    if other is not None and other.lower() not in (dialect, "another lora tool"):
        message = f"unknown key in an adapter of the dialect {dialect}: it looks like {other}; are two files mixed?"
    return AdapterError(message, code="unknown-key", where=f"{where}: {key}")
