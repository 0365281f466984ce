"""Find the scaling of modules whose tensors have no alpha, and say where it came from.

The places, in the order in which they count:

- a tensor ``<module>.alpha``. If a file has any, the dialect reads them, and nothing below counts;
- the JSON in the metadata of a safetensors file that diffusers writes (`adapter_metadata`);
- an alpha in the metadata, under the names that loaders read (`ALPHA_NAMES`); diffusers (its pull request 14408) and
  SGLang divide it by the rank of each module;
- ``adapter_config.json``, in the directory or beside the file;
- the number that a user gives, if none of these is there;
- what the dialect takes if nothing says a scale (`DefaultScale`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nola_codec.adapters.dialects.adapter_metadata import METADATA_KEY, metadata_scalings, parse_metadata
from nola_codec.adapters.dialects.paths import COMPONENTS, component_of
from nola_codec.adapters.dialects.peft_config import parse_config
from nola_codec.adapters.dialects.peft_patterns import PatternMap
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, Origin

ALPHA_NAMES = ("lora_alpha", "network_alpha", "alpha")
"""The names of an alpha in the metadata that loaders read."""
_RANK_NAMES = ("r", "rank", "lora_rank", "network_dim")
_MAX_SCALE = 1e30


@dataclass(frozen=True)
class DefaultScale:
    """The scaling that a dialect takes for modules whose scale no place tells.

    Attributes:
        value: The scaling.
        assumption: The reason for it, as the end of a sentence, if it is a guess; empty if the dialect defines it.
    """

    value: float = 1.0
    assumption: str = ""


@dataclass(frozen=True)
class FoundScales:
    """The scaling of each module.

    Attributes:
        scalings: The scalings by the name of the module.
        origin: The place that they came from.
        notes: Sentences for the user.
        config: The configuration beside the file, if the scalings are from it.
    """

    scalings: Mapping[str, float]
    origin: Origin
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None


def find_scales(
    source: AdapterSource, ranks: Mapping[str, int], default: DefaultScale, path_of: Callable[[str], str] = str
) -> FoundScales:
    """Return the scalings of the modules of a file without alphas.

    Args:
        source: The open source.
        ranks: The rank of each module, by its name.
        default: The scaling if no place tells one.
        path_of: Returns the path of a module, with its component, for the patterns of configurations.

    Raises:
        AdapterError: ``scale-conflict``: two places tell different scalings; ``rank-mismatch``: the ranks of a
            configuration are not those of the tensors; ``bad-config``, and others of `parse_config`.
    """
    metadata, where = source.file.metadata, source.where
    if METADATA_KEY in metadata:
        scalings = metadata_scalings(metadata[METADATA_KEY], ranks, where, path_of)
        return FoundScales(scalings, "metadata", _unnamed_notes(metadata[METADATA_KEY], ranks, where, path_of))
    config = source.config if source.config is not None else source.beside
    notes: list[str] = []
    paths = {name: path_of(name) for name in ranks}
    in_metadata = _scalings_of_metadata(source, ranks, paths, notes)
    in_config = None if config is None else _scalings_of_config(source, config, ranks, paths)
    if in_metadata is not None and in_config is not None:
        name = next((name for name in ranks if not math.isclose(in_metadata[name], in_config[name])), None)
        if name is not None and source.scale is None:
            message = (
                f"the metadata of the file gives the scaling {in_metadata[name]:g}, and {CONFIG_NAME} gives "
                f"{in_config[name]:g}; remove the wrong one, or set the scaling with --scale"
            )
            raise AdapterError(message, code="scale-conflict", where=f"{where}: {name}")
        if name is not None:
            in_metadata = in_config = None
    if in_config is not None:
        return FoundScales(in_config, "config", tuple(notes), config)
    if in_metadata is not None:
        return FoundScales(in_metadata, "metadata", tuple(notes))
    return default_scales(source, ranks, default, notes)


def default_scales(
    source: AdapterSource, ranks: Mapping[str, int], default: DefaultScale, notes: Sequence[str] = ()
) -> FoundScales:
    """Return the scaling that the user gave for each module, or else the default of the dialect."""
    if source.scale is not None:
        return FoundScales(dict.fromkeys(ranks, source.scale), "option")
    scalings = dict.fromkeys(ranks, default.value)
    if default.assumption:
        return FoundScales(scalings, "assumed", (*notes, assumption_note(default)))
    return FoundScales(scalings, "dialect", (*notes, *_kohya_notes(source.file.metadata, ranks, default.value)))


def assumption_note(default: DefaultScale) -> str:
    """Return the sentence that says which scaling was assumed, and how to set another."""
    return (
        f"nothing says the scale of this adapter: the scaling {default.value:g} is assumed, {default.assumption}; "
        "--scale sets another one"
    )


def alpha_notes(alphas: Mapping[str, float | None]) -> tuple[str, ...]:
    """Return the sentences about modules that have no alpha in a file with alphas, and about alphas that are 0.

    Args:
        alphas: The alpha of each module that has a rank, by its name; None if it has none.
    """
    missing = sorted(name for name, alpha in alphas.items() if alpha is None)
    zero = sorted(name for name, alpha in alphas.items() if alpha == 0)
    notes = []
    if missing and len(missing) < len(alphas):
        notes.append(
            f"{_counted(missing, len(alphas))} no alpha: the scaling 1 (alpha = r) is taken there, as sd-scripts and "
            "ComfyUI do"
        )
    if zero:
        notes.append(
            f"{_counted(zero, len(alphas))} the alpha 0: nothing of them is added, as in ComfyUI and diffusers; "
            "sd-scripts takes alpha = r there"
        )
    return tuple(notes)


def _counted(names: Sequence[str], total: int) -> str:
    verb = "has" if len(names) == 1 else "have"
    return f"{len(names)} of {total} modules ({names[0]}{', ...' if names[1:] else ''}) {verb}"


def require_scale(scale: float) -> float:
    """Return a scaling that a user gave. Raises AdapterError ``option`` if it is 0, or not a finite number."""
    if not 0 < abs(scale) < _MAX_SCALE:
        raise AdapterError(mismatch("scale", "a finite number other than 0", scale), code="option")
    return float(scale)


def apply_scale(adapter: Adapter, scale: float, where: str, *, must_use: bool) -> Adapter:
    """Return the adapter with the scaling that a user gave, if nothing in the source says another one.

    Args:
        adapter: The adapter as read with `AdapterSource.scale`.
        scale: The scaling.
        where: The name of the source, for messages.
        must_use: True to refuse an adapter that says another scaling.

    Raises:
        AdapterError: ``option``: the source says another scaling itself.
    """
    if adapter.scale_origin == "option" or all(math.isclose(m.scaling, scale) for m in adapter.modules):
        return adapter
    if adapter.scale_origin in ("assumed", "dialect", ""):
        modules = tuple(replace(m, scaling=scale) if m.gain is None else m for m in adapter.modules)
        return replace(adapter, modules=modules, scale_origin="option")
    if not must_use:
        return adapter
    first = next(m for m in adapter.modules if not math.isclose(m.scaling, scale))
    places = {"tensor": "its alphas", "config": "its configuration", "metadata": "its metadata"}
    message = (
        f"the adapter says its scaling itself, by {places[adapter.scale_origin]}: {first.scaling:g} for {first.name}; "
        "leave out --scale. A merge can weigh the whole adapter (FILE:WEIGHT)"
    )
    raise AdapterError(message, code="option", where=where)


def number_of(value: object) -> float | None:
    """Return a finite number other than 0 from a number or a text of a configuration or of metadata; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 < abs(number) < _MAX_SCALE else None


