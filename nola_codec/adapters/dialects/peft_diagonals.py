"""PEFT's dialects for VeRA, PVeRA and RandLoRA: two diagonals for each layer, and the frozen matrices if saved.

All layers share the matrices, but RandLoRA saves them again for each layer. If a seed makes the matrices, a `.nola`
file holds the draws in place of the matrices. The differences between the methods are in `vera`, `pvera` and
`randlora`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget
from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.dialects.diagonals import DiagonalDelta, DiagonalMethod, MatrixPair
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.pairs import read_carried, read_floats
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.adapters.dialects.peft_config import is_saved_embedding, is_saved_module, positive_integer
from nola_codec.adapters.dialects.peft_draws import find_draws
from nola_codec.adapters.dialects.peft_vectors import CODED_DTYPES, PeftVectors
from nola_codec.adapters.dialects.pvera import PVERA
from nola_codec.adapters.dialects.randlora import RANDLORA
from nola_codec.adapters.dialects.vera import VERA
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, VectorTensor
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng.draws import draw_tensor
from nola_codec.stores.dtypes import to_float64
from nola_codec.stores.tensor_store import TensorStore

_MODEL = "base_model"

CODING_RULES = CodingRules(
    # The objective `effective` assumes that noise hurts little, which was measured on low-rank factors only.
    objectives=("nmse",),
    objectives_reason="VeRA, PVeRA and RandLoRA are coded by the NMSE; other objectives, fits and weights are for "
    "low-rank factors",
    rank_reason="the rank of VeRA, PVeRA and RandLoRA is that of their matrices; leave out rank",
    # The diagonals are small, and the rest of such an adapter is a seed.
    exact_note="the diagonals are carried exact; a rate (--size, --ratio, --nmse, --bits) codes them, and loses "
    "something",
    gains_are_estimates=True,
    unknown_note="errors are estimated from the diagonals, for matrices such as PEFT draws, since the file does not "
    "have its own",
    estimated_note="errors of {estimated} of {coded} deltas are estimated from their diagonals: the deltas are too "
    "large to be made again and again",
    measured_note="errors are measured on deltas with as many inputs as the frozen matrices have, since only the model "
    "tells how many inputs each layer has",
)
"""The rules for coding VeRA, PVeRA and RandLoRA."""


class PeftDiagonals(PeftVectors):
    """PEFT's dialect for one of the methods.

    Attributes:
        method: The method.
    """

    needs_layer_shape = True

    def __init__(self, method: DiagonalMethod) -> None:
        """Make the dialect of a method."""
        self.method = method
        self.title = method.title
        self.config_class = method.config_class
        self.diagonals = method.diagonals

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: ``empty-adapter``, ``foreign-dialect``, ``missing-partner``, ``rank-mismatch``, ``bad-shape``,
                ``not-finite``, ``not-float``, ``overflow``, ``unknown-key``, ``bad-config``.
        """
        config, store, method = dict(source.config or {}), source.file, self.method
        rank = _check_settings(config, method, source.where)
        modules = _find_modules(source, method)
        for module in modules:
            _check_diagonals(store, module, method, rank)
        diagonals = {f"{module}.{end}" for module in modules for end in method.diagonals}
        raw: dict[str, RawTensor] = {}
        copies: dict[str, RawTensor] = {}  # RandLoRA saves its matrices for each layer; memory needs them once
        for name in sorted(set(store.tensors) - diagonals):
            tensor = _carry(source, name, method, carry_unknown)
            first = copies.setdefault(name.rpartition(".")[2], tensor)
            raw[name] = first if first == tensor else tensor
        draws, notes = _describe_draws(config, method, raw)
        notes = (*notes, *filter(None, [method.note(config)]))
        raw |= {name: draw_tensor(draw) for name, draw in draws.items()}
        # A coded record cannot give float64 values back exactly, so float64 diagonals are carried.
        doubles = {name for name in diagonals if store.tensors[name].dtype not in CODED_DTYPES}
        raw |= {name: read_carried(store, name) for name in sorted(doubles)}
        vectors = tuple(
            VectorTensor(name, read_floats(store, name), store.tensors[name].dtype)
            for name in sorted(diagonals - doubles)
        )
        adapter = Adapter(self.name, (), raw, config, dict(store.metadata), vectors, draws, notes)
        return _with_gains(adapter, modules, method)

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Accept every configuration, since `read_source` checks the entries that it needs."""

    def coding_rules(self, adapter: Adapter) -> CodingRules:
        """Return the rules of these methods."""
        return CODING_RULES

    def combined_deltas(self, adapter: Adapter) -> tuple[DiagonalDelta, ...]:
        """Return a delta for each module whose frozen matrices are in the adapter.

        Raises:
            AdapterError: ``bad-shape`` for diagonals and matrices that do not fit each other; ``bad-config``.
        """
        method = self.method
        values: dict[str, Float64Array] = {v.name: v.values.astype(np.float64) for v in adapter.vectors}
        coded = set(values)
        values |= {name: to_float64(t) for name, t in adapter.raw.items() if name.endswith(method.diagonals)}
        matrices = _MatrixFinder(adapter.raw, method)
        made = []
        for module in sorted({name.rpartition(".")[0] for name in values}):
            own = {end: f"{module}.{end}" for end in method.diagonals}
            if not set(own.values()) <= set(values):
                continue
            pair = matrices.find(module, *(values[name] for name in own.values()))
            if pair is None:
                continue
            made.append(
                DiagonalDelta(
                    module,
                    tuple(name for name in own.values() if name in coded),
                    method.scale(adapter.config or {}, module),
                    method=method,
                    carried={name: values[name] for name in own.values() if name not in coded},
                    lengths={end: values[name].shape[-1] for end, name in own.items()},
                    lora_A=pair[0],
                    lora_B=pair[1],
                )
            )
        return tuple(made)

    def is_trained(self, name: str, tensor: RawTensor) -> bool:
        """Return True for a carried diagonal."""
        return name.endswith(self.method.diagonals)

    def draws(self, config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> dict[str, Draw]:
        """Return the draw of each frozen matrix that a seed makes, by key."""
        return _describe_draws(config, self.method, raw)[0]

    def require_complete(self, adapter: Adapter, where: str) -> None:
        """Raise AdapterError ``merge-projections`` for a module whose frozen matrices are not in the file."""
        ends = self.method.diagonals
        names = [v.name for v in adapter.vectors] + [n for n in adapter.raw if n.endswith(ends)]
        known = {delta.name for delta in self.combined_deltas(adapter)}
        for module in sorted({name.rpartition(".")[0] for name in names}):
            if module not in known:
                message = (
                    f"the file does not have the matrices {' and '.join(self.method.projections)} (save_projection is "
                    "off), and a merge needs them: save the adapter with save_projection=True, and encode it again"
                )
                raise AdapterError(message, code="merge-projections", where=f"{where}: {module}")

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each delta; only the model tells the number of inputs of a layer.

        Raises:
            AdapterError: ``merge-projections`` for frozen matrices that are not in the file.
        """
        self.require_complete(adapter, where)
        flag = bool((adapter.config or {}).get("fan_in_fan_out"))
        targets = []
        for name, (delta,) in found.items():
            weight = base.find(f"{module_path(name)}.weight")
            stored = () if weight is None else base.shapes[weight]
            turned = base.is_transposed(module_path(name), flag)
            shape = stored[::-1] if turned else stored
            fits = delta.composite is not None and delta.composite.fits(shape)
            targets.append(MergeTarget(name, "linear", shape if fits else delta.shape, fan_in_fan_out=turned))
        return targets

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors of the model itself, without diagonals and frozen matrices."""
        own = (*self.method.diagonals, *self.method.projections)
        return {name: tensor for name, tensor in adapter.raw.items() if name.rpartition(".")[2] not in own}


PEFT_VERA, PEFT_PVERA, PEFT_RANDLORA = PeftDiagonals(VERA), PeftDiagonals(PVERA), PeftDiagonals(RANDLORA)


def _check_settings(config: Mapping[str, Any], method: DiagonalMethod, where: str) -> int:
    """Check the entries of a configuration, and return its rank. Raises AdapterError ``bad-config``."""
    rank = positive_integer(config.get("r"), "r", f"{where}: {CONFIG_NAME}")
    key = config.get("projection_prng_key", 0)
    if type(key) is not int or not -(1 << 63) <= key < 1 << 64:
        message = mismatch("projection_prng_key", "an integer of 64 bits", key)
        raise AdapterError(message, code="bad-config", where=f"{where}: {CONFIG_NAME}")
    method.scale(config, where)
    return rank


def _find_modules(source: AdapterSource, method: DiagonalMethod) -> list[str]:
    """Return the modules that have a diagonal. Raises AdapterError ``foreign-dialect``, ``empty-adapter``."""
    pattern = re.compile(rf"(?P<module>.+)\.(?:{'|'.join(method.diagonals)})")
    modules = sorted({match["module"] for name in source.file.tensors if (match := pattern.fullmatch(name))})
    if not modules:
        looks_like = describe_keys(source.file.tensors)
        if looks_like is not None:
            message = f"{CONFIG_NAME} says {method.title}, and the keys look like {looks_like}"
            raise AdapterError(message, code="foreign-dialect", where=source.where)
        raise AdapterError(f"no diagonals of {method.title} in it", code="empty-adapter", where=source.where)
    return modules


def _check_diagonals(store: TensorStore, module: str, method: DiagonalMethod, rank: int) -> None:
    """Check that a module has both diagonals and that their shapes fit each other.

    Raises:
        AdapterError: ``missing-partner``, ``bad-shape``, ``rank-mismatch``.
    """
    keys = [f"{module}.{end}" for end in method.diagonals]
    for key, other in zip(keys, keys[::-1], strict=True):
        if key not in store.tensors:
            message = f"its partner {key} is missing"
            raise AdapterError(message, code="missing-partner", where=f"{store.name}: {other}")
    first, second = (store.tensors[key].shape for key in keys)
    for key, shape in zip(keys, (first, second), strict=True):
        if len(shape) != method.dimensions or not all(shape):
            message = mismatch("shape", f"{method.dimensions} dimensions, none of them 0", list(shape))
            raise AdapterError(message, code="bad-shape", where=f"{store.name}: {key}")
    found, which = method.rank_of(first, second)
    if found != rank:
        message = mismatch("rank", f"{rank} by {CONFIG_NAME}", found)
        raise AdapterError(message, code="rank-mismatch", where=f"{store.name}: {keys[which]}")
    problem = method.misfit(first, second, rank)
    if problem is not None:
        raise AdapterError(problem, code="bad-shape", where=f"{store.name}: {keys[0]}")


def _carry(source: AdapterSource, key: str, method: DiagonalMethod, carry_unknown: bool) -> RawTensor:
    config = source.config or {}
    known = (
        key.rpartition(".")[2] in method.projections
        or is_saved_embedding(key)
        or (config.get("bias", "none") != "none" and key.endswith(".bias"))
        or is_saved_module(key, config)
    )
    if not known and not carry_unknown:
        message = f"unknown key: it does not belong to {method.title}, and is not in {CONFIG_NAME}"
        raise AdapterError(message, code="unknown-key", where=f"{source.file.name}: {key}")
    return read_carried(source.file, key)


def _describe_draws(
    config: Mapping[str, Any], method: DiagonalMethod, raw: Mapping[str, RawTensor]
) -> tuple[dict[str, Draw], tuple[str, ...]]:
    """Return the draw of each matrix that a seed makes, and a note for the matrices that none makes."""
    groups: dict[tuple[RawTensor, RawTensor], list[tuple[str, str]]] = {}
    there = [name for name in raw if name.rpartition(".")[2] in method.projections]
    if not there:
        return {}, ()
    lone = []
    for stem in sorted({name.rpartition(".")[0] for name in there}):
        a_key, b_key = (f"{stem}.{end}" for end in method.projections)
        if a_key in raw and b_key in raw and method.are_projections(raw[a_key].shape, raw[b_key].shape):
            groups.setdefault((raw[a_key], raw[b_key]), []).append((a_key, b_key))
        else:
            lone += [key for key in (a_key, b_key) if key in raw]
    draws: dict[str, Draw] = {}
    for (a, b), keys in groups.items():
        rule = method.draw_rule(config, a.shape, b.shape)
        for number, draw in enumerate(find_draws(rule, config.get("projection_prng_key", 0), a, b)):
            names = [pair[number] for pair in keys]
            if draw is None:
                lone += names
            else:
                draws |= dict.fromkeys(names, draw)
    notes: tuple[str, ...] = ()
    if lone:
        notes = (
            f"{', '.join(lone[:2])}{', ...' if len(lone) > 2 else ''}: these are not what PEFT draws from "
            f"projection_prng_key {config.get('projection_prng_key', 0)}, as far as this version knows; they are "
            "carried as they came",
        )
    return draws, notes


class _MatrixFinder:
    """Finds the frozen matrices of a module in float64. All modules share them, so each is converted once."""

    def __init__(self, raw: Mapping[str, RawTensor], method: DiagonalMethod) -> None:
        self._raw, self._method = raw, method
        self._made: dict[str, Float64Array] = {}

    def find(self, module: str, first: Float64Array, second: Float64Array) -> MatrixPair | None:
        """Return A and B for a module with these diagonals; None if they are not in the file.

        Raises:
            AdapterError: ``bad-shape``: the diagonals and the matrices do not fit each other.
        """
        keys = [
            next((key for key in (f"{_MODEL}.{end}", f"{module}.{end}") if key in self._raw), None)
            for end in self._method.projections
        ]
        if keys[0] is None or keys[1] is None:
            return None
        a, b = self._matrix(keys[0]), self._matrix(keys[1])
        if not _lie_between(self._method, first, second, a, b):
            shapes = ", ".join(str(list(x.shape)) for x in (first, second, a, b))
            message = f"diagonals and matrices do not fit each other: {shapes}"
            raise AdapterError(message, code="bad-shape", where=module)
        return a, b

    def _matrix(self, key: str) -> Float64Array:
        if key not in self._made:
            self._made[key] = to_float64(self._raw[key], where=key)
        return self._made[key]


def _lie_between(
    method: DiagonalMethod, first: Float64Array, second: Float64Array, a: Float64Array, b: Float64Array
) -> bool:
    """Return True if a layer's diagonals fit between two matrices."""
    if not method.are_projections(a.shape, b.shape) or not first.ndim == second.ndim == method.dimensions:
        return False
    return method.lie_between(first.shape, second.shape, a.shape, b.shape)


def _with_gains(adapter: Adapter, modules: list[str], method: DiagonalMethod) -> Adapter:
    """Set the gain of each vector: the factor from its error to the error of the delta."""
    values: dict[str, Float64Array] = {v.name: v.values.astype(np.float64) for v in adapter.vectors}
    matrices = _MatrixFinder(adapter.raw, method)
    scale = method.scale(adapter.config or {}, "")
    found: dict[str, float] = {}
    for module in modules:
        names = [f"{module}.{end}" for end in method.diagonals]
        first, second = (values[n] if n in values else to_float64(adapter.raw[n], where=n) for n in names)
        made = method.gains(first, second, matrices.find(module, first, second), scale)
        found |= dict(zip(names, made, strict=True))
    return replace(adapter, vectors=tuple(replace(v, gain=found[v.name]) for v in adapter.vectors))
