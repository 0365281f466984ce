"""The entries of `Adapter.config` that tell where a scaling came from; a `.nola` file keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nola_codec.model.adapter import ORIGINS, Origin

ORIGIN_KEY = "scale_origin"
"""The key of the origin in `Adapter.config`, for dialects whose configuration is not written to a file as it is."""
CONFIG_KEY = "adapter_config"
"""The key of the configuration of another tool, which `write` puts beside the file again."""


def record_origin(
    config: Mapping[str, Any] | None, origin: Origin, beside: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration with the origin of the scalings, and with the configuration beside that has them."""
    kept = {} if beside is None else {CONFIG_KEY: dict(beside)}
    return {**(config or {}), ORIGIN_KEY: origin, **kept}


def stored_origin(config: Mapping[str, Any] | None) -> Origin:
    """Return the origin that a configuration holds, or ``""``. It may be that of a stranger's `.nola` file."""
    found = None if config is None else config.get(ORIGIN_KEY)
    return next((origin for origin in ORIGINS if origin == found), "")


def kept_config(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the configuration of another tool that was beside the file; empty if there was none."""
    found = None if config is None else config.get(CONFIG_KEY)
    return found if isinstance(found, Mapping) else {}
