"""Tell adapters of image and video models from those of text models, for what is known of one kind only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.registry import dialect_of
from nola_codec.model.adapter import Adapter

_IMAGE_CLASS = re.compile(r"ImageClassif|ImageSegm|ObjectDetection|^(?:ViT|Swin|Dino|UNet|CLIP)|Transformer\dD")
"""Parts of the class names of base models that read or make images and write no text."""
_IMAGE_BLOCK = re.compile(
    r"(?:^|[._])(?:(?:down|up|input|output|double|single|joint|(?:double|single)_stream|(?:single_)?transformer)_blocks"
    r"|blocks[._]\d+[._](?:attn[12]|self_attn|cross_attn)|mid_block|middle_block|text_model)[._]"
)
"""The blocks of denoising models and of CLIP, as their authors and Diffusers name them."""


def is_of_image_model(adapter: Adapter) -> bool:
    """Return True if an adapter's dialect, its base model's class or its names of modules are those of image models.

    An adapter that nothing tells counts as one of a text model.
    """
    names = [module.name for module in adapter.modules]
    return describes_image_model(dialect_of(adapter), adapter.config, names)


def describes_image_model(dialect: Dialect, config: Mapping[str, Any] | None, names: Sequence[str]) -> bool:
    """Return what `is_of_image_model` returns of an adapter, from its dialect, configuration and names of modules."""
    if dialect.is_for_images:
        return True
    mapping = (config or {}).get("auto_mapping")
    base_class = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    if isinstance(base_class, str) and _IMAGE_CLASS.search(base_class):
        return True
    return bool(names) and all(_IMAGE_BLOCK.search(name) for name in names)
