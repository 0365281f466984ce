"""Convert adapters between dialects. A part that the new dialect cannot express is refused, and never dropped.

Factors keep their bits. The scaling goes to the place that the new dialect has for it: an alpha, a configuration, or
one number for all modules. A dialect without such a place gets it multiplied into lora_B, if that is exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.adapter_delta import is_change
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.families.relayout import RowPiece, split_rows
from nola_codec.adapters.module_naming import changes_names, name_modules
from nola_codec.adapters.registry import DIALECTS, deltas, dialect_of, find_dialect
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor

# The tensors that have the same key after the module's name in all dialects with `spells_lora_biases`.
_LORA_BIASES = re.compile(r"(?P<module>.+)(?P<end>\.lora_B\.bias|\.lora_magnitude_vector(?:\.weight)?)")
_LOCAL_PATH = re.compile(r"[/\\~.]|[A-Za-z]:")

_OTHER_WAYS = (
    "Without --format it comes back as it was, for the tools that load the original; --base merges what is a delta"
)


def convert(adapter: Adapter, dialect: str, base: Mapping[str, Any] | None = None) -> Adapter:
    """Return the same adapter in another dialect.

    The modules of image and video models get the names that the readers of the new dialect look for (`families`).

    Args:
        adapter: The adapter; its deltas must be plain products.
        dialect: The name of a dialect that has `Dialect.is_conversion_target`.
        base: ``config.json`` of the base model. GGUF needs it, since its names depend on the architecture; and so do
            image models that name their modules alike.

    Raises:
        AdapterError: ``not-expressible``: the new dialect cannot express a part of the adapter, which the message
            names; ``needs-base``: the names depend on the base model, which was not given; ``base-mismatch``.
    """
    source, target = dialect_of(adapter), find_dialect(dialect)
    if dialect == adapter.dialect and source.layout != "diffusers":
        return adapter
    if target is None or not target.is_conversion_target:
        known = ", ".join(name for name, each in DIALECTS.items() if each.is_conversion_target)
        raise AdapterError(mismatch("dialect", f"one of {known}", dialect), code="not-expressible")
    modules = source.to_modules(adapter, base)
    if dialect == adapter.dialect and not changes_names(source, modules, adapter, base):
        return adapter
    _require_products(adapter, source, target)
    named = name_modules(source, target, modules, adapter, base)
    raw = _convert_carried(adapter, source, target, modules, named.pieces)
    if not modules:
        raise AdapterError(f"it has no factors, which are what {dialect} holds", code="not-expressible")
    return _name_base_model(target.from_modules(named.modules, raw, base), adapter)


def _name_base_model(made: Adapter, original: Adapter) -> Adapter:
    """Return a converted adapter whose configuration names the base model that the original's configuration names.

    A path on the author's machine is left out: it says nothing to others, and loaders would look for it.
    """
    key = dialect_of(made).base_model_key
    name = dialect_of(original).base_model(original.config or {}, {})
    if not key or not name or _LOCAL_PATH.match(name):
        return made
    return replace(made, config={**(made.config or {}), key: name})


def in_one_layout(first: Adapter, second: Adapter) -> tuple[Adapter, Adapter]:
    """Return two adapters, under the names of Diffusers if more of their deltas then have a name in common.

    Adapters of one image model may name its modules in two layouts, which fuse modules differently.
    """
    try:
        keys = _common_names(first, second)
        if keys == max(len(deltas(first)), len(deltas(second))):
            return first, second
        converted = convert(first, "diffusers"), convert(second, "diffusers")
        return converted if _common_names(*converted) > keys else (first, second)
    except AdapterError:
        return first, second


def _common_names(first: Adapter, second: Adapter) -> int:
    keys = matching_names(first, second)
    return len(set(keys[0].values()) & set(keys[1].values()))


def matching_names(first: Adapter, second: Adapter) -> tuple[dict[str, str], dict[str, str]]:
    """Return a key for each delta of two adapters, by the delta's name; deltas of the same weight have equal keys.

    Within one dialect, the keys are the names. Between dialects, a key is the module's path with underscores for dots.
    It includes the component of a pipeline only if all names of both adapters tell one.

    Raises:
        AdapterError: ``not-expressible`` for two dialects of which one numbers its modules.
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


def _require_products(adapter: Adapter, dialect: Dialect, target: Dialect) -> None:
    """Raise AdapterError ``not-expressible`` for a delta that is a slice, or not a product of two factors."""
    for delta in deltas(adapter):
        is_slice = dialect.slice_of(delta.name)[0] != delta.name
        if delta.product is None or is_slice:
            kind = "the factors of experts" if is_slice else "a delta that is no product of two factors"
            if is_change(delta.name):
                kind = "a change of a whole tensor"
            message = f"a conversion to {target.title} cannot take {kind} along. {_OTHER_WAYS}"
            raise AdapterError(message, code="not-expressible", where=delta.name)


def _convert_carried(
    adapter: Adapter,
    source: Dialect,
    target: Dialect,
    modules: Sequence[LoraModule],
    pieces: Mapping[str, Sequence[RowPiece]],
) -> dict[str, RawTensor]:
    """Return the carried tensors by path and ending, without alphas, which the scalings of the modules contain.

    A tensor of a module that is split is split in the same way.
    """
    rows = {module.name: len(module.lora_B) for module in modules}
    # A carried tensor may have another spelling of the module's name.
    owners = {spelling: m.name for m in modules for spelling in (source.layout_name(m.name), m.name)}
    carried = {}
    alike = source.spells_lora_biases and target.spells_lora_biases
    for key, tensor in adapter.raw.items():
        if key.endswith(".alpha") and key.removesuffix(".alpha") in owners:
            continue
        match = _LORA_BIASES.fullmatch(key)
        owner = None if match is None else owners.get(match["module"])
        if match is None or not alike or owner is None:
            message = f"{target.title} has no place for this tensor of the dialect {adapter.dialect}. {_OTHER_WAYS}"
            raise AdapterError(message, code="not-expressible", where=key)
        for piece in pieces[owner]:
            carried[piece.path + match["end"]] = split_rows(tensor, piece, rows[owner])
    return carried
