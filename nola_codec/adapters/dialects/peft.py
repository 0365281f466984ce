"""PEFT's LoRA: ``base_model.model.<path>.lora_A.weight`` and its kin, with `adapter_config.json`.

Shapes: linear ``lora_A`` (r, in), ``lora_B`` (out, r); convolutions (r, in, *kernel) and (out, r, 1, ...); embeddings
``lora_embedding_A`` (r, vocab), ``lora_embedding_B`` (dim, r), whose delta is transposed onto a (vocab, dim) weight.
Read against peft 0.21 (`tuners/lora/layer.py`, `utils/save_and_load.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.dialects import peft_diagonals
from nola_codec.adapters.dialects.foreign import describe_keys
from nola_codec.adapters.dialects.lycoris import Composite
from nola_codec.adapters.dialects.pairs import join, pair_tensors, read_carried, read_pair
from nola_codec.adapters.dialects.peft_config import (
    PREFIX,
    PeftSettings,
    is_saved_embedding,
    is_saved_module,
    parse_config,
    with_ranks,
)
from nola_codec.adapters.dialects.peft_experts import expert_module, is_expert, join_experts, split_experts
from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME, AdapterSource, open_source
from nola_codec.errors import AdapterError, expected
from nola_codec.model.adapter import Adapter, Layout, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import AnySource, atomic_directory, atomic_file, dump_json, require_free
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors
from nola_codec.stores.tensor_store import TensorStore

__all__ = [
    "coding_rules", "composites", "detect", "factor_keys", "module_path", "name", "read", "read_source", "state_dict",
    "tensors", "title", "with_rank", "with_ranks", "write",
]  # fmt: skip

name = "peft"
title = "PEFT"

_FACTOR = re.compile(r"^(?P<module>.+)\.(?:lora_(?P<ab>[AB])\.weight|lora_embedding_(?P<emb>[AB]))$")
_CARRIED = re.compile(r"\.lora_B\.bias$|\.lora_magnitude_vector(\.weight)?$|\.trainable_tokens_delta$")
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")


def detect(source: AdapterSource) -> bool:
    """Whether the source is PEFT's: its configuration says so, or its keys have the prefix."""
    if source.config is not None and "peft_type" in source.config:
        return True
    return any(key.startswith("base_model.") and ".lora_" in key for key in source.file.tensors)


def read(source: AnySource, *, config: Mapping[str, Any] | None = None, carry_unknown: bool = False) -> Adapter:
    """Read a PEFT LoRA: a directory, a lone file, bytes or a binary stream; see `open_source` and `read_source`."""
    with open_source(source, config=config) as opened:
        return read_source(opened, carry_unknown=carry_unknown)


