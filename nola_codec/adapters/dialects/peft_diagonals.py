"""PEFT's VeRA and RandLoRA: ``<path>.vera_lambda_b`` (out,), ``.vera_lambda_d`` (r,); ``.randlora_lambda`` (r, N),
``.randlora_gamma`` (N, min of out and in); and, unless ``save_projection`` is off, the frozen matrices that all layers
share, RandLoRA's once more for each of them. Where a seed makes them, a file holds the draw and not the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.dialects.diagonals import METHODS, Diagonals, Method, gains
from nola_codec.adapters.dialects.foreign import describe_keys
from nola_codec.adapters.dialects.pairs import join, read_carried, read_floats
from nola_codec.adapters.dialects.peft_config import is_saved_embedding, is_saved_module, positive_integer, real_number
from nola_codec.adapters.dialects.peft_draws import find_draws
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, expected
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng.draws import draw_tensor
from nola_codec.stores.dtypes import from_float32, to_float32, to_float64
from nola_codec.stores.tensor_store import TensorStore

_MODEL = "base_model"
_CODED_DTYPES = ("F32", "F16", "BF16")


def method_of(config: Mapping[str, Any] | None) -> str | None:
    """``"VERA"`` or ``"RANDLORA"``, or None for a configuration of something else."""
    kind = None if config is None else config.get("peft_type")
    return kind if isinstance(kind, str) and kind in METHODS else None


def read_source(source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
    """Read an opened VeRA or RandLoRA whole. Its configuration says which.

    Raises:
        AdapterError: ``empty-adapter``, ``foreign-dialect``, ``missing-partner``, ``rank-mismatch``, ``bad-shape``,
            ``not-finite``, ``not-float``, ``overflow``, ``unknown-key``, ``bad-config``.
    """
    config, store, where = dict(source.config or {}), source.file, source.where
    method = METHODS[config["peft_type"]]
    rank = positive_integer(config.get("r"), "r", f"{where}: {CONFIG_NAME}")
    key = config.get("projection_prng_key", 0)
    if type(key) is not int or not -(1 << 63) <= key < 1 << 64:
        raise AdapterError(expected("projection_prng_key", "an integer of 64 bits", key), code="bad-config",
                           where=f"{where}: {CONFIG_NAME}")  # fmt: skip
    _scale(config, where)
    pattern = re.compile(rf"(?P<module>.+)\.(?:{'|'.join(method.diagonals)})")
    modules = sorted({match["module"] for name in store.tensors if (match := pattern.fullmatch(name))})
    if not modules:
        looks_like = describe_keys(store.tensors)
        if looks_like is not None:
            message = f"{CONFIG_NAME} says {method.title}, and the keys look like {looks_like}"
            raise AdapterError(message, code="foreign-dialect", where=where)
        raise AdapterError(f"no diagonals of {method.title} in it", code="empty-adapter", where=where)
    for module in modules:
        _check_diagonals(store, module, method, rank)
    diagonals = {f"{module}.{end}" for module in modules for end in method.diagonals}
    raw: dict[str, RawTensor] = {}
    copies: dict[str, RawTensor] = {}  # RandLoRA saves its matrices once a layer: one copy is enough in memory
    for name in sorted(set(store.tensors) - diagonals):
        tensor = _carry(source, name, method, carry_unknown)
        first = copies.setdefault(name.rpartition(".")[2], tensor)
        raw[name] = first if first == tensor else tensor
    draws, notes = draws_of(config, method, raw)
    raw |= {name: draw_tensor(draw) for name, draw in draws.items()}
    # Doubles have no place in a coded record that gives them back.
    doubles = {name for name in diagonals if store.tensors[name].dtype not in _CODED_DTYPES}
    raw |= {name: read_carried(store, name) for name in sorted(doubles)}
    vectors = tuple(
        VectorTensor(name, read_floats(store, name), store.tensors[name].dtype) for name in sorted(diagonals - doubles)
    )
    adapter = Adapter("peft", (), raw, config, dict(store.metadata), vectors, draws, notes)
    return _with_gains(adapter, modules)


def tensors(adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
    """All tensors under their keys, coded diagonals rounded to ``dtype`` (None: their own).

    Raises:
        AdapterError: ``overflow``, ``duplicate-key``.
    """
    return join(adapter.raw, {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors})


def exact(adapter: Adapter) -> Adapter:
    """The adapter with its diagonals carried as they came: they are few, and the rest is a seed."""
    note = "the diagonals are carried exact; a rate (--size, --ratio, --nmse, --bits) codes them, and loses something"
    return replace(adapter, raw=tensors(adapter), vectors=(), notes=(*adapter.notes, note))


def as_vectors(adapter: Adapter) -> Adapter:
    """The adapter with all diagonals as vectors, however it holds them: to be compared with another."""
    method = METHODS[(adapter.config or {})["peft_type"]]
    names = [n for n, t in adapter.raw.items() if n.endswith(method.diagonals) and t.dtype in _CODED_DTYPES]
    made = tuple(VectorTensor(n, to_float32(adapter.raw[n], where=n), adapter.raw[n].dtype) for n in names)
    raw = {name: tensor for name, tensor in adapter.raw.items() if name not in set(names)}
    return replace(adapter, raw=raw, vectors=adapter.vectors + made)


def composites(adapter: Adapter) -> tuple[Diagonals, ...]:
    """A delta for each module whose frozen matrices are known; none without them.

    Raises:
        AdapterError: ``bad-shape`` for diagonals and matrices that do not fit each other; ``bad-config``.
    """
    config = adapter.config or {}
    method = METHODS[config["peft_type"]]
    values: dict[str, Float64Array] = {v.name: v.values.astype(np.float64) for v in adapter.vectors}
    coded = set(values)
    values |= {name: to_float64(t) for name, t in adapter.raw.items() if name.endswith(method.diagonals)}
    matrices = _Matrices(adapter.raw, method)
    made = []
    for module in sorted({name.rpartition(".")[0] for name in values}):
        own = {end: f"{module}.{end}" for end in method.diagonals}
        if not set(own.values()) <= set(values):
            continue
        pair = matrices.of(module, *(values[name] for name in own.values()))
        if pair is None:
            continue
        made.append(
            Diagonals(
                module,
                tuple(name for name in own.values() if name in coded),
                _scale(config, module),
                method=config["peft_type"],
                carried={name: values[name] for name in own.values() if name not in coded},
                lengths={end: values[name].shape[-1] for end, name in own.items()},
                lora_A=pair[0],
                lora_B=pair[1],
            )
        )
    return tuple(made)


def model_tensors(adapter: Adapter) -> dict[str, RawTensor]:
    """Carried tensors that are tensors of the model: neither diagonals nor what they act between."""
    method = METHODS[(adapter.config or {})["peft_type"]]
    own = (*method.diagonals, *method.projections)
    return {name: tensor for name, tensor in adapter.raw.items() if name.rpartition(".")[2] not in own}


def require_projections(adapter: Adapter, where: str) -> None:
    """Raise ``merge-projections`` for a module whose frozen matrices are not in the file."""
    method = METHODS[(adapter.config or {})["peft_type"]]
    names = [v.name for v in adapter.vectors] + [n for n in adapter.raw if n.endswith(method.diagonals)]
    known = {composite.name for composite in composites(adapter)}
    for module in sorted({name.rpartition(".")[0] for name in names}):
        if module not in known:
            message = (
                f"the matrices {' and '.join(method.projections)} are not in the file (save_projection is off), and "
                "nothing can be merged without them: save the adapter with save_projection=True and encode that"
            )
            raise AdapterError(message, code="merge-projections", where=f"{where}: {module}")


def _scale(config: Mapping[str, Any], where: str) -> float:
    """alpha / r for RandLoRA, as PEFT divides; 1 for VeRA."""
    if config["peft_type"] == "VERA":
        return 1.0
    where = f"{where}: {CONFIG_NAME}"
    alpha = real_number(config.get("randlora_alpha", 640), "randlora_alpha", where)
    return float(alpha / positive_integer(config.get("r"), "r", where))


def _check_diagonals(store: TensorStore, module: str, method: Method, rank: int) -> None:
    """Both diagonals are there and fit each other."""
    keys = [f"{module}.{end}" for end in method.diagonals]
    for key, other in zip(keys, keys[::-1], strict=True):
        if key not in store.tensors:
            message = f"its partner {key} is missing"
            raise AdapterError(message, code="missing-partner", where=f"{store.name}: {other}")
    first, second = (store.tensors[key].shape for key in keys)
    dimensions = 1 if method is METHODS["VERA"] else 2
    for key, shape in zip(keys, (first, second), strict=True):
        if len(shape) != dimensions or not all(shape):
            message = expected("shape", f"{dimensions} dimensions, none of them 0", list(shape))
            raise AdapterError(message, code="bad-shape", where=f"{store.name}: {key}")
    found = second[0] if dimensions == 1 else first[0]
    if found != rank:
        message = expected("rank", f"{rank} by {CONFIG_NAME}", found)
        raise AdapterError(message, code="rank-mismatch", where=f"{store.name}: {keys[1 if dimensions == 1 else 0]}")
    if dimensions == 2 and not first[1] == second[0] == -(-second[1] // rank):
        message = f"{list(first)} and {list(second)} are not (r, N) and (N, min) with N = min / r rounded up"
        raise AdapterError(message, code="bad-shape", where=f"{store.name}: {keys[0]}")


def _carry(source: AdapterSource, key: str, method: Method, carry_unknown: bool) -> RawTensor:
    config = source.config or {}
    known = (
        key.rpartition(".")[2] in method.projections
        or is_saved_embedding(key)
        or (config.get("bias", "none") != "none" and key.endswith(".bias"))
        or is_saved_module(key, config)
    )
    if not known and not carry_unknown:
        message = f"unknown key: neither of {method.title} nor in {CONFIG_NAME}"
        raise AdapterError(message, code="unknown-key", where=f"{source.file.name}: {key}")
    return read_carried(source.file, key)


def draws_of(
    config: Mapping[str, Any], method: Method, raw: Mapping[str, RawTensor]
) -> tuple[dict[str, Draw], tuple[str, ...]]:
    """The draw of each matrix that one makes, and a note where none does."""
    groups: dict[tuple[RawTensor, RawTensor], list[tuple[str, str]]] = {}
    there = [name for name in raw if name.rpartition(".")[2] in method.projections]
    if not there:
        return {}, ()
    lone = []
    for stem in sorted({name.rpartition(".")[0] for name in there}):
        a_key, b_key = (f"{stem}.{end}" for end in method.projections)
        if a_key in raw and b_key in raw and _are_projections(method, raw[a_key].shape, raw[b_key].shape):
            groups.setdefault((raw[a_key], raw[b_key]), []).append((a_key, b_key))
        else:
            lone += [key for key in (a_key, b_key) if key in raw]
    draws: dict[str, Draw] = {}
    for (a, b), keys in groups.items():
        for number, draw in enumerate(find_draws(config, a, b)):
            names = [pair[number] for pair in keys]
            if draw is None:
                lone += names
            else:
                draws |= dict.fromkeys(names, draw)
    notes: tuple[str, ...] = ()
    if lone:
        notes = (
            f"{', '.join(lone[:2])}{', ...' if len(lone) > 2 else ''}: not what PEFT draws from projection_prng_key "
            f"{config.get('projection_prng_key', 0)}, as far as this version knows; carried as they came",
        )
    return draws, notes


def _are_projections(method: Method, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes are (r, in) and (out, r), or (r, 1, min) and (max, N, r), of no size 0."""
    dimensions = 2 if method is METHODS["VERA"] else 3
    if len(a) != dimensions or len(b) != dimensions or not all(a) or not all(b) or a[0] != b[-1]:
        return False
    return dimensions == 2 or a[1] == 1


