"""The resolver that vLLM asks for an adapter that it does not know."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from nola_codec.errors import NolaError
from nola_codec.integrations.serving.adapter_cache import AdapterCache

_THREADS = 4
_UNREMARKABLE = ("not-found", "adapter-name")  # any client can cause these by a name
_SETTINGS = {
    "base-mismatch": "; see NOLA_CODEC_VLLM_BASE_NAMES and NOLA_CODEC_VLLM_BASE_CHECK",
    "rank-limit": "; see NOLA_CODEC_VLLM_MAX_LORA_RANK",
}
_logger = logging.getLogger("vllm.plugins.nola_codec")  # below vLLM's own logger, so that its format is used


class NolaResolver(LoRAResolver):  # type: ignore[misc] # vLLM need not be installed where types are checked
    """Finds `.nola` files by the names of adapters, and gives vLLM the directories that they were decoded to.

    Attributes:
        cache: The adapters. Its layout must be one that this version of vLLM reads.
    """

    def __init__(self, cache: AdapterCache) -> None:
        self.cache = cache
        # Its own threads: those of asyncio are few, and vLLM needs them while adapters are decoded.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="nola-codec")

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the request that loads an adapter, or None if there is none or it is refused; the log says why.

        Decoding runs on a thread, so that the event loop of the server goes on.

        Args:
            base_model_name: The model that vLLM serves: an identifier or a path.
            lora_name: The name in the client's request.
        """
        loop = asyncio.get_running_loop()
        try:
            served = await loop.run_in_executor(self._threads, self.cache.resolve, lora_name, base_model_name)
        except NolaError as error:
            level = logging.DEBUG if error.code in _UNREMARKABLE else logging.WARNING
            hint = _SETTINGS.get(error.code, "")
            _logger.log(level, "nola-codec does not serve %r: %s%s [%s]", lora_name[:200], error, hint, error.code)
            return None
        for note in served.notes:
            _logger.warning("nola-codec serves %r, and %s", lora_name, note)
        return LoRARequest(
            lora_name=lora_name,
            lora_int_id=served.int_id,
            lora_path=str(served.path),
        )
