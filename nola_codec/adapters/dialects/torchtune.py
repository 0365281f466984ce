"""The dialect of torchtune: ``layers.0.attn.q_proj.lora_a.weight`` (r, in) and ``.lora_b.weight`` (out, r), in ``.pt``.

The names are those of torchtune's models, whose query and key rows are in another order than those of Transformers. A
file has no alpha. torchtune writes PEFT's ``adapter_config.json`` beside it, if it knows the model in Transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from nola_codec.adapters.dialects.module_rules import sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.peft_config import with_ranks
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.scale_records import CONFIG_KEY
from nola_codec.adapters.scales import DefaultScale
from nola_codec.model.adapter import Adapter, LoraModule


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
