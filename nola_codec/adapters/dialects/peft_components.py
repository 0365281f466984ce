"""Find the component of a pipeline that an adapter of PEFT belongs to.

PEFT adapts one model, and its keys do not say which component of a pipeline this is. The configuration names the class
of the model if the adapter was made without a task type (``auto_mapping``); the names of the modules tell it too, for
models whose names no other model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# The class of a model, the library it comes from, and what stands before a path in a pipeline.
_CLASSES: tuple[tuple[str, str, str], ...] = (
    (r"UNet\w*", "diffusers", "unet."),
    (r"\w*Transformer\w*Model", "diffusers", "transformer."),
    (r"CLIPTextModel", "transformers", "text_encoder."),
)
_NAMES: tuple[tuple[str, str], ...] = (
    (r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|time_proj)\b.*", "unet."),
    (r"(?:transformer_blocks|single_transformer_blocks)\.\d+\..+", "transformer."),
)


def pipeline_start(config: Mapping[str, Any] | None, paths: Iterable[str]) -> str:
    """Return what stands before the path of a module in a pipeline, such as ``unet.``; empty if nothing tells it.

    Args:
        config: ``adapter_config.json``, or None.
        paths: The paths of the adapter's modules.
    """
    found = list(paths)
    mapping = (config or {}).get("auto_mapping")
    if isinstance(mapping, Mapping):
        name, library = (mapping.get(key) for key in ("base_model_class", "parent_library"))
        for pattern, parent, start in _CLASSES:
            if re.fullmatch(pattern, str(name)) and str(library).partition(".")[0] == parent:
                # Transformers 5 has no `text_model` around the layers of CLIPTextModel, and pipelines name it.
                inner = start == "text_encoder." and all(path.startswith("encoder.layers.") for path in found)
                return f"{start}text_model." if inner else start
    for pattern, start in _NAMES:
        if found and all(re.fullmatch(pattern, path) for path in found):
            return start
    return ""
