"""The dialect of MLX: ``<path>.lora_a`` (in, r) and ``<path>.lora_b`` (r, out), in safetensors or `.npz`.

Embeddings have the same keys: ``lora_a`` (vocab, r) and ``lora_b`` (r, dim), whose product is the delta of the
(vocab, dim) weight. The name of the module tells them apart. The scaling is ``lora_parameters.scale`` of the
configuration, and not alpha / r (`mlx_lm/tuner/lora.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget
from nola_codec.adapters.dialects.embedding_names import layout_of, require_clear_layout
from nola_codec.adapters.dialects.mlx_config import (
    DEFAULT_SCALE,
    complete_config,
    config_notes,
    is_mlx_config,
    make_config,
    restate,
    scale_of,
    with_keys_of,
)
from nola_codec.adapters.dialects.mlx_experts import expert_tensors, experts_target, read_experts
from nola_codec.adapters.dialects.mlx_names import from_mlx, to_mlx
from nola_codec.adapters.dialects.module_rules import of_one_scale, require_layouts, sort_modules
from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys, join_tensors, read_pair
from nola_codec.adapters.dialects.peft_experts import expert_module, expert_number, is_expert
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.scale_records import ORIGIN_KEY, stored_origin
from nola_codec.adapters.scales import DefaultScale, FoundScales, find_scales
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule, Origin
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.tensor_files import is_tensor_file
from nola_codec.stores.tensor_store import TensorStore

_FUSED = re.compile(r"(?P<module>.+)\.lora_[ab]\.\d+")


class Mlx(PairDialect):
    """MLX's dialect."""

    is_conversion_target = True
    base_model_key = "model"

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is a factor's, except in GGUF, whose keys are spelled in the same way."""
        return source.file.file_type != "gguf" and super().detect(source)

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source.

        Raises:
            AdapterError: ``fused-linear`` for the factors of a fused layer, ``foreign-dialect`` for the configuration
                of PEFT, and those of `PairDialect`.
        """
        fused = next((key for key in source.file.tensors if _FUSED.fullmatch(key)), None)
        if fused is not None and not carry_unknown:
            message = (
                "these are factors of a fused layer of MLX (FusedLoRALinear), a pair for each part of the weight, and "
                "cannot be coded; fuse the adapter with mlx_lm.fuse, and encode the result with encode-delta"
            )
            raise AdapterError(message, code="fused-linear", where=f"{source.where}: {fused}")
        return super().read_source(source, carry_unknown=carry_unknown)

    def read_module(self, store: TensorStore, name: str, scaling: float) -> LoraModule:
        """Read one pair; its name tells if it is that of an embedding."""
        keys = self.keys.of(name)
        return read_pair(store, name, keys, scaling=scaling, layout=layout_of(name), transposed=self.keys.transposed)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """Return the configuration if it is MLX's, also from beside a lone file.

        Raises:
            AdapterError: ``foreign-dialect`` for a configuration of PEFT, unless the user gave the scale.
        """
        config = source.config if source.config is not None else source.beside
        if config is not None and "peft_type" in config and source.scale is None:
            message = f"{CONFIG_NAME} is PEFT's, and the keys look like MLX; set the scaling with --scale"
            raise AdapterError(message, code="foreign-dialect", where=source.where)
        return dict(config) if config is not None and is_mlx_config(config) else None

    def find_scales(self, source: AdapterSource, ranks: Mapping[str, int], *, has_alphas: bool) -> FoundScales:
        """Return the scale of the configuration for each module, or else the default of MLX's LoRA layers.

        Raises:
            AdapterError: ``not-lora``, ``bad-config``, and those of `find_scales`.
        """
        config = self.config(source)
        scale = None if config is None else scale_of(config, f"{source.where}: {CONFIG_NAME}")
        if config is not None and scale is not None:
            return FoundScales(dict.fromkeys(ranks, scale), "config", config_notes(config))
        return find_scales(replace(source, config=None, beside=None), ranks, self.default_scale)

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scaling in the configuration."""
        return replace(adapter, config=complete_config(_own_config(adapter), adapter.modules))

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return ``config`` if the configuration has a scale; arguments as in `Dialect`."""
        parameters = (config or {}).get("lora_parameters", config)
        has_scale = isinstance(parameters, Mapping) and "scale" in parameters
        return stored_origin(config) or ("config" if has_scale else super().scale_origin(config, metadata))

    def read_modules(self, store: TensorStore, name: str, scaling: float) -> list[LoraModule]:
        """Read one module, or one for each expert if the factors have a dimension for experts."""
        keys = self.keys.of(name)
        if len(store.tensors[keys[0]].shape) == 3:
            return read_experts(store, name, keys, scaling)
        return super().read_modules(store, name, scaling)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments and errors as in `Dialect`."""
        experts = [module for module in adapter.modules if is_expert(module.name)]
        others = tuple(module for module in adapter.modules if not is_expert(module.name))
        keys = {name: self.keys.of(name) for name in map(expert_module, (m.name for m in experts))}
        plain = super().tensors(replace(adapter, modules=others), dtype)
        return join_tensors(plain, expert_tensors(experts, keys, dtype))

    def slice_of(self, name: str) -> tuple[str, int]:
        """Return the module that an expert belongs to, and the number of the expert."""
        return expert_module(name), expert_number(name)

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each delta; arguments and errors as in `Dialect`."""
        experts = {name: parts for name, parts in found.items() if is_expert(parts[0].name)}
        others = {name: parts for name, parts in found.items() if name not in experts}
        plain = super().merge_targets(adapter, others, base, where)
        return [*plain, *(experts_target(name, parts) for name, parts in experts.items())]

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``adapters.safetensors`` and the configuration to a directory, or one file by its suffix."""
        path = Path(out)
        config = {} if is_tensor_file(path) else complete_config(_own_config(adapter), adapter.modules)
        metadata = self.lone_metadata(adapter, path)
        file = AdapterFile(self.tensors(adapter, dtype), metadata, self.file_name, config=config)
        return write_adapter_file(path, file, overwrite=overwrite)

    def lost_in_file(self, adapter: Adapter) -> str:
        """Return a sentence about the configuration, which has the scale."""
        scales = ", ".join(str(scale) for scale in sorted({m.scaling for m in adapter.modules}))
        return (
            f"a lone file of MLX does not hold {CONFIG_NAME}, and so not the scale {scales}, without which MLX cannot "
            "load the adapter: give -o a directory to keep it"
        )

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules of one rank and one scale; arguments and errors as in `Dialect`."""
        fitted = of_one_scale(with_largest_rank(modules), self.title)
        config = dict(adapter.config or {})
        if {m.name for m in modules} != {m.name for m in adapter.modules}:
            config = with_keys_of(config, modules)
        return replace(adapter, modules=sort_modules(fitted), config=restate(config, fitted))

    def to_modules(self, adapter: Adapter, base: Mapping[str, Any] | None) -> Sequence[LoraModule]:
        """Return the modules. Raises AdapterError ``not-expressible`` for a name that does not tell the layout."""
        for module in adapter.modules:
            require_clear_layout(module.name, module.layout, self.title)
        return adapter.modules

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with one configuration for all modules; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear", "embedding")
        for module in modules:
            require_clear_layout(module.name, module.layout, self.title)
        named = [replace(m, name=to_mlx(m.name, base)) for m in modules]
        fitted = of_one_scale(with_largest_rank(named), self.title)
        return Adapter(self.name, sort_modules(fitted), {}, make_config(fitted), {"format": "mlx"})

    def path_of(self, name: str) -> str:
        """Return the path in Transformers, which differs for some models."""
        return from_mlx(name)

    def is_magnitude(self, key: str) -> bool:
        """Return True also for ``<module>.m``, as MLX calls a magnitude."""
        return key.endswith(".m") or super().is_magnitude(key)

    def base_model(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> str | None:
        """Return the name of the base model, which MLX's configuration calls ``model``."""
        return super().base_model({"base_model_name_or_path": config.get("model"), **config}, metadata)


def _own_config(adapter: Adapter) -> dict[str, Any]:
    return {key: value for key, value in (adapter.config or {}).items() if key != ORIGIN_KEY}


MLX = Mlx(
    "mlx",
    "MLX",
    PairKeys.of_suffixes(".lora_a", ".lora_b", transposed=(True, True)),
    carried=re.compile(r"(?P<module>.+)\.m"),
    file_name="adapters.safetensors",
    default_scale=DefaultScale(
        DEFAULT_SCALE,
        f"since mlx-lm takes it if it is given none and there is no {CONFIG_NAME} with a scale (code of 2023 took 2)",
    ),
)