def _scalings_of_metadata(
    source: AdapterSource, ranks: Mapping[str, int], paths: Mapping[str, str], notes: list[str]
) -> dict[str, float] | None:
    """Return alpha / r by the alphas of the metadata, or None if it has none; appends notes.

    Raises:
        AdapterError: ``scale-conflict``: two names have different alphas, and the user gave no scale.
    """
    metadata, where = source.file.metadata, source.where
    alphas: dict[str, float] = {}
    for prefix in ("", *(f"{component}." for component in COMPONENTS)):
        found = {prefix + name: metadata[prefix + name] for name in ALPHA_NAMES if prefix + name in metadata}
        numbers = {name: number_of(text) for name, text in found.items()}
        good = {name: number for name, number in numbers.items() if number is not None}
        notes += [
            f"the metadata {name}={found[name]!r:.40} is not a usable alpha, and it is not used"
            for name in sorted(numbers.keys() - good.keys())
        ]
        if len(set(good.values())) > 1:
            if source.scale is not None:
                return None
            listed = ", ".join(f"{name} = {number:g}" for name, number in good.items())
            message = f"the metadata gives different alphas ({listed}); set the scaling with --scale"
            raise AdapterError(message, code="scale-conflict", where=where)
        if good:
            alphas[prefix] = next(iter(good.values()))
    if not alphas:
        return None
    scalings = {}
    for name, rank in ranks.items():
        component = component_of(paths[name])
        prefix = f"{component}." if f"{component}." in alphas else ""
        divisor = math.sqrt(rank) if metadata.get(f"{prefix}use_rslora", "").lower() in ("true", "1") else rank
        scalings[name] = alphas[prefix] / divisor if prefix in alphas else 1.0
    said = next((int(number) for key in _RANK_NAMES if (number := number_of(metadata.get(key))) is not None), None)
    if said is not None and said not in ranks.values():
        found_ranks = ", ".join(map(str, sorted(set(ranks.values()))[:4]))
        notes.append(
            f"the metadata says rank {said}, and the factors have {found_ranks}: "
            "the alpha of the metadata is divided by the rank of the factors, as loaders do"
        )
    return scalings