class _Matrices:
    """Finds the frozen matrices of a module, in float64; all modules have them in common."""

    def __init__(self, raw: Mapping[str, RawTensor], method: Method) -> None:
        self._raw, self._method = raw, method
        self._made: dict[str, Float64Array] = {}

    def of(self, module: str, first: Float64Array, second: Float64Array) -> tuple[Float64Array, Float64Array] | None:
        """A and B between which two diagonals fit; None where they are not there. Raises AdapterError ``bad-shape``."""
        keys = [
            next((key for key in (f"{_MODEL}.{end}", f"{module}.{end}") if key in self._raw), None)
            for end in self._method.projections
        ]
        if keys[0] is None or keys[1] is None:
            return None
        a, b = self._matrix(keys[0]), self._matrix(keys[1])
        if not _fit(self._method, first, second, a.shape, b.shape):
            shapes = ", ".join(str(list(x.shape)) for x in (first, second, a, b))
            message = f"diagonals and matrices do not fit each other: {shapes}"
            raise AdapterError(message, code="bad-shape", where=module)
        return a, b

    def _matrix(self, key: str) -> Float64Array:
        if key not in self._made:
            self._made[key] = to_float64(self._raw[key], where=key)
        return self._made[key]


def _with_gains(adapter: Adapter, modules: list[str]) -> Adapter:
    """The vectors with what an error of each does to the delta."""
    config = adapter.config or {}
    method = METHODS[config["peft_type"]]
    values: dict[str, Float64Array] = {v.name: v.values.astype(np.float64) for v in adapter.vectors}
    matrices = _Matrices(adapter.raw, method)
    found: dict[str, float] = {}
    for module in modules:
        names = [f"{module}.{end}" for end in method.diagonals]
        first, second = (values[n] if n in values else to_float64(adapter.raw[n], where=n) for n in names)
        made = gains(config["peft_type"], first, second, matrices.of(module, first, second), _scale(config, ""))
        found |= dict(zip(names, made, strict=True))
    return replace(adapter, vectors=tuple(replace(v, gain=found[v.name]) for v in adapter.vectors))


def _fit(method: Method, first: Float64Array, second: Float64Array, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether a layer's diagonals fit between the matrices."""
    dimensions = 1 if method is METHODS["VERA"] else 2
    if not _are_projections(method, a, b) or first.ndim != dimensions or second.ndim != dimensions:
        return False
    if dimensions == 1:
        return a[0] == len(second) and b[0] >= len(first)
    return a[0] == len(first) and first.shape[1] == len(second) <= b[1] and a[2] >= second.shape[1]
