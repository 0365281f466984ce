"""Find the scalings of a PEFT adapter without its configuration, and make a configuration that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.beside_files import is_beside
from nola_codec.adapters.dialects.adapter_metadata import METADATA_KEY
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.adapters.scale_records import ORIGIN_KEY, stored_origin
from nola_codec.adapters.scales import ALPHA_NAMES, DefaultScale, find_scales
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.model.adapter import Adapter, LoraModule, Origin

_TOKENS = ".trainable_tokens_delta"
_TOKENS_NOTE = (
    f"which tokens were trained stands only in {CONFIG_NAME}, and there is none: put their numbers "
    "(trainable_token_indices) into that of the decoded adapter"
)
_DEFAULT = DefaultScale(1.0, "as for alpha = r, since there is no adapter_config.json")


def with_found_scales(
    adapter: Adapter, source: AdapterSource, configured: Callable[[Adapter, Sequence[LoraModule]], Adapter]
) -> Adapter:
    """Return an adapter with the origin of its scalings; without a configuration, with those that are found elsewhere.

    PEFT needs a configuration for scalings from the metadata or the user, so the adapter gets one. It is written as
    PEFT's own, so the metadata keeps the origin.

    Args:
        adapter: The adapter as read, with scalings of 1 if it has no configuration.
        source: The open source.
        configured: Returns the adapter with modules of other scalings, and with a configuration.

    Raises:
        AdapterError: Those of `find_scales`.
    """
    if adapter.config is not None:
        return replace(adapter, scale_origin=peft_origin(adapter.config, adapter.metadata))
    ranks = {m.name: m.rank for m in adapter.modules}
    found = find_scales(source, ranks, _DEFAULT)
    tokens = [_TOKENS_NOTE] if any(key.endswith(_TOKENS) for key in adapter.raw) else []
    adapter = replace(adapter, scale_origin=found.origin, notes=(*adapter.notes, *found.notes, *tokens))
    if found.origin not in ("metadata", "option"):
        return adapter
    modules = tuple(replace(m, scaling=found.scalings[m.name]) for m in adapter.modules)
    adapter = configured(replace(adapter, metadata={**adapter.metadata, ORIGIN_KEY: found.origin}), modules)
    if adapter.config is None:
        return adapter
    return replace(adapter, config={**adapter.config, **options_for_carried(adapter)})


def options_for_carried(adapter: Adapter) -> dict[str, Any]:
    """Return the options with which PEFT loads the carried tensors of an adapter that has no configuration.

    A bias without its weight is trained by itself (``bias``); any other tensor is a part of a module that was saved
    whole (``modules_to_save``), unless PEFT loads it as part of the layer that has factors.
    """
    adapted = {m.name.removeprefix(PREFIX) for m in adapter.modules}
    own = {key.removeprefix(PREFIX) for key in adapter.raw if ".lora_" not in key and not is_beside(key)}
    own = {key for key in own if not key.endswith(_TOKENS)}
    biases = {key for key in own if key.endswith(".bias") and key.removesuffix(".bias") + ".weight" not in own}
    owners = {key.removesuffix(".bias").removesuffix(".base_layer") for key in biases}
    saved = sorted({key.rpartition(".")[0] for key in own - biases if ".base_layer." not in key})
    options: dict[str, Any] = {"modules_to_save": saved} if saved else {}
    return options | ({"bias": "lora_only" if owners <= adapted else "all"} if biases else {})


def made_config_note(adapter: Adapter) -> str:
    """Return a sentence for an adapter without a configuration, whose directory gets one; empty for any other."""
    if adapter.config is not None or not adapter.modules:
        return ""
    return (
        f"{CONFIG_NAME} was made with lora_alpha = r, since the adapter had none; set the scaling there if it is known"
    )


def peft_origin(config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
    """Return the place that the scalings of a PEFT adapter came from, as `Dialect.scale_origin` does."""
    return stored_origin(metadata) or ("assumed" if config is None else "config")


def without_scale(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata without entries about the scalings, for a file whose scalings are in its factors."""
    told = {METADATA_KEY, ORIGIN_KEY, *ALPHA_NAMES}
    return {key: value for key, value in metadata.items() if key not in told}


def with_origin(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata with the word that the scalings of the configuration beside the file were assumed."""
    return {"format": "pt", **metadata, ORIGIN_KEY: stored_origin(metadata) or "assumed"}