def _scalings_of_config(
    source: AdapterSource, config: Mapping[str, Any], ranks: Mapping[str, int], paths: Mapping[str, str]
) -> dict[str, float] | None:
    """Return the scalings by PEFT's configuration of a LoRA, or by another one with an alpha; None without.

    Raises:
        AdapterError: ``rank-mismatch``, if the user gave no scale; and those of `parse_config`.
    """
    where = f"{source.where}: {CONFIG_NAME}"
    alpha = next((config[name] for name in ALPHA_NAMES if name in config), None)
    rank = next((config[name] for name in _RANK_NAMES if name in config), None)
    if config.get("peft_type", "LORA") != "LORA" or (alpha is None and "peft_type" not in config):
        return None
    given = {"r": rank, "lora_alpha": alpha}
    known = {"peft_type": "LORA", **config, **{key: value for key, value in given.items() if value is not None}}
    settings = parse_config(known, where)
    scalings = {}
    for name, own in ranks.items():
        component = component_of(paths[name])
        path = paths[name][len(component) + 1 :] if component else paths[name].removeprefix("diffusion_model.")
        if (rank is not None or "peft_type" in config) and settings.rank_of(path) != own:
            if source.scale is not None:
                return None
            message = mismatch("rank", f"{settings.rank_of(path)} by {CONFIG_NAME}", own)
            message += "; if the configuration is of another adapter, move the file, or set the scaling with --scale"
            raise AdapterError(message, code="rank-mismatch", where=f"{where}: {name}")
        scalings[name] = replace(settings, rank=own, rank_pattern=PatternMap()).scaling_of(path)
    return scalings


def _unnamed_notes(text: str, ranks: Mapping[str, int], where: str, path_of: Callable[[str], str]) -> tuple[str, ...]:
    """Return a note about components whose scaling `METADATA_KEY` does not say; the scaling 1 is taken there."""
    settings = parse_metadata(text, where)
    found = {path_of(name).partition(".")[0] for name in ranks}
    unnamed = sorted(found - set(settings)) if "" not in settings else []
    if not unnamed:
        return ()
    message = (
        f"the metadata {METADATA_KEY} says nothing of {', '.join(unnamed[:3])}: the scaling 1 (alpha = r) is taken"
    )
    return (f"{message} there, as diffusers does",)


def _kohya_notes(metadata: Mapping[str, str], ranks: Mapping[str, int], default: float) -> list[str]:
    """Return a note if kohya's metadata gives another scaling than its loaders take for a file without alphas."""
    alpha = number_of(metadata.get("ss_network_alpha"))
    if alpha is None or all(math.isclose(alpha / rank, default) for rank in ranks.values()):
        return []
    scaling = alpha / next(iter(ranks.values()))
    return [
        f"the metadata says ss_network_alpha {alpha:g}, which loaders do not read: the scaling is {default:g}, as they "
        f"take it for a file without alphas; --scale {scaling:g} follows the metadata"
    ]
