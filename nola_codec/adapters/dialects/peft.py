"""PEFT's dialect for LoRA: ``base_model.model.<path>.lora_A.weight`` and similar keys, with `adapter_config.json`.

Shapes: linear ``lora_A`` (r, in), ``lora_B`` (out, r); convolutions (r, in, *kernel) and (out, r, 1, ...); embeddings
``lora_embedding_A`` (r, vocab), ``lora_embedding_B`` (dim, r), whose delta is transposed for a (vocab, dim) weight.
This follows peft 0.21 (`tuners/lora/layer.py`, `utils/save_and_load.py`). `PEFT` is registered as ``peft``; it leaves
adapters of VeRA and its kin to `peft_diagonals`, those of Uni-LoRA and its kin to `peft_seeded`, and those of LoHa and
LoKr to `peft_lycoris`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import (
    BaseModel,
    MergeTarget,
    require_one_component,
    target_of,
)
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.pairs import join_tensors, pair_tensors, read_carried, read_pair
from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.dialects.peft_attention import as_deltas, as_layers, layer_scaling
from nola_codec.adapters.dialects.peft_base import PeftDialect, module_path
from nola_codec.adapters.dialects.peft_components import pipeline_start
from nola_codec.adapters.dialects.peft_config import (
    PREFIX,
    PeftSettings,
    is_saved_embedding,
    is_saved_module,
    parse_config,
    with_ranks,
)
from nola_codec.adapters.dialects.peft_experts import (
    expert_module,
    expert_number,
    expert_target,
    is_expert,
    join_experts,
    split_experts,
)
from nola_codec.adapters.dialects.peft_fitting import config_path, fitting_config, fold_into_factors
from nola_codec.adapters.dialects.peft_ranks import fit_ranks
from nola_codec.adapters.dialects.peft_rewrites import as_plain_lora
from nola_codec.adapters.dialects.peft_scales import (
    made_config_note,
    options_for_carried,
    peft_origin,
    with_found_scales,
    with_origin,
    without_scale,
)
from nola_codec.adapters.dialects.peft_tying import without_tie
from nola_codec.adapters.ranks import with_largest_rank
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError, mismatch
from nola_codec.lazy import LazyTable
from nola_codec.model.adapter import Adapter, Layout, LoraModule, Origin
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.tensor_store import TensorStore

__all__ = ["PEFT", "PeftLora", "factor_keys", "module_path", "state_dict", "with_ranks"]

_FACTOR = re.compile(r"^(?P<module>.+)\.(?:lora_(?P<ab>[AB])\.weight|lora_embedding_(?P<emb>[AB]))$")
_CARRIED = re.compile(r"\.lora_B\.bias$|\.lora_magnitude_vector(\.weight)?$|\.trainable_tokens_delta$")
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")


_OTHER_METHODS: LazyTable[PeftDialect] = LazyTable("nola_codec.adapters.dialects", {
    "VERA": "peft_diagonals:PEFT_VERA",
    "PVERA": "peft_diagonals:PEFT_PVERA",
    "RANDLORA": "peft_diagonals:PEFT_RANDLORA",
    "UNILORA": "peft_seeded:PEFT_UNILORA",
    "TINYLORA": "peft_seeded:PEFT_TINYLORA",
    "VBLORA": "peft_seeded:PEFT_VBLORA",
    "FOURIERFT": "peft_seeded:PEFT_FOURIERFT",
    "WAVEFT": "peft_seeded:PEFT_WAVEFT",
    "LOHA": "peft_lycoris:LOHA",
    "LOKR": "peft_lycoris:LOKR",
})  # fmt: skip
"""The dialects of other methods, by their ``peft_type``."""


class PeftLora(PeftDialect):
    """PEFT's dialect, for LoRA."""

    is_conversion_target = True
    base_model_key = "base_model_name_or_path"
    config_class = "LoraConfig"
    holds_base_changes = True

    def variant(self, config: Mapping[str, Any] | None) -> PeftDialect:
        """Return the dialect of the method that a configuration names; that of LoRA for any other method."""
        kind = None if config is None else config.get("peft_type")
        return _OTHER_METHODS.get(kind, self) if isinstance(kind, str) else self

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open PEFT LoRA. Without a configuration, the metadata or the user may tell the scalings.

        Args:
            source: The open source.
            carry_unknown: True to carry tensors that no rule knows (in `Adapter.raw`); False to refuse them.

        Raises:
            AdapterError: ``empty-adapter``, ``missing-partner``, ``rank-mismatch``, ``bad-shape``, ``mixed-layout``,
                ``not-finite``, ``not-float``, ``grouped-conv``, ``target-parameters``, ``unknown-key``;
                ``foreign-dialect``: the configuration is PEFT's, but the keys are not; and those of `parse_config` and
                `as_plain_lora`. The message names the tensor.
        """
        source, notes = as_plain_lora(source)
        where, keys = source.where, source.file.tensors
        settings = None if source.config is None else parse_config(source.config, f"{where}: {CONFIG_NAME}")
        pairs: dict[str, dict[str, str]] = {}
        others: list[str] = []
        for key in keys:
            match = _FACTOR.match(key)
            if match is None:
                others.append(key)
                continue
            found = pairs.setdefault(match["module"], {})
            if len({_is_embedding(k) for k in (*found.values(), key)}) > 1:
                message = "the module has factors of a linear layer and of an embedding"
                raise AdapterError(message, code="mixed-layout", where=f"{where}: {key}")
            found[match["ab"] or match["emb"]] = key
        if not pairs:
            looks_like = describe_keys(keys)
            if looks_like is not None:
                message = f"{CONFIG_NAME} is PEFT's, and the keys look like {looks_like}"
                raise AdapterError(message, code="foreign-dialect", where=where)
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=where)
        modules = tuple(
            m for module in sorted(pairs) for m in _read_modules(source.file, module, pairs[module], settings)
        )
        raw = {key: _read_raw(source, key, pairs, carry_unknown) for key in sorted(others)}
        config, untied = without_tie(source.config, modules)
        made = None if config is None else dict(config)
        adapter = Adapter(self.name, modules, raw, made, dict(source.file.metadata), notes=(*notes, *untied))
        adapter = with_found_scales(adapter, source, self._with_layers)
        return replace(adapter, modules=tuple(as_deltas(adapter.modules, settings)))

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return ``config``, or for a file without a configuration the place that has the scalings."""
        return peft_origin(config, metadata)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return the `state_dict` of an adapter, and its vectors under their own names."""
        vectors = {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors}
        return join_tensors(state_dict(adapter.modules, adapter.raw, dtype), vectors)

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Raise what `parse_config` raises."""
        parse_config(config, where)

    def require_writable(self, adapter: Adapter, path: Path, *, lone: bool) -> Adapter:
        """Return the adapter as it is written; for a lone file, with the scalings multiplied into lora_B.

        Raises:
            AdapterError: ``not-expressible``, ``needs-directory``, ``missing-config``.
        """
        if adapter.vectors:
            message = "PEFT has no place for tensors that were coded as vectors"
            raise AdapterError(message, code="not-expressible", where=adapter.vectors[0].name)
        if lone:
            modules = tuple(fold_into_factors(m, adapter.raw) for m in adapter.modules)
            return replace(adapter, modules=modules, metadata=without_scale(adapter.metadata))
        if adapter.config is None:
            wrong = next((m for m in as_layers(adapter.modules) if m.scaling != 1.0), None)
            if wrong is not None:
                message = f"scaling {wrong.scaling} needs a configuration, and the adapter has none"
                raise AdapterError(message, code="missing-config", where=wrong.name)
            # PEFT loads no directory without a configuration.
            config = {**_new_config(adapter.modules, adapter.raw), **options_for_carried(adapter)}
            return replace(adapter, config=config, metadata=with_origin(adapter.metadata))
        return adapter

    def added_in_directory(self, adapter: Adapter) -> str:
        """Return a sentence if the directory gets a configuration that the adapter has not."""
        return made_config_note(adapter)

    def fitting_config(self, adapter: Adapter, where: str) -> Mapping[str, Any] | None:
        """Return the configuration, adapted if PEFT would read other ranks or scalings from it."""
        return None if adapter.config is None else fitting_config(adapter.config, adapter.modules, where)

    def path_start(self, adapter: Adapter) -> str:
        """Return the component of a pipeline that the configuration or the modules tell."""
        return pipeline_start(adapter.config, [self.path_of(m.name) for m in adapter.modules])

    def slice_of(self, name: str) -> tuple[str, int]:
        """Return the module that an expert belongs to, and the number of the expert."""
        return expert_module(name), expert_number(name)

    def config_with_rank(self, adapter: Adapter, rank: int) -> Mapping[str, Any] | None:
        """Return the configuration for another rank; None if the adapter has no configuration."""
        if adapter.config is None:
            return None
        settings = parse_config(adapter.config, CONFIG_NAME)
        paths = {config_path(m.name, settings): m.scaling for m in as_layers(adapter.modules, settings)}
        return with_ranks(adapter.config, dict.fromkeys(paths, rank), paths)

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules and a configuration that fits; arguments and errors as in `Dialect`.

        An adapter without a configuration gets one if its modules need it: a scaling other than 1 or several ranks.
        """
        settings = None if adapter.config is None else parse_config(adapter.config, CONFIG_NAME)
        made = self._with_layers(adapter, as_layers(modules, settings))
        return replace(made, modules=tuple(as_deltas(made.modules, settings)))

    def _with_layers(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Do what `with_modules` does, with modules whose scalings are those of PEFT's layers."""
        if adapter.config is None and all(m.scaling == 1.0 for m in modules):
            return replace(adapter, modules=tuple(with_largest_rank(modules)))
        old = adapter.config or _new_config(modules, adapter.raw)
        config, fitted = fit_ranks(old, modules, partial(config_path, settings=parse_config(old, CONFIG_NAME)))
        if {m.name for m in modules} != {m.name for m in adapter.modules} and not config.get("target_parameters"):
            config["target_modules"] = sorted({config_path(m.name) for m in modules})
            # Whole paths need no further choice of layers, which could leave some out.
            config |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
        return replace(adapter, modules=tuple(fitted), config=config)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with a configuration; arguments and errors as in `Dialect`."""
        components = {component_of(m.name) for m in modules}
        if len(components) > 1:
            found = ", ".join(sorted(components - {""}))
            message = f"a PEFT adapter is that of one model, and this one has several components: {found}"
            raise AdapterError(message, code="not-expressible")
        (component,) = components
        start = len(component) + 1 if component else 0
        named = [replace(m, name=PREFIX + m.name[start:]) for m in modules]
        carried = {PREFIX + key[start:]: tensor for key, tensor in raw.items()}
        return self.with_modules(
            Adapter(self.name, tuple(named), carried, _new_config(named, raw), {"format": "pt"}), named
        )

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each delta; arguments and errors as in `Dialect`.

        PEFT's own rules find the weight of a pair of factors, and the shape finds the weight of experts.
        """
        require_one_component((self.component_of(name) for name in found), base)
        return [
            expert_target(name, parts, base, adapter.config or {})
            if is_expert(parts[0].name)
            else self._target(parts[0], base)
            for name, parts in found.items()
        ]

    def direct_keys(self, records: Iterable[tuple[str, Layout]]) -> dict[str, tuple[str, str]] | None:
        """Return the keys of the factors of every record; None if there are experts, which share a pair of tensors."""
        keys = {name: factor_keys(name, layout) for name, layout in records}
        return None if any(is_expert(name) for name in keys) else keys

    def _target(self, delta: AdapterDelta, base: BaseModel) -> MergeTarget:
        if delta.product is not None:
            target = MergeTarget.of(delta.product)
            return replace(target, scaling=layer_scaling(target.name, target.scaling))
        return target_of(delta, self.find_paths([delta.changed_tensor[0]], base)[0])


