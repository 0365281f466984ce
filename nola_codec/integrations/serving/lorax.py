"""Adapters for LoRAX, which loads a directory of its own machine for a request that names one."""

from __future__ import annotations

from nola_codec.errors import NolaError
from nola_codec.integrations.serving.adapter_cache import AdapterCache


def request_parameters(cache: AdapterCache, name: str, base_model: str | None = None) -> dict[str, str]:
    """Return the ``parameters`` of a request to LoRAX that use an adapter.

    LoRAX stacks the factors of all layers and reads ``r`` and ``lora_alpha`` alone, so the cache must have the layout
    ``uniform``. It runs on the machine of the server, or on one that shares the disk.

    Args:
        cache: The adapters.
        name: The adapter's name.
        base_model: The model that is served; None skips the check of the base.

    Returns:
        ``adapter_id`` and ``adapter_source``.

    Raises:
        NolaError: ``option``: the cache has another layout; and as `AdapterCache.resolve`.
    """
    if cache.layout != "uniform":
        raise NolaError("LoRAX needs a cache with layout='uniform'", code="option")
    return {"adapter_id": str(cache.resolve(name, base_model).path), "adapter_source": "local"}
