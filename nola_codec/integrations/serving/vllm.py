"""The plugin of vLLM: a request for an unknown model name loads the adapter of that name from a `.nola` file.

vLLM calls `register` in each of its processes, by the entry point ``nola_codec`` of the group ``vllm.general_plugins``.
Without NOLA_CODEC_VLLM_SOURCES it does nothing. The settings are environment variables, since vLLM hands no others to
its processes:

    NOLA_CODEC_VLLM_SOURCES        directories, URLs and hf://... to look in, separated by commas
    NOLA_CODEC_VLLM_MAX_LORA_RANK  the largest rank that is handed to vLLM, which checks its own --max-lora-rank too
    NOLA_CODEC_VLLM_BASE_NAMES     further names of the base model, separated by commas
    NOLA_CODEC_VLLM_BASE_CHECK     strict (the default) or warn
    NOLA_CODEC_VLLM_REFERENCES     files and folders with earlier versions that files need, separated by commas
    NOLA_CODEC_VLLM_CACHE_SIZE     the size that the cache is brought down to, such as 20GB; no limit by default
    NOLA_CODEC_CACHE               the directory of the cache

vLLM takes None from a resolver for "no such adapter", and answers 404. So an adapter that is refused gives None too,
and a line in the log says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nola_codec.errors import NolaError, mismatch

if TYPE_CHECKING:
    from nola_codec.integrations.serving.adapter_cache import AdapterCache
    from nola_codec.integrations.serving.base_checks import BaseCheck
    from nola_codec.integrations.serving.layouts import Layout

NAME = "nola-codec"
_PREFIX = "NOLA_CODEC_VLLM_"
_SETTINGS = ("SOURCES", "MAX_LORA_RANK", "BASE_NAMES", "BASE_CHECK", "REFERENCES", "CACHE_SIZE")


def register() -> None:
    """Give vLLM a resolver with the settings of the environment. A second call changes nothing.

    Raises:
        NolaError: ``option``, ``adapter-source``: a setting cannot be, so that vLLM does not start with it.
    """
    if not os.environ.get(_PREFIX + "SOURCES"):
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    from nola_codec.integrations.serving.vllm_resolver import NolaResolver

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        cache = cache_of_environment(os.environ, layout_of_vllm())
        LoRAResolverRegistry.register_resolver(NAME, NolaResolver(cache))


def cache_of_environment(environment: Mapping[str, str], layout: Layout) -> AdapterCache:
    """Return the cache that the variables of the environment describe.

    Args:
        environment: The variables.
        layout: The layout that this version of vLLM reads.

    Raises:
        NolaError: ``option``: there is no such variable, or its value cannot be; ``adapter-source``.
    """
    from nola_codec.disk_cache import DiskCache
    from nola_codec.integrations.serving.adapter_cache import AdapterCache
    from nola_codec.sizes import parse_size

    unknown = [key for key in environment if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _SETTINGS]
    if unknown:
        known = ", ".join(_PREFIX + name for name in _SETTINGS)
        raise NolaError(mismatch("environment variable", f"one of {known}", unknown[0]), code="option")

    def value(setting: str) -> str:
        return environment.get(_PREFIX + setting, "").strip()

    rank, size = value("MAX_LORA_RANK"), value("CACHE_SIZE")
    check: BaseCheck = "warn" if value("BASE_CHECK") == "warn" else "strict"
    if rank and not (rank.isascii() and rank.isdigit() and int(rank) > 0):
        raise NolaError(mismatch(_PREFIX + "MAX_LORA_RANK", "a positive integer", repr(rank)), code="option")
    if value("BASE_CHECK") not in ("", "strict", "warn"):
        raise NolaError(mismatch(_PREFIX + "BASE_CHECK", "strict or warn", repr(value("BASE_CHECK"))), code="option")
    try:
        max_bytes = parse_size(size) if size else None
    except NolaError as error:
        raise error.within(_PREFIX + "CACHE_SIZE") from error
    return AdapterCache(
        _split(value("SOURCES")),
        cache=DiskCache(max_bytes=max_bytes),
        layout=layout,
        max_rank=int(rank) if rank else None,
        base_check=check,
        base_names=_split(value("BASE_NAMES")),
        references=_split(value("REFERENCES")) or None,
    )


def layout_of_vllm() -> Layout:
    """Return the layout that this version of vLLM reads: older ones take one rank and one scaling for all modules."""
    try:
        from vllm.lora.peft_helper import PEFTHelper
    except ImportError:
        return "uniform"
    return "trimmed" if hasattr(PEFTHelper, "get_rank_and_scaling") else "uniform"


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
