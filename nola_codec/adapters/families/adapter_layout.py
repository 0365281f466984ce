"""Lay out all modules of an adapter as a target wants them: under the names of Diffusers, or under those of kohya."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from nola_codec.adapters.families.family import Family
from nola_codec.adapters.families.names import ModuleName
from nola_codec.adapters.families.recognition import (
    Hints,
    NamedModule,
    agreed_result,
    candidates,
    match_denoiser,
    match_text,
)
from nola_codec.adapters.families.relayout import RowPiece, join_modules, row_pieces, split_module
from nola_codec.adapters.families.rule import Match, Rule
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import LoraModule

LayoutName = Literal["diffusers", "kohya"]

_ANY_PIPELINE = ("text_encoder", "text_encoder_2")
_WIDTH_OF_CLIP_L, _WIDTH_OF_CLIP_G = 768, 1280


@dataclass(frozen=True)
class LaidOut:
    """Modules under the names of a target.

    Attributes:
        modules: The modules. For Diffusers, their names are paths with a component; for kohya, they are kohya's names.
        pieces: The pieces of each module of the source, by its name, before they are joined; paths have a component.
    """

    modules: Sequence[LoraModule]
    pieces: Mapping[str, Sequence[RowPiece]]


def lay_out(
    modules: Sequence[LoraModule],
    names: Mapping[str, ModuleName],
    layout: LayoutName,
    hints: Hints,
    *,
    checks_loading: bool,
) -> LaidOut | None:
    """Name modules as a target does, if all of them are of image or video models that are known here.

    Args:
        modules: The modules of an adapter.
        names: The name of each module, taken apart, by the module's name.
        layout: The target's names.
        hints: What is known about the base model.
        checks_loading: True to refuse modules that no pipeline of Diffusers loads an adapter into.

    Returns:
        The modules, or None if some module is of no known family.

    Raises:
        AdapterError: ``needs-base``: the names do not tell the family, and families differ; ``base-mismatch``: the base
            model is of another family; ``not-expressible``: the target does not load such a module.
    """
    named = [NamedModule(m.name, names[m.name], *m.vector_lengths) for m in modules]
    texts = {}
    for module in named:
        text = None if module.name.is_of_denoiser else match_text(module)
        if text is not None:
            texts[module.key] = text
        elif module.name.place and not module.name.is_of_denoiser:
            return None
    denoiser = [module for module in named if module.key not in texts]
    families = candidates(denoiser, hints) if denoiser else ()
    if denoiser and not families:
        return None
    own = {module.name.place for module in named if module.key in texts}
    families = (
        tuple(family for family in families if own <= {*family.text_encoders, *family.text_encoders.values()})
        or families
    )

    def assign(family: Family | None) -> _Assignment:
        return _assign(family, named, texts, layout, hints)

    found = agreed_result(families, denoiser, hints, assign) if families else assign(None)
    if checks_loading and layout == "diffusers":
        _require_loaded_by_diffusers(found)
    return LaidOut(_carry_out(found, modules), found.pieces)


@dataclass(frozen=True)
class _Assignment:
    """The pieces of each module, and the names under which a target has them. Equal ones have equal results.

    Attributes:
        pieces: The pieces of each module, by its name; their paths have a component.
        targets: For kohya: the target's name for each piece and the number of the part that the piece is in it, by the
            path of the piece. Empty for Diffusers.
        refused: The component of each module that Diffusers loads no adapter into, by the module's name.
        rules: The rule of each target's name that joins several pieces, by the name.
        readers: Who loads the original file.
        family: The family's name.
    """

    pieces: Mapping[str, Sequence[RowPiece]]
    targets: Mapping[str, tuple[str, int]]
    refused: Mapping[str, str]
    rules: Mapping[str, Rule] = field(compare=False)
    readers: str = field(compare=False)
    family: str = field(compare=False)


def _assign(
    family: Family | None,
    modules: Sequence[NamedModule],
    texts: Mapping[str, tuple[str, Match]],
    layout: LayoutName,
    hints: Hints,
) -> _Assignment:
    """Return the assignment if the denoising model is of one family; None stands for an adapter without one."""
    pieces: dict[str, Sequence[RowPiece]] = {}
    targets: dict[str, tuple[str, int]] = {}
    refused: dict[str, str] = {}
    rules: dict[str, Rule] = {}
    components = {
        m.key: _text_component(m, texts[m.key][0], family, hints) if m.key in texts else _denoiser_component(m, family)
        for m in modules
    }
    for module in modules:
        match = texts[module.key][1] if module.key in texts else _match(family, module)
        component = components[module.key]
        own = [replace(p, path=f"{component}.{p.path}") for p in row_pieces(match, module.out, module.inputs)]
        pieces[module.key] = own
        if layout == "diffusers":
            if component not in (_ANY_PIPELINE if family is None else family.loaded_by_diffusers):
                refused[module.key] = component
            continue
        for part, piece in enumerate(own, match.part or 0):
            if module.key in texts:
                targets[piece.path] = _kohya_text_name(piece.path, family, components.values()), 0
            elif family is None or family.trained_as == "diffusers":
                targets[piece.path] = _flattened(piece.path), 0
            else:
                site = _site(family, match, part, piece.path.removeprefix(f"{component}."))
                targets[piece.path] = _flattened(f"{component}.{site.original}"), site.part or 0
                rules[targets[piece.path][0]] = site.rule
    readers, title = ("ComfyUI", "image models") if family is None else (family.readers, family.title)
    return _Assignment(pieces, targets, refused, rules, readers, title)


def _site(family: Family, match: Match, part: int, path: str) -> Match:
    """Return the match of the original weight that holds a piece, with the number of its part."""
    known = family.find(path, is_flat=False) if match.rule.is_alias else None
    return replace(match, part=part) if known is None else known


def _match(family: Family | None, module: NamedModule) -> Match:
    match = None if family is None else match_denoiser(family, module)
    assert match is not None  # `candidates` chose the family
    return match


def _carry_out(found: _Assignment, modules: Sequence[LoraModule]) -> list[LoraModule]:
    made = [part for module in modules for part in split_module(module, found.pieces[module.name])]
    if not found.targets:
        return made
    groups: dict[str, dict[int, LoraModule]] = {}
    for module in made:
        name, part = found.targets[module.name]
        if part in groups.setdefault(name, {}):
            message = f"two modules of the adapter are both {module.name}"
            raise AdapterError(message, code="duplicate-key", where=name)
        groups[name][part] = module
    return [
        join_modules(found.rules[name], name, parts) if name in found.rules else replace(parts[0], name=name)
        for name, parts in groups.items()
    ]


def _require_loaded_by_diffusers(found: _Assignment) -> None:
    for name, component in found.refused.items():
        message = (
            f"Diffusers loads no adapter into the {component} of {found.family}; {found.readers} load the original file"
        )
        raise AdapterError(message, code="not-expressible", where=name)


def _denoiser_component(module: NamedModule, family: Family | None) -> str:
    if module.name.place == "transformer_2":
        return "transformer_2"
    return "" if family is None else family.component


def _text_component(module: NamedModule, kind: str, family: Family | None, hints: Hints) -> str:
    """Return the component of a pipeline that a module of a text encoder is in.

    Raises:
        AdapterError: ``needs-base``: the name does not tell.
    """
    place = module.name.place
    if place.startswith("text_encoder"):
        return place
    slots = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"} if kind == "clip" else {}
    if family is not None:
        slots = {**slots, **family.text_encoders}
    if place in slots:
        return slots[place]
    if not place and kind == "clip":
        if hints.model_class == "CLIPTextModel" or module.width == _WIDTH_OF_CLIP_L:
            return "text_encoder"
        if module.width == _WIDTH_OF_CLIP_G:
            return "text_encoder_2"
    message = "the name does not tell which text encoder of a pipeline the module is in"
    raise AdapterError(message, code="not-expressible", where=module.key)


def _flattened(path: str) -> str:
    """Return kohya's name of a module of the denoising model. Raises AdapterError ``not-expressible``."""
    component, _, rest = path.partition(".")
    if component == "transformer_2":
        message = "kohya's dialect has one denoising model in a file, and this adapter changes a second one"
        raise AdapterError(message, code="not-expressible", where=path)
    return "lora_unet_" + rest.replace(".", "_")


def _kohya_text_name(path: str, family: Family | None, components: Collection[str]) -> str:
    component, _, rest = path.partition(".")
    prefixes = {"text_encoder": "te1" if "text_encoder_2" in components else "te", "text_encoder_2": "te2"}
    if family is not None:
        prefixes = {of: prefix for prefix, of in family.text_encoders.items()}
    if component not in prefixes:
        title = "such a model" if family is None else family.title
        message = f"kohya's dialect has no name for the {component} of {title}"
        raise AdapterError(message, code="not-expressible", where=path)
    return f"lora_{prefixes[component]}_{rest.replace('.', '_')}"
