"""The downloader of Ray Serve LLM, which finds `.nola` files under the path of a deployment's adapters.

Ray Serve LLM asks its downloader for an adapter ``base:id``, which lies in the ``dynamic_lora_loading_path`` of the
deployment's `LoraConfig`. This one looks for ``<path>/<id>.nola`` first. If there is none, the downloader of Ray goes
on with the directory ``<path>/<id>``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.llm._internal.common.utils.lora_utils import get_lora_id
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader

from nola_codec.errors import AdapterError
from nola_codec.integrations.serving.adapter_cache import AdapterCache
from nola_codec.integrations.serving.vllm import layout_of_vllm


class NolaLoraLoader(LoraModelLoader):
    """A downloader for ``build_llm_deployment(config, bind_kwargs={"model_downloader": NolaLoraLoader})``.

    Every replica of a machine shares the decoded adapters.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what Ray gives its downloader."""
        super().__init__(*arguments, **options)
        self._caches: dict[str, AdapterCache] = {}

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> DiskMultiplexConfig:
        """Return what Ray needs to load an adapter.

        Args:
            lora_model_id: The name in the client's request: ``base:id``.
            llm_config: The configuration of the deployment.

        Raises:
            NolaError: The file is there, and refused.
            Exception: What the downloader of Ray raises if there is no `.nola` file.
        """
        path = llm_config.lora_config.dynamic_lora_loading_path
        source = llm_config.model_loading_config.model_source
        base_model = source if isinstance(source, str) else llm_config.model_loading_config.model_id
        try:
            served = await asyncio.to_thread(self._open_cache(path).resolve, get_lora_id(lora_model_id), base_model)
        except AdapterError as error:
            if error.code != "not-found":
                raise
            return await super().load_model_from_config(lora_model_id, llm_config)
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(served.path),
            lora_assigned_int_id=served.int_id,
        )

    def _open_cache(self, path: str) -> AdapterCache:
        if path not in self._caches:
            self._caches[path] = AdapterCache([path], layout=layout_of_vllm())
        return self._caches[path]
