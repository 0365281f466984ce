"""Bring `.nola` files to servers of language models: decode each once, into a directory that every process shares.

    cache = AdapterCache(["/srv/adapters", "https://example.org/adapters", "hf://some-owner"])
    served = cache.resolve("task", base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    served.path, served.int_id       # a directory of PEFT, and a number that names its content

Its files:

    adapter_cache.py    `AdapterCache`: from a name to a decoded directory in the disk cache
    names.py            the names that a request may have
    sources.py          where names are looked for
    base_checks.py      whether an adapter is of the model that is served
    layouts.py          the adapter as a server reads it: PEFT's dialect, and the ranks that a server can read
    numbers.py          the integers that servers know adapters by
    vllm.py             the plugin of vLLM, and its settings
    vllm_resolver.py    what vLLM asks for adapters; it imports vLLM
    sglang.py           an adapter as a request of SGLang, from memory
    ray_llm.py          the downloader of Ray Serve LLM
    lorax.py            requests to LoRAX
"""

from __future__ import annotations

from nola_codec.integrations.serving.adapter_cache import AdapterCache, ServedAdapter

__all__ = ["AdapterCache", "ServedAdapter"]
