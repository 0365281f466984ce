"""Read and write `lora_adapter_metadata`: the JSON with ranks and alphas in the metadata of a file of diffusers.

It is a `LoraConfig` whose keys begin with the component: ``{"unet.r": 8, "unet.lora_alpha": 16, ...}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.dialects.peft_config import PeftSettings, parse_config, with_ranks
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import LoraModule
from nola_codec.stores.files import MAX_JSON_BYTES

METADATA_KEY = "lora_adapter_metadata"


def metadata_scalings(
    text: str, ranks: Mapping[str, int], where: str, path_of: Callable[[str], str] = str
) -> dict[str, float]:
    """Return the scaling of each module; 1 for a component that the metadata does not name.

    Args:
        text: The JSON.
        ranks: The rank of each module, by its name.
        where: The name of the file, for messages.
        path_of: Returns the path of a module, with its component.

    Raises:
        AdapterError: ``rank-mismatch``, and those of `parse_metadata`.
    """
    settings = parse_metadata(text, f"{where}: {METADATA_KEY}")
    return {name: _scaling(path_of(name), rank, settings, where) for name, rank in ranks.items()}


def parse_metadata(text: str, where: str) -> dict[str, PeftSettings]:
    """Return the settings of each component, by its name. The empty string stands for a file without components.

    Raises:
        AdapterError: ``bad-config``, and those of `parse_config`.
    """
    try:
        value: Any = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"not valid JSON: {e}", code="bad-config", where=where) from e
    if not isinstance(value, dict):
        raise AdapterError(mismatch("value", "a JSON object", type(value).__name__), code="bad-config", where=where)
    by_component: dict[str, dict[str, Any]] = {}
    for key, item in value.items():
        component, _, option = key.rpartition(".")
        by_component.setdefault(component, {})[option] = item
    return {
        component: parse_config({"peft_type": "LORA", **config}, f"{where}: {component}" if component else where)
        for component, config in by_component.items()
    }


def flat_config(modules: Sequence[LoraModule], path_of: Callable[[str], str] = str) -> str:
    """Return the JSON for these modules: ``unet.r``, ``unet.lora_alpha``, and the patterns.

    Args:
        modules: The modules.
        path_of: Returns the path of a module, with its component.
    """
    flat: dict[str, Any] = {}
    by_path = {path_of(m.name): m for m in modules}
    for component in sorted(set(map(component_of, by_path))):
        start = len(component) + 1 if component else 0
        own = {path[start:]: m for path, m in by_path.items() if component_of(path) == component}
        ranks = {path: m.rank for path, m in own.items()}
        config = with_ranks({"r": 8, "lora_alpha": 8}, ranks, {path: m.scaling for path, m in own.items()})
        config["target_modules"] = sorted(own)
        flat |= {f"{component}.{key}" if component else key: value for key, value in config.items()}
    return json.dumps(flat, sort_keys=True)


def _scaling(name: str, rank: int, settings: Mapping[str, PeftSettings], where: str) -> float:
    component, _, path = name.partition(".")
    found, inner = (settings[component], path) if component in settings else (settings.get(""), name)
    if found is None:
        return 1.0
    if found.rank_of(inner) != rank:
        message = mismatch("rank", f"{found.rank_of(inner)} by {METADATA_KEY}", rank)
        raise AdapterError(message, code="rank-mismatch", where=f"{where}: {name}")
    return found.scaling_of(inner)
