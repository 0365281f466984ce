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
import numpy.typing as npt

from nola_codec.adapters.dtypes import require_finite
from nola_codec.adapters.files import AnySource, atomic_directory, atomic_file, dump_json, require_free
from nola_codec.adapters.foreign import describe_keys
from nola_codec.adapters.peft_config import MAX_RANK, PREFIX, PeftSettings, is_saved_module, parse_config, with_ranks
from nola_codec.adapters.safetensors_io import dump, from_float32, to_float32, write_file
from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME, AdapterSource, open_source
from nola_codec.adapters.stores import TensorStore
from nola_codec.errors import AdapterError, expected
from nola_codec.model import DTYPES, Adapter, Layout, LoraModule, RawTensor

__all__ = ["detect", "factor_keys", "module_path", "name", "read", "read_source", "state_dict", "with_ranks", "write"]

name = "peft"

_MAX_DIMENSION = 1 << 31
_FACTOR = re.compile(r"^(?P<module>.+)\.(?:lora_(?P<ab>[AB])\.weight|lora_embedding_(?P<emb>[AB]))$")
_CARRIED = re.compile(r"\.lora_B\.bias$|\.lora_magnitude_vector(\.weight)?$|\.trainable_tokens_delta$")
# PEFT saves these whole when they are adapted or were resized (`save_embedding_layers`, `EMBEDDING_LAYER_NAMES`).
_EMBEDDING_WEIGHT = re.compile(r"(^|\.)(embed_tokens|lm_head)(\.base_layer)?\.(weight|bias)$|\.base_layer\.weight$")
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")
_NUM_DIMENSIONS: Mapping[Layout, tuple[int, ...]] = {"linear": (2,), "conv": (3, 4, 5), "embedding": (2,)}


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
            ``target-parameters``, ``unknown-key``, ``foreign-dialect``; the message names the tensor.
    """
    where, tensors = source.where, source.file.tensors
    settings = None if source.config is None else parse_config(source.config, f"{where}: {CONFIG_NAME}")
    pairs: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for key in tensors:
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
        dialect = describe_keys(tensors)
        if dialect is not None:
            message = f"keys look like {dialect}; this version reads PEFT"
            raise AdapterError(message, code="foreign-dialect", where=where)
        raise AdapterError("no LoRA factors in it", code="empty-adapter", where=where)
    if settings is None and not any(module.startswith("base_model.") for module in pairs):
        message = f"keys look like {describe_keys(tensors)}; this version reads PEFT"
        raise AdapterError(message, code="foreign-dialect", where=where)
    modules = tuple(_read_module(source.file, module, pairs[module], settings) for module in sorted(pairs))
    raw = {key: _read_raw(source, key, pairs, carry_unknown) for key in sorted(others)}
    config = None if source.config is None else dict(source.config)
    return Adapter("peft", modules, raw, config, dict(source.file.metadata))


def write(adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter back: a directory, or one file when ``out`` ends in ``.safetensors``.

    A directory gets `adapter_config.json` (when the adapter has a configuration) and `adapter_model.safetensors`. If
    ranks or scalings differ from what the configuration says, it is adapted by `with_ranks`. Everything else in an
    existing directory stays. A lone file has no place for a scaling, so there it is multiplied into ``lora_B``, which
    is done only where that is exact: powers of two.

    Args:
        adapter: What to write; the factors may have other ranks than `a_shape` and `b_shape` say.
        out: Directory or ``.safetensors`` file.
        dtype: Of the factors: one of `FLOAT_DTYPES`; None keeps each module's own. Raw tensors keep theirs.
        overwrite: Replace what is there.

    Raises:
        AdapterError: ``overflow``, ``zero-rank``, ``needs-directory``, ``not-finite``, or as `parse_config`.
        OutputExists: Something is there and ``overwrite`` is False.
    """
    path = Path(out)
    lone = path.suffix == ".safetensors"
    modules = tuple(_fold_scaling(m, adapter.raw) for m in adapter.modules) if lone else adapter.modules
    if not lone and adapter.config is None:
        wrong = next((m for m in modules if m.scaling != 1.0), None)
        if wrong is not None:
            message = f"scaling {wrong.scaling} needs a configuration, and the adapter has none"
            raise AdapterError(message, code="missing-config", where=wrong.name)
    tensors = state_dict(modules, adapter.raw, dtype)
    metadata = adapter.metadata or {"format": "pt"}
    require_free(path, overwrite=overwrite)
    if lone:
        return write_file(path, tensors, metadata)
    config = None if adapter.config is None else dump_json(_fitting_config(adapter.config, modules, str(path)))
    if path.is_dir() and any(path.iterdir()):
        write_file(path / WEIGHTS_NAME, tensors, metadata)
        if config is not None:
            with atomic_file(path / CONFIG_NAME) as stream:
                stream.write(config)
        return path
    with atomic_directory(path, replace=overwrite) as directory:
        (directory / WEIGHTS_NAME).write_bytes(dump(tensors, metadata))
        if config is not None:
            (directory / CONFIG_NAME).write_bytes(config)
    return path


