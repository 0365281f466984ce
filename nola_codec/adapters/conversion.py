"""Convert between dialects that can express the same adapter; what cannot be said is refused, never dropped.

Factors are carried over to the bit. A scaling moves to where the new dialect keeps it: an alpha, a configuration, one
number for all; or into lora_B, where that is exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.registry import DIALECTS, deltas, dialect_of, find_dialect
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor

# Tensors that dialects with `spells_lora_biases` spell alike, after the module's name.
_LORA_BIASES = re.compile(r"(?P<module>.+)(?P<end>\.lora_B\.bias|\.lora_magnitude_vector(?:\.weight)?)")


def convert(adapter: Adapter, dialect: str, base: Mapping[str, Any] | None = None) -> Adapter:
    """Return the same adapter in another dialect.

    Args:
        adapter: Its modules must be plain products.
        dialect: The name of a dialect that has `Dialect.is_conversion_target`.
        base: ``config.json`` of the base model: GGUF's names depend on the architecture.

    Raises:
        AdapterError: ``not-expressible``, naming what the dialect has no words for; ``needs-base`` when names depend on
            the base model and it was not given.
    """
    if dialect == adapter.dialect:
        return adapter
    source, target = dialect_of(adapter), find_dialect(dialect)
    if target is None or not target.is_conversion_target:
        known = ", ".join(name for name, each in DIALECTS.items() if each.is_conversion_target)
        raise AdapterError(mismatch("dialect", f"one of {known}", dialect), code="not-expressible")
    modules = source.to_modules(adapter, base)
    _require_products(adapter, source)
    paths = {module.name: source.path_of(module.name) for module in modules}
    raw = _convert_carried(adapter, source, target, paths)
    return target.from_modules([replace(module, name=paths[module.name]) for module in modules], raw, base)


def matching_names(first: Adapter, second: Adapter) -> tuple[dict[str, str], dict[str, str]]:
    """Return for each adapter a map of delta names to keys; keys are equal where both mean the same weight.

    Within a dialect names are the keys. Between dialects paths are compared with dots and underscores alike, and
    without their component where only one of the adapters says it.

    Raises:
        AdapterError: ``not-expressible`` between dialects one of which numbers its modules.
    """
    adapters = (first, second)
    names = [[delta.name for delta in deltas(adapter)] for adapter in adapters]
    if first.dialect == second.dialect:
        return {name: name for name in names[0]}, {name: name for name in names[1]}
    paths = [
        {name: dialect_of(adapter).flat_path(name) for name in own}
        for own, adapter in zip(names, adapters, strict=True)
    ]
    have_components = all(component for own in paths for component, _ in own.values())
    keys = [
        {name: f"{component}.{rest}" if have_components else rest for name, (component, rest) in own.items()}
        for own in paths
    ]
    return keys[0], keys[1]


def _require_products(adapter: Adapter, dialect: Dialect) -> None:
    """Raise AdapterError ``not-expressible`` for a delta that is no product of two factors, or a slice of one."""
    for delta in deltas(adapter):
        is_slice = dialect.slice_of(delta.name)[0] != delta.name
        if delta.product is None or is_slice:
            kind = "experts' factors" if is_slice else "a delta that is no product of two factors"
            message = f"{kind}, which only the dialect {adapter.dialect} expresses"
            raise AdapterError(message, code="not-expressible", where=delta.name)


def _convert_carried(
    adapter: Adapter, source: Dialect, target: Dialect, paths: Mapping[str, str]
) -> dict[str, RawTensor]:
    """Return carried tensors by the new dialect's path and ending. Alphas are in the modules' scalings."""
    carried = {}
    alike = source.spells_lora_biases and target.spells_lora_biases
    for key, tensor in adapter.raw.items():
        if key.endswith(".alpha") and key.removesuffix(".alpha") in paths:
            continue
        match = _LORA_BIASES.fullmatch(key)
        if match is None or not alike or match["module"] not in paths:
            message = f"{target.name} has no place for this tensor of the dialect {adapter.dialect}"
            raise AdapterError(message, code="not-expressible", where=key)
        carried[paths[match["module"]] + match["end"]] = tensor
    return carried
