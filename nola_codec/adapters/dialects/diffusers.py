"""The two dialects of Diffusers; `diffusers_keys` lists the spellings.

present  Some keys end in ``.lora_A.weight``; others may end in ``.lora.down.weight``. ComfyUI (keys begin with
         ``diffusion_model.``) and BFL's Flux files have such keys too.
old      All keys end in ``.down.weight`` and ``.up.weight``: those of before version 0.22, of 0.22 to 0.24, of
         XLabs, and of adapters of attention layers that Diffusers still writes so.

The scaling comes from an ``.alpha``, the metadata, a configuration beside the file, or is 1, since diffusers takes
alpha = r.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nola_codec.adapters.dialects.adapter_metadata import METADATA_KEY
from nola_codec.adapters.dialects.alphas import SUFFIX as ALPHA
from nola_codec.adapters.dialects.alphas import fit_alphas, with_alphas
from nola_codec.adapters.dialects.comfyui_keys import NORM, replaced_tensors
from nola_codec.adapters.dialects.diffusers_keys import BOTH, DOWN_UP, LORA_A_B, alpha_module, path_in_file
from nola_codec.adapters.dialects.module_rules import fold_scaling, is_power_of_two, require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.paths import COMPONENTS, component_of, old_diffusers_name, old_diffusers_path
from nola_codec.adapters.dialects.peft_ranks import fit_ranks
from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor

# The first part of the paths of CLIP in some versions of Transformers; in others, it is missing. So the configuration
# has the paths without it, which PEFT finds in all versions, since it compares the ends of paths.
_CLIP = "text_model."
# Diffusers looks for these tensors if there are no metadata, or if the metadata have the option.
_BESIDE_FACTORS = {"lora_bias": ".lora_B.bias", "use_dora": ".lora_magnitude_vector"}


class Diffusers(PairDialect):
    """The present dialect. Its configuration is JSON in the metadata: ``{"unet.r": 8, "unet.lora_alpha": 16, ...}``."""

    is_conversion_target = True
    has_components = True
    is_for_images = True
    layout = "diffusers"
    spells_lora_biases = True
    carries_weights = True

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is a factor's, and neither the keys nor the configuration are PEFT's."""
        if source.config is not None and "peft_type" in source.config:
            return False
        factors = [key for key in source.file.tensors if LORA_A_B.split(key) is not None]
        return bool(factors) and not any(key.startswith("base_model.") for key in factors)

    def alpha_module(self, name: str) -> str:
        """Return the path of a module, since its alpha is called ``<path>.alpha``."""
        return alpha_module(name)

    def path_of(self, name: str) -> str:
        """Return the path of a module in either spelling; errors as in `Dialect`."""
        return path_in_file(name)

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scalings in the metadata; as alphas if a name does not begin with a component.

        Diffusers reads its metadata by component. The files of other models (ComfyUI, BFL) have alphas.
        """
        if all(component_of(module.name) for module in adapter.modules):
            return _with_metadata(self, adapter)
        return with_alphas(adapter, stem_of=self.alpha_module)

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules; its alphas or its metadata state their scalings.

        Arguments and errors are as in `Dialect`.
        """
        return _restated(self, adapter, modules)

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors that replace tensors of the model, or add to its biases.

        Raises:
            AdapterError: ``merge-reshape``, and those of `Dialect.model_tensors`.
        """
        return replaced_tensors(super().model_tensors(adapter))

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter, whose scalings are in lora_B if that is exact; arguments and errors as in `Dialect`.

        It is not if lora_B has a bias, which the scaling multiplies too. Other scalings are in the metadata, which
        diffusers reads since version 0.34, and only in some of its loaders.
        """
        require_layouts(modules, self.name, "linear", "conv")
        lone = next((m.name for m in modules if not component_of(m.name)), None)
        if lone is not None:
            message = (
                f"diffusers loads LoRA into the components of a pipeline ({', '.join(COMPONENTS)}), and this module is "
                "in none of them; --format peft writes an adapter of one model, such as a language model"
            )
            raise AdapterError(message, code="not-expressible", where=lone)
        is_exact = all(
            m.scaling == 1.0 or (is_power_of_two(m.scaling) and f"{m.name}.lora_B.bias" not in raw) for m in modules
        )
        made = [fold_scaling(m, self.name) for m in modules] if is_exact else modules
        adapter = Adapter(self.name, sort_modules(made), dict(raw), None, {"format": "pt"})
        return adapter if is_exact else _with_metadata(self, adapter)


