"""The dialect of loralib, Microsoft's first LoRA library: ``<path>.lora_A`` (r, in) and ``<path>.lora_B`` (out, r).

A file has no alpha: the program has it that trained the adapter. The layers of fused projections (`MergedLinear`) are
read as plain pairs, if a configuration with `enable_lora` is given or lies beside the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.merged_linear import NOTE, enabled_blocks, is_merged_linear, plain_factor
from nola_codec.adapters.dialects.module_rules import fold_scaling, require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.scales import DefaultScale
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_store import MemoryStore


class Loralib(PairDialect):
    """loralib's dialect."""

    is_conversion_target = True
    carries_weights = True
    rank_note = (
        "a file of loralib states no rank and no alpha: load it with layers of the new r, and with lora_alpha = r"
    )

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules of one rank, since layers of loralib are mostly built with one.

        Arguments and errors are as in `Dialect`.
        """
        fitted = with_largest_rank(modules)
        if self.scale_origin(adapter.config, adapter.metadata) in ("config", "metadata", "option"):
            return self.keep_scale(replace(adapter, modules=sort_modules(fitted)))
        named = [fold_scaling(m, self.name) for m in fitted]
        return replace(adapter, modules=sort_modules(named))

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: Those of `PairDialect.read_source`, `enabled_blocks` and `plain_factor`.
        """
        shapes = {key: info.shape for key, info in source.file.tensors.items()}
        pairs = [key.removesuffix("A") for key in shapes if key.endswith(".lora_A") and f"{key[:-1]}B" in shapes]
        config = source.config if source.config is not None else source.beside
        enabled = enabled_blocks(config, f"{source.where}: {CONFIG_NAME}")
        merged = [stem for stem in pairs if is_merged_linear(shapes[f"{stem}A"], shapes[f"{stem}B"], enabled)]
        if not merged:
            return super().read_source(source, carry_unknown=carry_unknown)
        tensors = {key: source.file.read(key) for key in shapes}
        for stem in merged:
            key = f"{stem}B"
            tensors[key] = plain_factor(tensors[key], shapes[f"{stem}A"], enabled, f"{source.where}: {key}")
        file = MemoryStore(tensors, name=source.file.name, metadata=source.file.metadata)
        adapter = super().read_source(replace(source, file=file), carry_unknown=carry_unknown)
        return replace(adapter, notes=(NOTE, *adapter.notes))

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with the scalings multiplied into lora_B; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear")
        return Adapter(self.name, sort_modules([fold_scaling(m, self.name) for m in modules]))


LORALIB = Loralib(
    "loralib",
    "loralib",
    PairKeys.of_suffixes(".lora_A", ".lora_B"),
    # loralib also saves other trained tensors, such as heads, under their own names.
    carried=re.compile(r"(?!.*lora_).+\.(?:weight|bias)"),
    default_scale=DefaultScale(1.0, "as for alpha = r, since loralib keeps alpha in the program that trained it"),
)
