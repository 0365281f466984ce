"""Two tied embeddings whose factors PEFT keeps equal (``ensure_weight_tying``), as two modules of their own.

With this option PEFT trains one pair of factors for the input and the output embeddings. It stores it twice, the second
time transposed, and when it loads the adapter it makes one of both copies again: the last one that it reads counts. Our
file codes both copies, each with losses of its own, so with the option PEFT would leave one of them out. Without it the
model computes the same as before: both embeddings have their own factors, and the two deltas are equal but for losses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import LoraModule

_OPTION = "ensure_weight_tying"
NOTE = (
    f"{_OPTION} is turned off in the configuration: the file has factors of their own for the input and the output "
    "embeddings, with which the model computes the same; training that goes on would no longer keep them equal"
)


def without_tie(
    config: Mapping[str, Any] | None, modules: Sequence[LoraModule]
) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """Return a configuration that does not tie factors, and notes for the user.

    It is returned as it is unless it ties the factors of two modules. The output embeddings are then named in
    ``target_modules``, from which PEFT had taken them.

    Args:
        config: The configuration as it was read; it does not change.
        modules: All modules of the adapter.
    """
    if config is None or not config.get(_OPTION):
        return config, ()
    inputs = [module for module in modules if module.layout == "embedding"]
    outputs = [m for m in modules if m.layout == "linear" and any(_are_tied(each, m) for each in inputs)]
    if not outputs:
        return config, ()
    paths = [module.name.removeprefix(PREFIX) for module in outputs]
    targets = config.get("target_modules")
    if isinstance(targets, str):
        targets = "|".join([f"(?:{targets})", *map(re.escape, paths)])
    elif isinstance(targets, list):
        targets = [*targets, *(path for path in paths if path not in targets)]
    return {**config, _OPTION: False, "target_modules": targets}, (NOTE,)


def _are_tied(embedding: LoraModule, linear: LoraModule) -> bool:
    """Return True if the factors of a linear layer are those of an embedding, transposed."""
    return np.array_equal(linear.lora_A, embedding.lora_B.T) and np.array_equal(linear.lora_B, embedding.lora_A.T)