PEFT = PeftLora()


def _new_config(modules: Sequence[LoraModule], raw: Mapping[str, RawTensor]) -> dict[str, Any]:
    """Return a configuration for modules under PEFT's names, without their ranks and alphas."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        # Whole paths, since an ending might match layers that have no factors.
        "target_modules": sorted({config_path(m.name) for m in modules}),
        "r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(m.fan_in_fan_out for m in modules),
        "use_rslora": False,
        "use_dora": any("lora_magnitude_vector" in key for key in raw),
        "lora_bias": any(key.endswith(".lora_B.bias") for key in raw),
        "inference_mode": True,
    }


def state_dict(
    modules: Iterable[LoraModule], raw: Mapping[str, RawTensor], dtype: str | None = None
) -> dict[str, RawTensor]:
    """Return all tensors of an adapter by PEFT's keys, with the factors in their stored shapes.

    Args:
        modules: The modules.
        raw: The carried tensors, by key.
        dtype: The dtype that factors are rounded to; None is each module's own dtype.

    Raises:
        AdapterError: ``overflow``, ``not-float``, ``not-finite``, ``zero-rank``; ``duplicate-key``: a carried tensor
            has the key of a factor.
    """
    return join_tensors(raw, *(pair_tensors(m, factor_keys(m.name, m.layout), dtype) for m in join_experts(modules)))


def factor_keys(module: str, layout: Layout) -> tuple[str, str]:
    """Return the keys of both factors: ``lora_A.weight`` and ``lora_B.weight``, or ``lora_embedding_A`` and ``_B``."""
    if layout == "embedding":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _is_embedding(key: str) -> bool:
    return not key.endswith(".weight")


def _read_modules(
    store: TensorStore, module: str, keys: Mapping[str, str], settings: PeftSettings | None
) -> list[LoraModule]:
    """Read one module, or one module for each expert if the factors are on a bare parameter."""
    present = next(iter(keys.values()))
    layout: Layout = "embedding" if _is_embedding(present) else "linear"
    a_key, b_key = factor_keys(module, layout)
    for letter, key in (("A", a_key), ("B", b_key)):
        if letter not in keys:
            message = f"its partner {key} is missing"
            raise AdapterError(message, code="missing-partner", where=f"{store.name}: {present}")
    where = f"{store.name}: {a_key}"
    if settings is None:
        if _EXPERTS.search(module):
            message = f"looks like factors on bare parameters (mixture of experts), whose rank {CONFIG_NAME} must give"
            raise AdapterError(message, code="target-parameters", where=where)
        return [read_pair(store, module, (a_key, b_key), layout=layout)]
    parameter, path = settings.parameter_of(module.removeprefix(PREFIX)), config_path(module, settings)
    read = read_pair(
        store,
        module,
        (a_key, b_key),
        layout=layout,
        scaling=settings.scaling_of(path),
        fan_in_fan_out=settings.fan_in_fan_out,
    )
    if parameter:
        return split_experts(read, settings.rank_of(path), where)
    if settings.rank_of(path) != read.rank:
        message = mismatch("rank", f"{settings.rank_of(path)} by {CONFIG_NAME}", read.rank)
        raise AdapterError(message, code="rank-mismatch", where=where)
    return [read]


def _read_raw(
    source: AdapterSource, key: str, pairs: Mapping[str, Mapping[str, str]], carry_unknown: bool
) -> RawTensor:
    where = f"{source.file.name}: {key}"
    if not carry_unknown and not _is_known(key, source.config, pairs):
        message = "unknown key" if source.config is None else f"unknown key: not a factor, and not in {CONFIG_NAME}"
        raise AdapterError(message, code="unknown-key", where=where)
    return read_carried(source.file, key)


def _is_known(key: str, config: Mapping[str, Any] | None, pairs: Mapping[str, Mapping[str, str]]) -> bool:
    carried = _CARRIED.search(key)
    if carried is not None:
        # A bias or magnitude needs a module with factors, as a factor needs its partner.
        return key.endswith("trainable_tokens_delta") or key[: carried.start()] in pairs
    if ".lora_" in key:
        return False
    if is_saved_embedding(key):
        return True
    if config is None:
        # modules_to_save and trained biases keep their own names, and a lone file has no list of them.
        return key.startswith(PREFIX)
    if config.get("bias", "none") != "none" and key.endswith(".bias"):
        return True
    return is_saved_module(key, config)