def state_dict(
    modules: Iterable[LoraModule], raw: Mapping[str, RawTensor], dtype: str | None = None
) -> dict[str, RawTensor]:
    """All tensors of an adapter under PEFT's keys, factors in their stored shapes and rounded to ``dtype``.

    Raises:
        AdapterError: ``overflow``, ``not-float``, ``not-finite``, ``zero-rank``; ``duplicate-key`` when a raw tensor
            has a factor's key.
    """
    tensors = dict(raw)
    for module in modules:
        if module.rank < 1:
            raise AdapterError(expected("rank", "at least 1", module.rank), code="zero-rank", where=module.name)
        a_shape = (module.rank, *module.a_shape[1:])
        b_shape = (module.b_shape[0], module.rank, *module.b_shape[2:])
        keys = factor_keys(module.name, module.layout)
        for key, factor, shape in zip(keys, (module.lora_A, module.lora_B), (a_shape, b_shape), strict=True):
            if key in tensors:
                raise AdapterError("occurs twice", code="duplicate-key", where=key)
            require_finite(factor, key)
            tensors[key] = from_float32(factor.reshape(shape), dtype or module.dtype, where=key)
    return tensors


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


def _read_module(file: TensorStore, module: str, keys: Mapping[str, str], settings: PeftSettings | None) -> LoraModule:
    present = next(iter(keys.values()))
    layout: Layout = "embedding" if _is_embedding(present) else "linear"
    a_key, b_key = factor_keys(module, layout)
    for letter, key in (("A", a_key), ("B", b_key)):
        if letter not in keys:
            message = f"its partner {key} is missing"
            raise AdapterError(message, code="missing-partner", where=f"{file.name}: {present}")
    a_shape, b_shape = file.tensors[a_key].shape, file.tensors[b_key].shape
    if layout == "linear" and len(a_shape) > 2:
        layout = "conv"
    _check_shapes(layout, a_shape, b_shape, f"{file.name}: {a_key}", f"{file.name}: {b_key}")
    rank = a_shape[0]
    scaling = 1.0
    if settings is None:
        if _EXPERTS.search(module):
            message = "looks like factors on bare parameters (mixture of experts), which are not supported"
            raise AdapterError(message, code="target-parameters", where=f"{file.name}: {a_key}")
    else:
        path = module.removeprefix(PREFIX)
        if settings.rank_of(path) != rank:
            message = expected("rank", f"{settings.rank_of(path)} by {CONFIG_NAME}", rank)
            raise AdapterError(message, code="rank-mismatch", where=f"{file.name}: {a_key}")
        scaling = settings.scaling_of(path)
    return LoraModule(
        name=module,
        lora_A=_read_factor(file, a_key).reshape(rank, -1),
        lora_B=_read_factor(file, b_key).reshape(b_shape[0], rank),
        a_shape=a_shape,
        b_shape=b_shape,
        scaling=scaling,
        layout=layout,
        fan_in_fan_out=layout == "linear" and settings is not None and settings.fan_in_fan_out,
        # PEFT writes both alike; where a file does not, float32 holds either.
        dtype=file.tensors[a_key].dtype if file.tensors[a_key].dtype == file.tensors[b_key].dtype else "F32",
    )


