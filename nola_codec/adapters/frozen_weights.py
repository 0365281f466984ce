"""Leave out the weights of the base model that a state dict of the whole model holds beside the factors.

``torch.save(model.state_dict())`` of a model with LoRA saves its frozen weights too. An adapter has no place for them:
PEFT would take each for a module that was trained whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nola_codec.adapters.dialects.peft_config import is_saved_module

_FACTOR = re.compile(r"(?P<module>.+)\.lora_A(?:\.[^.]+)?\.weight|(?P<bare>.+)\.lora_A")
_NUMBERED = re.compile(r"\.\d+\.")
_COPY = ".modules_to_save."
_OF_ADAPTER = re.compile(r"\.(?:lora_|modules_to_save\.|original_module\.|token_adapter\.|trainable_tokens_)")


def find_frozen_weights(keys: Mapping[str, str], config: Mapping[str, Any] | None) -> list[str]:
    """Return the keys of frozen weights; none if the file does not hold the whole model.

    A linear layer in a numbered block, whose own weight lies beside its factors, tells that the model is there: no tool
    trains both. Embeddings and heads tell nothing, since PEFT saves those that it adapts.

    Args:
        keys: The keys of the file.
        config: PEFT's configuration, or None.
    """
    modules = {match["module"] or match["bare"] for key in keys if (match := _FACTOR.fullmatch(key)) is not None}
    blocks = [module for module in modules if _NUMBERED.search(module)]
    if not any(f"{module}{own}" in keys for module in blocks for own in (".base_layer.weight", ".weight")):
        return []
    has_copies = any(_COPY in key for key in keys)
    settings = config or {}
    return [
        key
        for key in keys
        if not (
            _OF_ADAPTER.search(key)
            or (not has_copies and is_saved_module(key, settings))
            or (settings.get("bias", "none") != "none" and key.endswith(".bias"))
        )
    ]


def frozen_note(count: int) -> str:
    """Return the sentence that tells the user what was left out, and how to keep what was trained among it."""
    return (
        f"not encoded: {count} weights of the model itself, which the file holds beside the factors; if some of them "
        "were trained, --carry-unknown --base MODEL carries those that differ from the base model's"
    )
