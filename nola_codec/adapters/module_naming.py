"""Name the modules of an adapter for the dialect that it is converted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.paths import COMPONENTS, component_of
from nola_codec.adapters.families.adapter_layout import LaidOut, LayoutName, lay_out
from nola_codec.adapters.families.names import ModuleName, split_name
from nola_codec.adapters.families.recognition import Hints
from nola_codec.adapters.families.relayout import RowPiece
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule


def name_modules(
    source: Dialect, target: Dialect, modules: Sequence[LoraModule], adapter: Adapter, base: Mapping[str, Any] | None
) -> LaidOut:
    """Return the modules of an adapter under the names that `Dialect.from_modules` of the target wants.

    Args:
        source: The dialect of the adapter.
        target: The dialect that it is converted to.
        modules: The modules, from `Dialect.to_modules`.
        adapter: The adapter.
        base: ``config.json`` of the base model, if it was given.

    Raises:
        AdapterError: ``not-expressible``: the target's name of a module is not known, or the target does not load it;
            ``needs-base``, ``base-mismatch``.
    """
    start = source.path_start(adapter) if target.has_components else ""
    if target.layout or source.has_components:
        names = {m.name: split_name(start + source.layout_name(m.name)) for m in modules}
        hints = _hints(adapter, base)
        found = lay_out(modules, names, target.layout or "diffusers", hints, checks_loading=target.has_components)
        if found is not None:
            return found
        if target.layout:
            return _with_known_paths(target.layout, modules, names)
        require_known_names(names, target.name)
    return _renamed(modules, {module.name: source.path_of(module.name) for module in modules})


def changes_names(
    dialect: Dialect, modules: Sequence[LoraModule], adapter: Adapter, base: Mapping[str, Any] | None
) -> bool:
    """Return True if an adapter has names of an original layout, which its own dialect has other names for.

    Raises:
        AdapterError: ``not-expressible``: the other names are not known; ``needs-base``, ``base-mismatch``.
    """
    names = {m.name: split_name(dialect.layout_name(m.name)) for m in modules}
    found = lay_out(modules, names, "diffusers", _hints(adapter, base), checks_loading=False)
    if found is None:
        require_known_names(names, dialect.name)
    return found is not None and any(
        [piece.path for piece in pieces] != [dialect.path_of(name)] for name, pieces in found.pieces.items()
    )


def _hints(adapter: Adapter, base: Mapping[str, Any] | None) -> Hints:
    if base is not None and "_class_name" in base:
        return Hints(adapter.metadata, base)
    mapping = (adapter.config or {}).get("auto_mapping")
    found = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return Hints(adapter.metadata, {"_class_name": found} if isinstance(found, str) else {})


def _with_known_paths(layout: LayoutName, modules: Sequence[LoraModule], names: Mapping[str, ModuleName]) -> LaidOut:
    """Return modules of a model that no table knows, if their names need no table.

    Paths with dots are taken as they are for Diffusers, whose dialects then refuse a path without a component.
    """
    unknown = next((key for key, name in names.items() if _is_flattened(name)), None)
    if layout == "diffusers" and unknown is None:
        require_known_names(names, layout)
        return _renamed(modules, {key: name.whole for key, name in names.items()})
    lone = next((key for key, name in names.items() if _is_of_one_model(name)), None)
    if lone is not None:
        message = (
            "kohya's names begin with a component of an image model, and this path has none: tools that read such "
            "files load no adapters of language models"
        )
        raise AdapterError(message, code="not-expressible", where=lone)
    raise _unknown_model(unknown or next(iter(names)), layout)


def require_known_names(names: Mapping[str, ModuleName], target: str) -> None:
    """Raise AdapterError ``not-expressible`` for names of an original layout, if no table knows all of the modules.

    Where the dots of a flattened name were, and what Diffusers calls a module, would be a guess.

    Args:
        names: The name of each module, taken apart, by the module's name.
        target: The name of the dialect that wants other names.
    """
    for key, name in names.items():
        if name.is_of_denoiser and (name.is_flat or name.whole.partition(".")[0] not in COMPONENTS):
            raise _unknown_model(key, target)


def _unknown_model(key: str, target: str) -> AdapterError:
    message = (
        f"no image or video model that is known here has all of these modules, so their names in the dialect {target} "
        "are not known. The file in its own dialect (without --format) is loaded by what loaded the original"
    )
    return AdapterError(message, code="not-expressible", where=key)


def _is_of_one_model(name: ModuleName) -> bool:
    """Return True if a dotted path has no component: GPT-2's ``transformer.h`` is none."""
    begins_like_one = not name.place or name.whole.partition(".")[0] in COMPONENTS
    return begins_like_one and not _is_flattened(name) and not component_of(name.whole)


def _is_flattened(name: ModuleName) -> bool:
    """Return True if a name is flattened, also under a prefix that no table knows."""
    return name.is_flat or ("." not in name.whole and "_" in name.whole)


def _renamed(modules: Sequence[LoraModule], paths: Mapping[str, str]) -> LaidOut:
    made = [replace(module, name=paths[module.name]) for module in modules]
    pieces = {m.name: (RowPiece(paths[m.name], 0, len(m.lora_B)),) for m in modules}
    return LaidOut(made, pieces)
