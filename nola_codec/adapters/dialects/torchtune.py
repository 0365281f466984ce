"""The dialect of torchtune: ``layers.0.attn.q_proj.lora_a.weight`` (r, in) and ``.lora_b.weight`` (out, r), in ``.pt``.

The names are those of torchtune's models, whose query and key rows are in another order than those of Transformers. A
file has no alpha. torchtune writes PEFT's ``adapter_config.json`` beside it, if it knows the model in Transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.module_rules import sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.peft_config import with_ranks
from nola_codec.adapters.dialects.transformers_names import TransformersNames
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.scale_records import CONFIG_KEY
from nola_codec.adapters.scales import DefaultScale
from nola_codec.model.adapter import Adapter, LoraModule

_LAYER, _OF_TRANSFORMERS = "layers.{}.", "model.layers.{}."
_NAMES = TransformersNames(
    "torchtune",
    {
        **{f"{_LAYER}attn.{name}_proj": f"{_OF_TRANSFORMERS}self_attn.{name}_proj" for name in "qkv"},
        f"{_LAYER}attn.output_proj": f"{_OF_TRANSFORMERS}self_attn.o_proj",
        f"{_LAYER}mlp.w1": f"{_OF_TRANSFORMERS}mlp.gate_proj",
        f"{_LAYER}mlp.w2": f"{_OF_TRANSFORMERS}mlp.down_proj",
        f"{_LAYER}mlp.w3": f"{_OF_TRANSFORMERS}mlp.up_proj",
        "output": "lm_head",
    },
    moved=frozenset({"llama", "mistral"}),
    kept=frozenset({"qwen2"}),
)


class Torchtune(PairDialect):
    """torchtune's dialect."""

    carries_weights = True

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scalings in ``adapter_config.json``."""
        ranks = {m.name: m.rank for m in adapter.modules}
        scalings = {m.name: m.scaling for m in adapter.modules}
        config = with_ranks({"peft_type": "LORA"}, ranks, scalings)
        return replace(adapter, config={**(adapter.config or {}), CONFIG_KEY: config})

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules of one rank, as torchtune makes them; arguments as in `Dialect`."""
        fitted = replace(adapter, modules=sort_modules(with_largest_rank(modules)))
        return fitted if all(m.scaling == 1.0 for m in modules) else self.keep_scale(fitted)

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules under the names of Transformers; arguments and errors as in `Dialect`."""
        return _NAMES.convert(adapter.modules, base)

    def is_magnitude(self, key: str) -> bool:
        """Return True for ``<module>.magnitude``, as torchtune calls a magnitude of DoRA."""
        return key.endswith(".magnitude") or super().is_magnitude(key)


TORCHTUNE = Torchtune(
    "torchtune",
    "torchtune",
    PairKeys.of_suffixes(".lora_a.weight", ".lora_b.weight"),
    carried=re.compile(r"(?P<module>.+)\.magnitude"),
    file_name="adapter_0.pt",
    default_scale=DefaultScale(1.0, "as for alpha = r, since torchtune keeps alpha in its recipe"),
)
