"""The dialect of loralib, Microsoft's first LoRA library: ``<path>.lora_A`` (r, in) and ``<path>.lora_B`` (out, r).

A file has no alpha.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.adapters.dialects.module_rules import fold_scaling, require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor


class Loralib(PairDialect):
    """loralib's dialect."""

    is_conversion_target = True
    carries_weights = True

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
)