def read_source(source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
    """Read an opened PEFT LoRA whole. Without a configuration every scaling is 1 (alpha = r).

    Args:
        source: From `open_source`.
        carry_unknown: Put tensors that no rule knows into `Adapter.raw` instead of refusing them.

    Raises:
        AdapterError: The configuration is refused (see `parse_config`), or ``empty-adapter``, ``missing-partner``,
            ``rank-mismatch``, ``bad-shape``, ``mixed-layout``, ``not-finite``, ``not-float``, ``grouped-conv``,
            ``target-parameters``, ``unknown-key``, ``foreign-dialect`` for a configuration of PEFT's beside keys that
            are not; the message names the tensor. For VeRA and RandLoRA those of `peft_diagonals.read_source`.
    """
    if peft_diagonals.method_of(source.config) is not None:
        return peft_diagonals.read_source(source, carry_unknown=carry_unknown)
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
    modules = tuple(m for module in sorted(pairs) for m in _read_modules(source.file, module, pairs[module], settings))
    raw = {key: _read_raw(source, key, pairs, carry_unknown) for key in sorted(others)}
    config = None if source.config is None else dict(source.config)
    return Adapter("peft", modules, raw, config, dict(source.file.metadata))


def write(adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter back: a directory, or one file when ``out`` ends as such a file does (`SUFFIXES`).

    A directory gets `adapter_config.json` (when the adapter has a configuration) and `adapter_model.safetensors`. If
    ranks or scalings differ from what the configuration says, it is adapted by `with_ranks`. Everything else in an
    existing directory stays. A lone file has no place for a scaling, so there it is multiplied into ``lora_B``, which
    is done only where that is exact: powers of two.

    Args:
        adapter: What to write; the factors may have other ranks than `a_shape` and `b_shape` say.
        out: Directory or tensor file.
        dtype: Of the factors: one of `FLOAT_DTYPES`; None keeps each module's own. Raw tensors keep theirs.
        overwrite: Replace what is there.

    Raises:
        AdapterError: ``not-expressible``, ``overflow``, ``zero-rank``, ``needs-directory``, ``not-finite``, or as
            `parse_config`.
        OutputExists: Something is there and ``overwrite`` is False.
    """
    diagonals = peft_diagonals.method_of(adapter.config) is not None
    if adapter.vectors and not diagonals:
        message = "PEFT has no place for tensors that were coded as vectors"
        raise AdapterError(message, code="not-expressible", where=adapter.vectors[0].name)
    path = Path(out)
    lone = is_tensor_file(path)
    if lone and diagonals:
        message = "a lone file has no place for the configuration, without which PEFT cannot use it; write a directory"
        raise AdapterError(message, code="needs-directory", where=str(out))
    modules = tuple(_fold_scaling(m, adapter.raw) for m in adapter.modules) if lone else adapter.modules
    if not lone and adapter.config is None:
        wrong = next((m for m in modules if m.scaling != 1.0), None)
        if wrong is not None:
            message = f"scaling {wrong.scaling} needs a configuration, and the adapter has none"
            raise AdapterError(message, code="missing-config", where=wrong.name)
    made = peft_diagonals.tensors(adapter, dtype) if diagonals else state_dict(modules, adapter.raw, dtype)
    metadata = adapter.metadata or {"format": "pt"}
    require_free(path, overwrite=overwrite)
    if lone:
        return write_tensors(path, made, metadata)
    config = None if adapter.config is None else dump_json(_fitting_config(adapter.config, modules, str(path)))
    if path.is_dir() and any(path.iterdir()):
        write_tensors(path / WEIGHTS_NAME, made, metadata)
        if config is not None:
            with atomic_file(path / CONFIG_NAME) as stream:
                stream.write(config)
        return path
    with atomic_directory(path, replace=overwrite) as directory:
        write_tensors(directory / WEIGHTS_NAME, made, metadata)
        if config is not None:
            (directory / CONFIG_NAME).write_bytes(config)
    return path


def coding_rules(adapter: Adapter) -> CodingRules:
    """Say how an adapter may be coded: anything goes for a LoRA, VeRA and RandLoRA have limits."""
    return CodingRules() if peft_diagonals.method_of(adapter.config) is None else peft_diagonals.CODING_RULES


def with_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter with a configuration for factors of another rank, every scaling kept; the factors stay.

    Raises:
        AdapterError: ``zero-rank``.
    """
    if adapter.config is None:
        return adapter
    ranks = {m.name.removeprefix(PREFIX): rank for m in adapter.modules}
    scalings = {m.name.removeprefix(PREFIX): m.scaling for m in adapter.modules}
    return replace(adapter, config=with_ranks(adapter.config, ranks, scalings))


def tensors(adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
    """`state_dict` of an adapter; VeRA's and RandLoRA's diagonals too."""
    if peft_diagonals.method_of(adapter.config) is not None:
        return peft_diagonals.tensors(adapter, dtype)
    return state_dict(adapter.modules, adapter.raw, dtype)


def composites(adapter: Adapter) -> tuple[Composite, ...]:
    """Those of VeRA and RandLoRA; any other delta is one product."""
    return peft_diagonals.composites(adapter) if peft_diagonals.method_of(adapter.config) is not None else ()


def state_dict(
    modules: Iterable[LoraModule], raw: Mapping[str, RawTensor], dtype: str | None = None
) -> dict[str, RawTensor]:
    """All tensors of an adapter under PEFT's keys, factors in their stored shapes and rounded to ``dtype``.

    Raises:
        AdapterError: ``overflow``, ``not-float``, ``not-finite``, ``zero-rank``; ``duplicate-key`` when a raw tensor
            has a factor's key.
    """
    return join(raw, *(pair_tensors(m, factor_keys(m.name, m.layout), dtype) for m in join_experts(modules)))


def factor_keys(module: str, layout: Layout) -> tuple[str, str]:
    """Keys of both factors: ``lora_A.weight``, ``lora_B.weight``, or ``lora_embedding_A``, ``lora_embedding_B``."""
    if layout == "embedding":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def module_path(module: str) -> str:
    """Path of a module in the base model: without ``base_model.model.`` and PEFT's own ``base_layer``."""
    return ".".join(part for part in module.removeprefix(PREFIX).split(".") if part != "base_layer")


def _is_embedding(key: str) -> bool:
    return not key.endswith(".weight")


def _read_modules(
    store: TensorStore, module: str, keys: Mapping[str, str], settings: PeftSettings | None
) -> list[LoraModule]:
    """One module; or one for each expert of a bare parameter."""
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
            message = f"looks like factors on bare parameters (mixture of experts); {CONFIG_NAME} must say their rank"
            raise AdapterError(message, code="target-parameters", where=where)
        return [read_pair(store, module, (a_key, b_key), layout=layout)]
    bare = settings.targets_parameter(module_path(module))
    path = module_path(module) if bare else module.removeprefix(PREFIX)
    read = read_pair(
        store,
        module,
        (a_key, b_key),
        layout=layout,
        scaling=settings.scaling_of(path),
        fan_in_fan_out=settings.fan_in_fan_out,
    )
    if bare:
        return split_experts(read, settings.rank_of(path), where)
    if settings.rank_of(path) != read.rank:
        message = expected("rank", f"{settings.rank_of(path)} by {CONFIG_NAME}", read.rank)
        raise AdapterError(message, code="rank-mismatch", where=where)
    return [read]


def _read_raw(
    source: AdapterSource, key: str, pairs: Mapping[str, Mapping[str, str]], carry_unknown: bool
) -> RawTensor:
    where = f"{source.file.name}: {key}"
    if not carry_unknown and not _is_known(key, source.config, pairs):
        message = "unknown key" if source.config is None else f"unknown key: neither a factor nor in {CONFIG_NAME}"
        if re.search(r"\.lora_[AB]\.[^.]+\.weight$|\.lora_embedding_[AB]\.[^.]+$", key):
            message = "an adapter's name is left in the key; save it with save_pretrained"
        raise AdapterError(message, code="unknown-key", where=where)
    return read_carried(source.file, key)


def _is_known(key: str, config: Mapping[str, Any] | None, pairs: Mapping[str, Mapping[str, str]]) -> bool:
    carried = _CARRIED.search(key)
    if carried is not None:
        # A bias or magnitude of a module that has no factors is as wrong as a factor without its partner.
        return key.endswith("trainable_tokens_delta") or key[: carried.start()] in pairs
    if ".lora_" in key:
        return False
    if is_saved_embedding(key):
        return True
    if config is None:
        # modules_to_save and trained biases keep their own names; a lone file has no list of them.
        return key.startswith(PREFIX)
    if config.get("bias", "none") != "none" and key.endswith(".bias"):
        return True
    return is_saved_module(key, config)


def _fitting_config(config: Mapping[str, Any], modules: tuple[LoraModule, ...], where: str) -> Mapping[str, Any]:
    """The configuration, adapted only if it would not give PEFT these ranks and scalings."""
    if peft_diagonals.method_of(config) is not None:
        return config
    settings = parse_config(config, where)
    paths = {
        m.name: module_path(expert_module(m.name)) if is_expert(m.name) else m.name.removeprefix(PREFIX)
        for m in modules
    }
    if all(
        settings.rank_of(paths[m.name]) == m.rank and settings.scaling_of(paths[m.name]) == m.scaling for m in modules
    ):
        return config
    if config.get("target_parameters"):
        message = "other ranks or scalings than in the configuration cannot be written for factors on bare parameters"
        raise AdapterError(message, code="target-parameters", where=where)
    return with_ranks(config, {paths[m.name]: m.rank for m in modules}, {paths[m.name]: m.scaling for m in modules})


def _fold_scaling(module: LoraModule, raw: Mapping[str, RawTensor]) -> LoraModule:
    if module.scaling == 1.0:
        return module
    mantissa, _ = np.frexp(module.scaling)
    if abs(mantissa) != 0.5 or f"{module.name}.lora_B.bias" in raw:
        message = f"a lone file has no place for the scaling {module.scaling}; write a directory"
        raise AdapterError(message, code="needs-directory", where=module.name)
    folded = (module.lora_B * np.float32(module.scaling)).astype(np.float32)
    return replace(module, lora_B=folded, scaling=1.0)
