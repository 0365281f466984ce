"""The dialect of mistral-finetune: ``layers.0.attention.wq.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r).

The scaling is ``lora.scaling`` of the ``params.json`` beside the file. It is not alpha / r. mistral-inference, which
loads such files, reads no ``params.json`` of an adapter, and takes 2 unless it is given another number
(`LoRALoaderMixin`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nola_codec.adapters.dialects.module_rules import of_one_scale, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.transformers_names import TransformersNames
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.scale_records import stored_origin
from nola_codec.adapters.scales import DefaultScale, FoundScales, number_of
from nola_codec.adapters.sources import AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule, Origin

PARAMS_NAME = "params.json"
_KEY = "params"  # of `Adapter.config`
_LAYER = re.compile(r"layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.(?:experts\.\d+\.)?w[123])\.lora_[AB]\.weight")

_OF_MISTRAL, _OF_TRANSFORMERS = "layers.{}.", "model.layers.{}."
_NAMES = TransformersNames(
    "mistral-finetune",
    {
        **{f"{_OF_MISTRAL}attention.w{name}": f"{_OF_TRANSFORMERS}self_attn.{name}_proj" for name in "qkvo"},
        f"{_OF_MISTRAL}feed_forward.w1": f"{_OF_TRANSFORMERS}mlp.gate_proj",
        f"{_OF_MISTRAL}feed_forward.w2": f"{_OF_TRANSFORMERS}mlp.down_proj",
        f"{_OF_MISTRAL}feed_forward.w3": f"{_OF_TRANSFORMERS}mlp.up_proj",
        "output": "lm_head",
    },
    moved=frozenset({"mistral", "llama"}),
)


class Mistral(PairDialect):
    """The dialect of mistral-finetune."""

    carries_weights = True

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some factor is that of a layer of Mistral's own code."""
        return any(_LAYER.match(key) for key in source.file.tensors)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """Return ``params.json`` under the key ``params``, if it is that of a LoRA."""
        params = source.read_beside(PARAMS_NAME)
        return {_KEY: params} if params is not None and isinstance(params.get("lora"), Mapping) else None

    def find_scales(self, source: AdapterSource, ranks: Mapping[str, int], *, has_alphas: bool) -> FoundScales:
        """Return ``lora.scaling`` for each module. Raises AdapterError ``bad-config``, ``rank-mismatch``."""
        config = self.config(source)
        if config is None or "scaling" not in config[_KEY]["lora"]:
            return super().find_scales(source, ranks, has_alphas=has_alphas)
        lora, where = config[_KEY]["lora"], f"{source.where}: {PARAMS_NAME}"
        scaling = None if isinstance(lora["scaling"], str) else number_of(lora["scaling"])
        if scaling is None:
            message = mismatch("lora.scaling", "a number other than 0", lora["scaling"])
            raise AdapterError(message, code="bad-config", where=where)
        for name, rank in ranks.items():
            if lora.get("rank", rank) != rank:
                message = mismatch("rank", f"{lora['rank']} by {PARAMS_NAME}", rank)
                raise AdapterError(message, code="rank-mismatch", where=f"{where}: {name}")
        return FoundScales(dict.fromkeys(ranks, scaling), "config")

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scaling in ``params.json``."""
        if _KEY in (adapter.config or {}):
            return adapter
        ranks = {module.rank for module in adapter.modules}
        lora = {"enable": True, "scaling": adapter.modules[0].scaling}
        lora |= {"rank": ranks.pop()} if len(ranks) == 1 else {}
        return replace(adapter, config={**(adapter.config or {}), _KEY: {"lora": lora}})

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules of one rank and one scaling; arguments and errors as in `Dialect`."""
        fitted = of_one_scale(with_largest_rank(modules), self.title)
        params = dict((adapter.config or {}).get(_KEY) or {})
        lora = {"enable": True, **dict(params.get("lora") or {}), "rank": fitted[0].rank, "scaling": fitted[0].scaling}
        config = {**(adapter.config or {}), _KEY: {**params, "lora": lora}}
        return replace(adapter, modules=sort_modules(fitted), config=config)

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules under the names of Transformers; arguments and errors as in `Dialect`."""
        return _NAMES.convert(adapter.modules, base)

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return ``config`` if there was a ``params.json``; arguments as in `Dialect`."""
        return stored_origin(config) or ("config" if _KEY in (config or {}) else super().scale_origin(config, metadata))

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``lora.safetensors`` and ``params.json`` to a directory, or one file; arguments as in `Dialect`.

        One file has the scaling in its metadata, for this library; mistral-inference must be told it.
        """
        params = (adapter.config or {}).get(_KEY)
        metadata = self.lone_metadata(adapter, Path(out))
        config = params if isinstance(params, Mapping) else {}
        made = self.tensors(adapter, dtype)
        file = AdapterFile(made, metadata, self.file_name, config=config, config_name=PARAMS_NAME)
        return write_adapter_file(out, file, overwrite=overwrite)


MISTRAL = Mistral(
    "mistral",
    "mistral-finetune",
    PairKeys.of_suffixes(".lora_A.weight", ".lora_B.weight", stem=r"(?!base_model\.).+"),
    carried=re.compile(r"(?!.*lora_).+\.weight"),
    default_scale=DefaultScale(
        2.0, f"since mistral-inference takes it if it is given none and there is no {PARAMS_NAME}"
    ),
)
