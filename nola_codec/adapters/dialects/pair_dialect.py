"""`PairDialect`: a base for dialects whose adapters are only pairs of factors under other keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nola_codec.adapters.adapter_delta import is_change
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.adapter_metadata import METADATA_KEY, flat_config, metadata_scalings
from nola_codec.adapters.dialects.alphas import SUFFIX as ALPHA
from nola_codec.adapters.dialects.alphas import Alphas, pack_alphas, read_alphas
from nola_codec.adapters.dialects.comfyui_keys import notes_on_carried
from nola_codec.adapters.dialects.key_hints import unknown_key
from nola_codec.adapters.dialects.pairs import (
    PairKeys,
    find_pairs,
    join_tensors,
    pair_tensors,
    read_carried,
    read_pair,
    read_vector,
)
from nola_codec.adapters.scale_records import record_origin, stored_origin
from nola_codec.adapters.scales import DefaultScale, FoundScales, alpha_notes, find_scales
from nola_codec.adapters.sources import AdapterSource
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule, Origin
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32
from nola_codec.stores.tensor_store import TensorStore

_NOTHING = re.compile(r"(?!)")
_DEFAULT = DefaultScale()


@dataclass(frozen=True)
class PairDialect(Dialect):
    """A dialect whose deltas are plain products.

    Attributes:
        name, title, file_name: As in `Dialect`.
        keys: The spelling of the keys of the factors.
        carried: A pattern for the keys of other tensors that belong to the dialect. If it has the group ``module`` and
            this matches, the group must be the name of a module.
        has_alpha: True if modules may have a scalar ``<module>.alpha``.
        has_changes: True if there may be changes of single tensors (``.diff``) beside the pairs.
        default_scale: The scaling of modules if nothing tells it.
    """

    name: str
    title: str
    keys: PairKeys
    carried: re.Pattern[str] = _NOTHING
    file_name: str = "lora.safetensors"
    has_alpha: bool = False
    has_changes: bool = False
    default_scale: DefaultScale = _DEFAULT

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is a factor's."""
        return any(self.keys.split(key) is not None for key in source.file.tensors)

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: ``empty-adapter``, ``unknown-key``, ``bad-alpha``, those of `find_pairs` and `read_pair`, and
                those of `config` and `find_scales`.
        """
        store, where = source.file, source.where
        names, others = find_pairs(store.tensors, self.keys, where)
        if not names:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=where)
        changes = [key for key in others if is_change(key)] if self.has_changes else []
        others = sorted(set(others) - set(changes))
        own = self._alpha_keys(names, set(others), where) if self.has_alpha else {}
        alphas = read_alphas(store, own.values())
        known = {*names, *map(self.alpha_module, names)}
        raw = {key: self._carry(source, key, known, carry_unknown) for key in sorted(set(others) - set(own.values()))}
        modules = {self.alpha_module(name) for name in names}
        packed, left = pack_alphas({stem: alpha for stem, alpha in alphas.items() if stem in modules}, modules)
        left |= {stem + ALPHA: tensor for stem, (tensor, _) in alphas.items() if stem not in modules}
        config = self.config(source)
        if packed is not None:
            config = {**(config or {}), "alpha": packed}
        ranks = {name: self._rank(source, name) for name in names}
        found = self.find_scales(source, ranks, has_alphas=bool(alphas))
        of_alphas = {name: alphas[key.removesuffix(ALPHA)][1] / ranks[name] for name, key in own.items()}
        scalings = {**found.scalings, **of_alphas}
        pairs = tuple(module for name in names for module in self.read_modules(store, name, scalings[name]))
        vectors = tuple(read_vector(store, key) for key in sorted(changes))
        notes = (*(notes_on_carried(raw) if self.has_changes else ()), *found.notes)
        if own and METADATA_KEY not in store.metadata:
            notes += alpha_notes(
                {name: alphas[own[name].removesuffix(ALPHA)][1] if name in own else None for name in names}
            )
        adapter = Adapter(self.name, pairs, raw | left, config, dict(store.metadata), vectors, notes=notes)
        return self.with_origin(adapter, found)

    def find_scales(self, source: AdapterSource, ranks: Mapping[str, int], *, has_alphas: bool) -> FoundScales:
        """Return the scaling of each module that has no alpha.

        Args:
            source: The open source.
            ranks: The rank of each module, by its name.
            has_alphas: True if the file has alphas. Then only the JSON of diffusers says something of other modules.
        """
        if not has_alphas:
            return find_scales(source, ranks, self.default_scale, self.scale_path)
        text = source.file.metadata.get(METADATA_KEY)
        if text is not None:
            return FoundScales(metadata_scalings(text, ranks, source.where, self.scale_path), "tensor")
        return FoundScales(dict.fromkeys(ranks, self.default_scale.value), "tensor")

    def with_origin(self, adapter: Adapter, found: FoundScales) -> Adapter:
        """Return the adapter with the origin of its scalings; its configuration keeps it if nothing else tells it."""
        adapter = replace(adapter, scale_origin=found.origin)
        if found.origin in ("config", "option"):
            adapter = self.keep_scale(adapter)
        if self.scale_origin(adapter.config, adapter.metadata) != found.origin:
            adapter = replace(adapter, config=record_origin(adapter.config, found.origin, found.config))
        return adapter

    def keep_scale(self, adapter: Adapter) -> Adapter:
        """Return the adapter with its scalings in the metadata, in the form that diffusers reads."""
        return replace(adapter, metadata=self._with_scale(adapter))

    def scale_path(self, name: str) -> str:
        """Return the path of a module for the patterns of a configuration; its name if it tells no path."""
        try:
            return self.path_of(name)
        except AdapterError:
            return name

    def lone_metadata(self, adapter: Adapter, path: Path) -> Mapping[str, str]:
        """Return the metadata to write, for a dialect that keeps its scaling in a configuration.

        A lone file has no configuration, so its metadata gets the scalings, in the form that diffusers reads.
        """
        told = self.scale_origin(adapter.config, adapter.metadata) in ("config", "option")
        return self._with_scale(adapter) if told and path.suffix.lower() == ".safetensors" else adapter.metadata

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return the place that the scalings of a file came from; arguments as in `Dialect`."""
        stored = stored_origin(config)
        if stored:
            return stored
        if config is not None and "alpha" in config:
            return "tensor"
        if METADATA_KEY in metadata:
            return "metadata"
        return "assumed" if self.default_scale.assumption else "dialect"

    def read_module(self, store: TensorStore, name: str, scaling: float) -> LoraModule:
        """Read the pair of factors of one module."""
        return read_pair(store, name, self.keys.of(name), scaling=scaling, transposed=self.keys.transposed)

    def read_modules(self, store: TensorStore, name: str, scaling: float) -> list[LoraModule]:
        """Read the modules that one pair of tensors holds: by default one."""
        return [self.read_module(store, name, scaling)]

    def alpha_module(self, name: str) -> str:
        """Return the name M for which the alpha of a module is called ``M.alpha``; by default the module's own name."""
        return name

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """Return the configuration that an adapter keeps; None, the default, if it keeps none."""
        return None

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments as in `Dialect`.

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``, ``bad-config``, ``not-expressible``.
        """
        if not self.has_changes:
            require_no_vectors(adapter, self.title)
        vectors = {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors}
        pairs = [pair_tensors(m, self.keys.of(m.name), dtype, transposed=self.keys.transposed) for m in adapter.modules]
        alphas = Alphas(adapter).tensors({self.alpha_module(m.name) for m in adapter.modules}) if self.has_alpha else {}
        return join_tensors(adapter.raw, alphas, *pairs, vectors)

    def _alpha_keys(self, names: Sequence[str], keys: set[str], where: str) -> dict[str, str]:
        """Return the key of the alpha of each module that has one. Raises AdapterError ``duplicate-key``."""
        found: dict[str, str] = {}
        for name in names:
            own = [key for key in dict.fromkeys((self.alpha_module(name) + ALPHA, name + ALPHA)) if key in keys]
            if len(own) > 1:
                message = f"means the same alpha as {own[0]}"
                raise AdapterError(message, code="duplicate-key", where=f"{where}: {own[1]}")
            if own:
                found[name] = own[0]
        return found

    def _with_scale(self, adapter: Adapter) -> dict[str, str]:
        return {**adapter.metadata, METADATA_KEY: flat_config(adapter.modules, self.scale_path)}

    def _rank(self, source: AdapterSource, name: str) -> int:
        shape = source.file.tensors[self.keys.a_key(name)].shape
        if not shape:
            return 1  # `read_pair` raises the error for it
        return max(1, shape[-1] if self.keys.transposed[0] else shape[0])

    def _carry(self, source: AdapterSource, key: str, names: set[str], carry_unknown: bool) -> RawTensor:
        match = self.carried.fullmatch(key)
        module = match.groupdict().get("module") if match is not None else None
        if not carry_unknown and (match is None or (module is not None and module not in names)):
            raise unknown_key(key, self.name, source.where)
        return read_carried(source.file, key)


def require_no_vectors(adapter: Adapter, title: str) -> None:
    """Raise AdapterError ``not-expressible`` for an adapter with coded tensors that are not pairs of factors."""
    if adapter.vectors:
        message = f"{title} has no place for a tensor that is not a pair of factors"
        raise AdapterError(message, code="not-expressible", where=adapter.vectors[0].name)
