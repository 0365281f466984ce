"""Rules that several dialects share for the modules that they can express."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Layout, LoraModule


def require_layouts(modules: Sequence[LoraModule], dialect: str, *layouts: Layout) -> None:
    """Raise AdapterError ``not-expressible`` for a module with a layout other than these."""
    for module in modules:
        if module.layout not in layouts:
            message = f"{dialect} has no place for factors of the layout {module.layout}"
            raise AdapterError(message, code="not-expressible", where=module.name)


def fold_scaling(module: LoraModule, dialect: str) -> LoraModule:
    """Multiply the scaling into lora_B, which is exact for a power of two.

    Raises:
        AdapterError: ``not-expressible``: the scaling is not a power of two.
    """
    if module.scaling == 1.0:
        return module
    if abs(np.frexp(module.scaling)[0]) != 0.5:
        message = f"{dialect} has no place for the scaling {module.scaling}, and folding it into a factor would round"
        raise AdapterError(message, code="not-expressible", where=module.name)
    lora_B = (module.lora_B * np.float32(module.scaling)).astype(np.float32)
    return replace(module, lora_B=lora_B, scaling=1.0)


def sort_modules(modules: Sequence[LoraModule]) -> tuple[LoraModule, ...]:
    """Sort modules by name, and clear `fan_in_fan_out`, which only PEFT has.

    The flag tells how the base model stores the weight, so it does not change the delta.
    """
    return tuple(sorted((replace(m, fan_in_fan_out=False) for m in modules), key=lambda m: m.name))
