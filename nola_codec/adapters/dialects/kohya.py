"""The dialect of kohya's sd-scripts, and of tools that use the same keys: LyCORIS, OneTrainer, ComfyUI.

A module has ``<module>.lora_down.weight`` (r, in[, kh, kw]), ``.lora_up.weight`` (out, r[, 1, 1]) and a scalar
``.alpha``; the delta is alpha / r times the product. The names of modules are flattened
(``lora_unet_down_blocks_0_...``) or dotted, and they are kept as they are. LyCORIS adds LoHa, LoKr and Tucker
convolutions (`lycoris`), full deltas ``.diff`` and ``.diff_b``, norms ``.w_norm`` and ``.b_norm``, and ``.dora_scale``,
which is carried.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import CombinedDelta, is_change
from nola_codec.adapters.base_model import BaseModel
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.alphas import SUFFIX as ALPHA
from nola_codec.adapters.dialects.alphas import Alphas, alphas_of, fit_alphas, pack_alphas, read_alphas
from nola_codec.adapters.dialects.comfyui_keys import (
    RESHAPE_WEIGHT,
    SET_WEIGHT,
    are_changes_alone,
    notes_on_carried,
    replaced_tensors,
)
from nola_codec.adapters.dialects.key_hints import unknown_key
from nola_codec.adapters.dialects.lycoris import LycorisDelta, composite_parts, part_rank, require_reasonable
from nola_codec.adapters.dialects.lycoris_keys import PART, PRODUCTS
from nola_codec.adapters.dialects.lycoris_parts import PRODUCT_KEYS, find_parts, with_gains
from nola_codec.adapters.dialects.module_rules import require_layouts, sort_modules
from nola_codec.adapters.dialects.pairs import (
    PairKeys,
    find_pairs,
    join_tensors,
    pair_tensors,
    read_carried,
    read_pair,
    read_vector,
)
from nola_codec.adapters.dialects.paths import component_of, kohya_path, kohya_split
from nola_codec.adapters.dialects.refused_keys import find_refusal
from nola_codec.adapters.scale_records import kept_config, record_origin, stored_origin
from nola_codec.adapters.scales import DefaultScale, alpha_notes, find_scales
from nola_codec.adapters.sources import AdapterSource
from nola_codec.adapters.writing import AdapterFile, write_adapter_file
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule, Origin
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32, to_float64
from nola_codec.stores.safetensors_writer import dump
from nola_codec.stores.tensor_store import TensorStore

_PLAIN = PairKeys.of_suffixes(".lora_down.weight", ".lora_up.weight")
_DETECT = re.compile(r".+\.(?:lora_(?:down|up|mid)\.weight|hada_[wt][12](?:_[ab])?|lokr_(?:w[12](?:_[ab])?|t2))")
_CARRIED = re.compile(
    r"(?P<stem>.+)\.(?:dora_scale|scalar|reshape_weight)|.+\.set_weight|(?:bundle_emb|emb_params)(?:\..+)?"
)


class Kohya(Dialect):
    """The dialect of sd-scripts, with what LyCORIS adds to it."""

    name = "kohya"
    title = "kohya"
    is_conversion_target = True
    has_components = True
    is_for_images = True
    layout = "kohya"

    def detect(self, source: AdapterSource) -> bool:
        """Return True if some key is kohya's or LyCORIS's."""
        keys = source.file.tensors
        return any(_DETECT.fullmatch(key) for key in keys) or are_changes_alone(keys)

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: ``missing-partner``, ``mixed-layout``, ``bad-alpha``, ``unknown-key``, ``empty-adapter``;
                ``multiplicative`` and others for algorithms of LyCORIS that do not make a delta; and those of
                `read_pair`.
        """
        store, where = source.file, source.where
        refusal = find_refusal((key for key in store.tensors if not _CARRIED.fullmatch(key)), where)
        if refusal is not None and not carry_unknown:
            raise refusal
        parts = find_parts(store.tensors, where)
        products = parts.products
        plain, others = find_pairs(parts.others, _PLAIN, where)
        others += parts.tucker
        vectors = [key for key in others if is_change(key) or PART.fullmatch(key)]
        combined = composite_parts([*products, *vectors])
        unused = {stem for stem in combined if not _has_rank(stem, store)}
        alphas = read_alphas(store, [key for key in others if key.endswith(ALPHA)], unused)
        stems = {*plain, *combined}
        touched = stems | {key.rpartition(".")[0] for key in vectors}
        raw = {}
        for key in sorted(set(others) - set(vectors) - {stem + ALPHA for stem in alphas if stem in touched}):
            match = _CARRIED.fullmatch(key)
            if not carry_unknown and (match is None or (match["stem"] is not None and match["stem"] not in touched)):
                raise unknown_key(key, self.name, where)
            raw[key] = read_carried(store, key)
        packed, carried = pack_alphas({stem: value for stem, value in alphas.items() if stem in touched}, touched)
        config = None if packed is None else {"alpha": packed}
        adapter = Adapter(self.name, (), raw | carried, config, dict(store.metadata))
        every = Alphas(adapter)
        modules = [_read_plain(store, stem, adapter, every) for stem in plain]
        modules += [read_pair(store, part, PRODUCT_KEYS.of(part), layout="linear") for part in products]
        tensors = [read_vector(store, key) for key in sorted(vectors)]
        adapter = replace(adapter, modules=tuple(sorted(modules, key=lambda m: m.name)), vectors=tuple(tensors))
        if not adapter.modules and not adapter.vectors:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=where)
        adapter = _with_scales(replace(adapter, notes=notes_on_carried(raw)), source)
        return with_gains(adapter, self.combined_deltas(adapter))

    def scale_origin(self, config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> Origin:
        """Return ``tensor`` if there are alphas, and ``dialect`` if not, since sd-scripts then takes alpha = r."""
        return stored_origin(config) or ("tensor" if config is not None and "alpha" in config else "dialect")

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments as in `Dialect`.

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``, ``bad-config``.
        """
        pairs = [
            pair_tensors(m, (PRODUCT_KEYS if PRODUCT_KEYS.split(m.name + "_a") else _PLAIN).of(m.name), dtype)
            for m in adapter.modules
        ]
        vectors = {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors}
        return join_tensors(adapter.raw, Alphas(adapter).tensors(sorted(_stems(adapter))), *pairs, vectors)

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write one file. Hashes in the metadata are computed again for the new content."""
        made = self.tensors(adapter, dtype)
        metadata = with_hashes(adapter.metadata, made)
        file = AdapterFile(made, metadata, self.file_name, config=kept_config(adapter.config))
        return write_adapter_file(out, file, overwrite=overwrite)

    def combined_deltas(self, adapter: Adapter) -> tuple[CombinedDelta, ...]:
        """Return the deltas that are made of several parts.

        Raises:
            AdapterError: ``limit``; ``missing-partner``, ``mixed-layout`` in a file that another program wrote.
        """
        shapes = {v.name: v.values.shape for v in adapter.vectors}
        products = {m.name: m for m in adapter.modules if m.name.endswith(PRODUCTS)}
        alphas = Alphas(adapter)
        made = []
        for stem, (parts, rank) in _composites(adapter).items():
            # Two parts of one megabyte each can make a delta of a terabyte.
            require_reasonable(stem, {p: products[p].vector_lengths if p in products else shapes[p] for p in parts})
            made.append(LycorisDelta(stem, tuple(parts), _scale(adapter, stem, rank, alphas)))
        return tuple(made)

    def with_modules(self, adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
        """Return the adapter with other modules, whose alphas and ranks fit; arguments and errors as in `Dialect`."""
        parts = {m.name for m in adapter.modules if PART.fullmatch(m.name)}
        plain = [m for m in modules if m.name not in parts]
        others = [m for m in modules if m.name in parts]
        fitted = fit_alphas(adapter, plain, _stems(adapter), factor=lambda name: _scalar(adapter, name))
        ranks = {m.rank for m in fitted.modules}
        metadata = dict(adapter.metadata)
        if len(ranks) == 1:
            found = {"ss_network_dim": str(*ranks)}
        else:
            found = {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}  # as sd-scripts' resize_lora.py
        metadata |= {key: value for key, value in found.items() if key in metadata}
        if len(ranks) == 1 and "ss_network_alpha" in metadata and plain:
            metadata["ss_network_alpha"] = str(fitted.modules[0].scaling * fitted.modules[0].rank)
        every = tuple(sorted((*fitted.modules, *others), key=lambda m: m.name))
        return replace(fitted, modules=every, metadata=metadata)

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors that replace tensors of the model.

        Raises:
            AdapterError: ``merge-reshape``, and those of `Dialect.model_tensors`.
        """
        known = {key: tensor for key, tensor in adapter.raw.items() if key.endswith((SET_WEIGHT, RESHAPE_WEIGHT))}
        others = {key: tensor for key, tensor in adapter.raw.items() if key not in known}
        return super().model_tensors(replace(adapter, raw=others)) | replaced_tensors(known)

    def path_of(self, name: str) -> str:
        """Return the path of a flattened name; errors as in `Dialect`."""
        return kohya_path(name)

    def layout_name(self, name: str) -> str:
        """Return the name as it is."""
        return name

    def component_of(self, name: str) -> str:
        """Return the component that a prefix such as ``lora_te1_`` or ``unet.`` means."""
        return kohya_split(name)[0] or kohya_split(name.partition(".")[0])[0] or component_of(name)

    def flat_path(self, name: str) -> tuple[str, str]:
        """Return the component and the flattened path as in `Dialect`, also for names that `path_of` cannot read."""
        component, rest = kohya_split(name)
        return (component, rest.replace(".", "_")) if rest != name else super().flat_path(name)

    def find_paths(self, names: Sequence[str], base: BaseModel) -> list[str]:
        """Return the names as they are, flattened or dotted, since only the base model tells where the dots were."""
        return list(names)

    def from_modules(
        self, modules: Sequence[LoraModule], raw: Mapping[str, RawTensor], base: Mapping[str, Any] | None
    ) -> Adapter:
        """Make an adapter with alphas from modules under kohya's names; arguments and errors as in `Dialect`."""
        require_layouts(modules, self.name, "linear", "conv")
        alphas = {m.name: _alpha(m) for m in modules}
        common = max(set(alphas.values()), key=list(alphas.values()).count)
        alpha: dict[str, Any] = {"dtype": "F32", "shape": [], "value": common}
        others = {name: value for name, value in alphas.items() if value != common}
        ranks = sorted({m.rank for m in modules})
        metadata = {
            "ss_network_module": "networks.lora", "ss_network_dim": str(ranks[-1]) if len(ranks) == 1 else "Dynamic",
            "ss_network_alpha": str(common) if not others else "Dynamic",
        }  # fmt: skip
        return Adapter(
            self.name, sort_modules(modules), {}, {"alpha": alpha | ({"others": others} if others else {})}, metadata
        )


KOHYA = Kohya()


def _alpha(module: LoraModule) -> float:
    """Return the float32 alpha with alpha / r = scaling. Raises AdapterError ``not-expressible`` if there is none."""
    alpha = float(np.float32(module.scaling * module.rank))
    if alpha / module.rank != module.scaling:
        message = f"no float32 alpha gives the scaling {module.scaling} at rank {module.rank}"
        raise AdapterError(message, code="not-expressible", where=module.name)
    return alpha


def with_hashes(metadata: Mapping[str, str], made: Mapping[str, RawTensor]) -> dict[str, str]:
    """Return the metadata with its hashes of the file's content computed again. No hash is added.

    ``sshs_model_hash`` and ``modelspec.hash_sha256`` are the SHA-256 of all bytes after the header.
    ``sshs_legacy_hash`` is the first eight digits of the SHA-256 of 64 KiB from byte 2^20 on. All are taken from a file
    whose metadata has only the ``ss_`` entries (sd-scripts, `library/train_util.py`,
    `precalculate_safetensors_hashes`).

    Args:
        metadata: The metadata of the adapter.
        made: The tensors of the new file, by key.
    """
    result = dict(metadata)
    if not {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"} & set(metadata):
        return result
    data = dump(made, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    content = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    legacy = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    hashes = {"sshs_model_hash": content, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": "0x" + content}
    return result | {key: value for key, value in hashes.items() if key in metadata}


def _has_rank(stem: str, store: TensorStore) -> bool:
    """Return False if no part of a module has a rank, so that its alpha has no effect: LoKr of two whole matrices."""
    keys = (f"{stem}.{end}" for end in ("lokr_w1_b", "lokr_w2_b", "hada_w1_b", "hada_w2_b", "lora_down.weight"))
    return any(key in store.tensors for key in keys)


def _read_plain(store: TensorStore, stem: str, adapter: Adapter, alphas: Alphas) -> LoraModule:
    module = read_pair(store, stem, _PLAIN.of(stem))
    alpha = alphas.of(stem)
    return module if alpha is None else replace(module, scaling=alpha / module.rank * _scalar(adapter, stem))


def _composites(adapter: Adapter) -> dict[str, tuple[list[str], int | None]]:
    """Return the parts of each delta that is made of several, and its rank, or None if no part is a pair of factors."""
    shapes = {v.name: v.values.shape for v in adapter.vectors}
    products = {m.name: m for m in adapter.modules if m.name.endswith(PRODUCTS)}
    found = {}
    for stem, parts in sorted(composite_parts([*shapes, *products]).items()):
        start = len(stem) + 1
        rank = part_rank(
            {part[start:]: shapes[part] for part in parts if part in shapes},
            {part[start:]: products[part].rank for part in parts if part in products},
        )
        found[stem] = list(parts), rank
    return found


def _with_scales(adapter: Adapter, source: AdapterSource) -> Adapter:
    """Return the adapter with the scalings of a file without alphas; those from elsewhere become alphas of the adapter.

    Raises:
        AdapterError: Those of `find_scales`.
    """
    ranks = {m.name: m.rank for m in adapter.modules if not m.name.endswith(PRODUCTS)}
    ranks |= {stem: rank for stem, (_, rank) in _composites(adapter).items() if rank is not None}
    if "alpha" in (adapter.config or {}):
        alphas = Alphas(adapter)
        notes = alpha_notes({name: alphas.of(name) for name in ranks})
        return replace(adapter, scale_origin="tensor", notes=(*adapter.notes, *notes))
    if not ranks:
        return replace(adapter, scale_origin="dialect")
    found = find_scales(source, ranks, DefaultScale())
    adapter = replace(adapter, scale_origin=found.origin, notes=(*adapter.notes, *found.notes))
    if found.origin == "dialect":
        return adapter
    touched = sorted(_stems(adapter) - set(ranks))
    entry = alphas_of(found.scalings, ranks, touched)
    modules = [
        replace(m, scaling=found.scalings[m.name] * _scalar(adapter, m.name)) if m.name in found.scalings else m
        for m in adapter.modules
    ]
    config = record_origin({**(adapter.config or {}), "alpha": entry}, found.origin, found.config)
    return replace(adapter, modules=tuple(modules), config=config)


def _scalar(adapter: Adapter, stem: str) -> float:
    """Return the trained scalar that LyCORIS may multiply a whole module by; 1 if there is none."""
    tensor = adapter.raw.get(f"{stem}.scalar")
    if tensor is None:
        return 1.0
    values = to_float64(tensor, where=f"{stem}.scalar").reshape(-1)
    if values.size != 1 or not np.isfinite(values[0]):
        raise AdapterError("expected one finite number", code="bad-alpha", where=f"{stem}.scalar")
    return float(values[0])


def _scale(adapter: Adapter, stem: str, rank: int | None, alphas: Alphas) -> float:
    alpha = alphas.of(stem)
    # LyCORIS takes alpha = rank if no part is a pair of factors (`lokr.py`: use_w1 and use_w2).
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return scale * _scalar(adapter, stem)


def _stems(adapter: Adapter) -> set[str]:
    stems = {v.name.rpartition(".")[0] for v in adapter.vectors if not PART.fullmatch(v.name)}
    for part in (*(v.name for v in adapter.vectors), *(m.name for m in adapter.modules)):
        match = PART.fullmatch(part)
        if match is not None:
            stems.add(match["stem"])
    return stems | {m.name for m in adapter.modules if PART.fullmatch(m.name) is None}
