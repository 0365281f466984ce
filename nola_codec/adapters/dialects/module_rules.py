"""Rules that several dialects share for the modules that they can express."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nola_codec.errors import AdapterError
from nola_codec.lazy import numpy as np
from nola_codec.model.adapter import Layout, LoraModule


def require_layouts(modules: Sequence[LoraModule], dialect: str, *layouts: Layout) -> None:
    """Raise AdapterError ``not-expressible`` for a module with a layout other than these."""
    for module in modules:
        if module.layout not in layouts:
            message = f"{dialect} has no place for factors of the layout {module.layout}"
            raise AdapterError(message, code="not-expressible", where=module.name)


def is_power_of_two(factor: float) -> bool:
    """Return True if a product with this factor needs no rounding, if it stays in range: for 2^n and -2^n."""
    return abs(math.frexp(factor)[0]) == 0.5


def fold_scaling(module: LoraModule, dialect: str) -> LoraModule:
    """Multiply the scaling into lora_B, which is exact for a power of two.

    Raises:
        AdapterError: ``not-expressible``: the scaling is not a power of two.
    """
    if module.scaling == 1.0:
        return module
    if not is_power_of_two(module.scaling):
        message = f"{dialect} has no place for the scaling {module.scaling}, and folding it into a factor would round"
        raise AdapterError(message, code="not-expressible", where=module.name)
    lora_B = (module.lora_B * np.float32(module.scaling)).astype(np.float32)
    return replace(module, lora_B=lora_B, scaling=1.0)


def sort_modules(modules: Sequence[LoraModule]) -> tuple[LoraModule, ...]:
    """Sort modules by name, and clear `fan_in_fan_out`, which only PEFT has.

    The flag tells how the base model stores the weight, so it does not change the delta.
    """
    return tuple(sorted((replace(m, fan_in_fan_out=False) for m in modules), key=lambda m: m.name))


def of_one_scale(modules: Sequence[LoraModule], dialect: str) -> list[LoraModule]:
    """Return modules with the most common scaling; the others are folded into lora_B if that is exact.

    Raises:
        AdapterError: ``not-expressible``: the scalings differ by more than powers of two.
    """
    common = Counter(m.scaling for m in modules).most_common(1)[0][0]
    folded = []
    for module in modules:
        if module.scaling != common and (not common or not is_power_of_two(module.scaling / common)):
            found = ", ".join(map(str, sorted({m.scaling for m in modules})))
            message = f"{dialect} has one scaling for all modules, and these have {found}"
            raise AdapterError(message, code="not-expressible")
        factor = module.scaling / common if module.scaling != common else 1.0
        folded.append(replace(module, lora_B=module.lora_B * np.float32(factor), scaling=common))
    return folded
