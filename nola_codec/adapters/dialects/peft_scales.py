"""Find the scalings of a PEFT adapter without its configuration, and make a configuration that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.adapter_metadata import METADATA_KEY
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.adapters.scale_records import ORIGIN_KEY, stored_origin
from nola_codec.adapters.scales import ALPHA_NAMES, DefaultScale, find_scales
from nola_codec.adapters.sources import AdapterSource
from nola_codec.model.adapter import Adapter, LoraModule, Origin

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
        return replace(adapter, scale_origin="config")
    ranks = {m.name: m.rank for m in adapter.modules}
    found = find_scales(source, ranks, _DEFAULT)
    adapter = replace(adapter, scale_origin=found.origin, notes=(*adapter.notes, *found.notes))
    if found.origin not in ("metadata", "option"):
        return adapter
    modules = tuple(replace(m, scaling=found.scalings[m.name]) for m in adapter.modules)
    saved = sorted({key.removeprefix(PREFIX).rpartition(".")[0] for key in adapter.raw if ".lora_" not in key})
    adapter = configured(replace(adapter, metadata={**adapter.metadata, ORIGIN_KEY: found.origin}), modules)
    if adapter.config is None or not saved:
        return adapter
    return replace(adapter, config={**adapter.config, "modules_to_save": saved})


def peft_origin(config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
    """Return the place that the scalings of a PEFT adapter came from, as `Dialect.scale_origin` does."""
    return stored_origin(metadata) or ("assumed" if config is None else "config")


def without_scale(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata without entries about the scalings, for a file whose scalings are in its factors."""
    told = {METADATA_KEY, ORIGIN_KEY, *ALPHA_NAMES}
    return {key: value for key, value in metadata.items() if key not in told}
