"""The two dialects of Diffusers: the present one, and the one before version 0.22.

present  <component>.<path>.lora_A.weight, .lora_B.weight; the scaling comes from the metadata `lora_adapter_metadata`,
         from an ``.alpha``, or is 1. ComfyUI (keys begin with ``diffusion_model.``) and BFL's Flux files have such keys
         too.
old      <path>.processor.to_q_lora.down.weight, .up.weight; <path>.lora_linear_layer.down.weight; XLabs's qkv_lora1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.module_rules import fold_scaling, require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.adapters.dialects.paths import component_of, old_diffusers_name, old_diffusers_path
from nola_codec.adapters.dialects.peft_config import PeftSettings, parse_config, with_ranks
from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import MAX_JSON_BYTES

METADATA_KEY = "lora_adapter_metadata"


class Diffusers(PairDialect):
    """The present dialect. Its configuration is JSON in the metadata: ``{"unet.r": 8, "unet.lora_alpha": 16, ...}``."""

    is_conversion_target = True
    spells_lora_biases = True
    carries_weights = True

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is a factor's, and neither the keys nor the configuration are PEFT's."""
        if source.config is not None and "peft_type" in source.config:
            return False
        factors = [key for key in source.file.tensors if self.keys.split(key) is not None]
        return bool(factors) and not any(key.startswith("base_model.") for key in factors)

    def scalings(self, source: AdapterSource, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return the scaling of each module from the metadata, or 1.

        Raises:
            AdapterError: ``rank-mismatch``, and those of `parse_metadata`.
        """
        text = source.file.metadata.get(METADATA_KEY)
        if text is None:
            return dict.fromkeys(ranks, 1.0)
        settings = parse_metadata(text, f"{source.where}: {METADATA_KEY}")
        return {name: _scaling(name, rank, settings, source.where) for name, rank in ranks.items()}

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with its scalings in the metadata; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear", "conv")
        metadata = {"format": "pt"}
        if any(m.scaling != 1.0 for m in modules):
            metadata[METADATA_KEY] = json.dumps(_flat_config(modules), sort_keys=True)
        return Adapter(self.name, sort_modules(modules), dict(raw), None, metadata)


class OldDiffusers(PairDialect):
    """The dialect before version 0.22, which can express only attention projections."""

    is_conversion_target = True

    def path_of(self, name: str) -> str:
        """Return the path of a processor's projection; errors as in `Dialect`."""
        return old_diffusers_path(name)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with the scalings multiplied into lora_B; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear")
        named = [fold_scaling(replace(m, name=old_diffusers_name(m.name)), self.name) for m in modules]
        return Adapter(self.name, sort_modules(named), {}, None, {"format": "pt"})


def parse_metadata(text: str, where: str) -> dict[str, PeftSettings]:
    """Return the settings of each component, by its name. The empty string stands for a file without components.

    Raises:
        AdapterError: ``bad-config``, and those of `parse_config`.
    """
    try:
        value: Any = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"not valid JSON: {e}", code="bad-config", where=where) from e
    if not isinstance(value, dict):
        raise AdapterError(mismatch("value", "a JSON object", type(value).__name__), code="bad-config", where=where)
    by_component: dict[str, dict[str, Any]] = {}
    for key, item in value.items():
        component, _, option = key.rpartition(".")
        by_component.setdefault(component, {})[option] = item
    return {
        component: parse_config({"peft_type": "LORA", **config}, f"{where}: {component}" if component else where)
        for component, config in by_component.items()
    }


def _scaling(name: str, rank: int, settings: Mapping[str, PeftSettings], where: str) -> float:
    component, _, path = name.partition(".")
    found, inner = (settings[component], path) if component in settings else (settings.get(""), name)
    if found is None:
        return 1.0
    if found.rank_of(inner) != rank:
        message = mismatch("rank", f"{found.rank_of(inner)} by {METADATA_KEY}", rank)
        raise AdapterError(message, code="rank-mismatch", where=f"{where}: {name}")
    return found.scaling_of(inner)


def _flat_config(modules: Sequence[LoraModule]) -> dict[str, Any]:
    """Return the flat configuration that diffusers reads: ``unet.r``, ``unet.lora_alpha``, patterns."""
    flat: dict[str, Any] = {}
    for component in sorted({component_of(m.name) for m in modules}):
        start = len(component) + 1 if component else 0
        own = [m for m in modules if component_of(m.name) == component]
        config = with_ranks(
            {"r": 8, "lora_alpha": 8},
            {m.name[start:]: m.rank for m in own},
            {m.name[start:]: m.scaling for m in own},
        )
        config["target_modules"] = sorted(m.name[start:] for m in own)
        flat |= {f"{component}.{key}" if component else key: value for key, value in config.items()}
    return flat


DIFFUSERS = Diffusers(
    "diffusers",
    "diffusers",
    PairKeys.of_suffixes(".lora_A.weight", ".lora_B.weight", stem=r"(?!base_model\.).+"),
    carried=re.compile(r"(?P<module>.+)\.(?:lora_B\.bias|lora_magnitude_vector(?:\.weight)?)"),
    file_name="pytorch_lora_weights.safetensors",
    has_alpha=True,
)
DIFFUSERS_OLD = OldDiffusers(
    "diffusers-old",
    "diffusers before 0.22",
    PairKeys.of_suffixes(".down.weight", ".up.weight", stem=r".+(?:_lora\d?|\.lora_linear_layer)"),
    file_name="pytorch_lora_weights.safetensors",
    has_alpha=True,
)