class OldDiffusers(PairDialect):
    """The dialect with the keys ``.down.weight`` and ``.up.weight`` alone. A conversion writes version 0.21's keys."""

    is_conversion_target = True
    has_components = True
    is_for_images = True
    layout = "diffusers"

    def alpha_module(self, name: str) -> str:
        """Return the path for ``<path>.lora``, else the name."""
        return alpha_module(name)

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scalings as alphas."""
        return with_alphas(adapter, stem_of=self.alpha_module)

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules, with scalings as in `Diffusers`; arguments and errors as there."""
        return _restated(self, adapter, modules)

    def path_of(self, name: str) -> str:
        """Return the path of a processor's projection; errors as in `Dialect`."""
        return old_diffusers_path(name)

    def is_magnitude(self, key: str) -> bool:
        """Return True if a carried tensor is a magnitude of DoRA."""
        return ".lora_magnitude_vector" in key

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with the scalings multiplied into lora_B; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear")
        named = [fold_scaling(replace(m, name=old_diffusers_name(m.name)), self.name) for m in modules]
        return Adapter(self.name, sort_modules(named), {}, None, {"format": "pt"})


def _restated(dialect: PairDialect, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
    """Return an adapter with other modules, whose scalings are stated where the adapter states its own.

    If a file has alphas, they alone state the scalings in the result, since metadata with other ranks would contradict.
    """
    has_alphas = "alpha" in (adapter.config or {}) or any(key.endswith(ALPHA) for key in adapter.raw)
    if has_alphas or (METADATA_KEY not in adapter.metadata and all(m.scaling == 1.0 for m in modules)):
        metadata = {key: value for key, value in adapter.metadata.items() if key != METADATA_KEY}
        return fit_alphas(replace(adapter, metadata=metadata), modules, stem_of=dialect.alpha_module)
    return _with_metadata(dialect, replace(adapter, modules=sort_modules(modules)))


def _with_metadata(dialect: PairDialect, adapter: Adapter) -> Adapter:
    """Return the adapter with metadata that state its ranks and scalings: ``unet.r``, ``unet.lora_alpha``, patterns.

    Other entries of the metadata stay. Zero components are added where no alpha is exact.
    """
    flat: dict[str, Any] = json.loads(adapter.metadata.get(METADATA_KEY, "{}"))
    stated = {key.rpartition(".")[0] for key in flat}
    by_component: dict[str, list[LoraModule]] = {}
    for module in adapter.modules:
        path = dialect.path_of(module.name)
        first = path.partition(".")[0]
        component = first if first in stated else "" if "" in stated else component_of(path)
        by_component.setdefault(component, []).append(module)
    modules = []
    for component, own in sorted(by_component.items()):
        start = f"{component}." if component else ""
        names = {m.name: dialect.path_of(m.name).removeprefix(start) for m in own}
        paths = {name: path.removeprefix(_CLIP) for name, path in names.items()}
        old = {key.rpartition(".")[2]: value for key, value in flat.items() if key.rpartition(".")[0] == component}
        config, fitted = fit_ranks(old, own, paths.__getitem__)
        if paths != names:
            for pattern in ("rank_pattern", "alpha_pattern"):
                config[pattern] = {_with_optional_clip(key): value for key, value in config.get(pattern, {}).items()}
        config["target_modules"] = sorted(paths.values())
        for option, ending in _BESIDE_FACTORS.items():
            if any(key.startswith(tuple(m.name + ending for m in own)) for key in adapter.raw):
                config[option] = True
        flat |= {start + key: value for key, value in config.items()}
        modules += fitted
    metadata = {**adapter.metadata, METADATA_KEY: json.dumps(flat, sort_keys=True)}
    return replace(adapter, modules=sort_modules(modules), metadata=metadata)


def _with_optional_clip(pattern: str) -> str:
    return pattern.replace("^", f"^(?:{re.escape(_CLIP)})?", 1)


DIFFUSERS = Diffusers(
    "diffusers",
    "diffusers",
    BOTH,
    carried=re.compile(
        r"(?P<module>.+)\.(?:lora_B\.bias|lora_magnitude_vector(?:\.weight)?|dora_scale|reshape_weight)|"
        rf".+\.set_weight|{NORM}"
    ),
    file_name="pytorch_lora_weights.safetensors",
    has_alpha=True,
    has_changes=True,
)
DIFFUSERS_OLD = OldDiffusers(
    "diffusers-old",
    "diffusers with down and up",
    DOWN_UP,
    carried=re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?"),
    file_name="pytorch_lora_weights.safetensors",
    has_alpha=True,
)