def _check_shapes(layout: Layout, a: tuple[int, ...], b: tuple[int, ...], where_a: str, where_b: str) -> None:
    for shape, where in ((a, where_a), (b, where_b)):
        if len(shape) not in _NUM_DIMENSIONS[layout]:
            wanted = " or ".join(str(n) for n in _NUM_DIMENSIONS[layout])
            raise AdapterError(expected("dimensions", wanted, list(shape)), code="bad-shape", where=where)
        if not all(1 <= size < _MAX_DIMENSION for size in shape):
            raise AdapterError(f"absurd shape {list(shape)}", code="bad-shape", where=where)
    if len(a) != len(b) or any(size != 1 for size in b[2:]):
        ones = ", 1" * (len(a) - 2)
        raise AdapterError(expected("shape", f"[out, {a[0]}{ones}]", list(b)), code="bad-shape", where=where_b)
    if a[0] > MAX_RANK:
        raise AdapterError(expected("rank", f"at most {MAX_RANK}", a[0]), code="bad-shape", where=where_a)
    if b[1] != a[0]:
        if layout == "conv" and a[0] % b[1] == 0 and b[0] % (a[0] // b[1]) == 0:
            message = (
                f"a grouped convolution ({a[0] // b[1]} groups): lora_B {list(b)} mixes only part of the rank "
                f"{a[0]} of lora_A, so the delta is not lora_B @ lora_A"
            )
            raise AdapterError(message, code="grouped-conv", where=where_b)
        raise AdapterError(expected("rank", f"{a[0]} as in lora_A", b[1]), code="rank-mismatch", where=where_b)


def _read_factor(file: TensorStore, key: str) -> npt.NDArray[np.float32]:
    where = f"{file.name}: {key}"
    values = to_float32(file.read(key), where=where)
    require_finite(values, where)
    return values


def _read_raw(
    source: AdapterSource, key: str, pairs: Mapping[str, Mapping[str, str]], carry_unknown: bool
) -> RawTensor:
    where = f"{source.file.name}: {key}"
    info = source.file.tensors[key]
    if info.dtype not in DTYPES:
        raise AdapterError(expected("dtype", "one an adapter may carry", info.dtype), code="unknown-dtype", where=where)
    if not carry_unknown and not _is_known(key, source.config, pairs):
        message = "unknown key" if source.config is None else f"unknown key: neither a factor nor in {CONFIG_NAME}"
        if re.search(r"\.lora_[AB]\.[^.]+\.weight$|\.lora_embedding_[AB]\.[^.]+$", key):
            message = "an adapter's name is left in the key; save it with save_pretrained"
        raise AdapterError(message, code="unknown-key", where=where)
    return source.file.read(key)


def _is_known(key: str, config: Mapping[str, Any] | None, pairs: Mapping[str, Mapping[str, str]]) -> bool:
    carried = _CARRIED.search(key)
    if carried is not None:
        # A bias or magnitude of a module that has no factors is as wrong as a factor without its partner.
        return key.endswith("trainable_tokens_delta") or key[: carried.start()] in pairs
    if ".lora_" in key:
        return False
    if _EMBEDDING_WEIGHT.search(key):
        return True
    if config is None:
        # modules_to_save and trained biases keep their own names; a lone file has no list of them.
        return key.startswith(PREFIX)
    if config.get("bias", "none") != "none" and key.endswith(".bias"):
        return True
    return is_saved_module(key, config)


def _fitting_config(config: Mapping[str, Any], modules: tuple[LoraModule, ...], where: str) -> Mapping[str, Any]:
    """The configuration, adapted only if it would not give PEFT these ranks and scalings."""
    settings = parse_config(config, where)
    paths = {module.name: module.name.removeprefix(PREFIX) for module in modules}
    if all(
        settings.rank_of(paths[m.name]) == m.rank and settings.scaling_of(paths[m.name]) == m.scaling for m in modules
    ):
        return config
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
