"""PEFT's dialects for the methods that train a few numbers in a frozen part that a seed or the base model makes.

These are Uni-LoRA, TinyLoRA, VB-LoRA, FourierFT and WaveFT; the differences are in the modules of their names, and the
contract is in `seeded`. Without a rate all tensors are carried as they came. A rate codes the trained numbers, and the
singular vectors of TinyLoRA. What PEFT draws again when it loads an adapter is not in the file, as it is not in PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.base_model import BaseModel, MergeTarget
from nola_codec.adapters.coding_rules import CodingRules
from nola_codec.adapters.dialects.fourierft import FOURIERFT
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.pairs import read_carried, read_vector
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.adapters.dialects.peft_config import is_saved_embedding, is_saved_module
from nola_codec.adapters.dialects.peft_vectors import CODED_DTYPES, PeftVectors
from nola_codec.adapters.dialects.seeded import MethodTensors, SeededDelta, SeededMethod, make_deltas
from nola_codec.adapters.dialects.tinylora import TINYLORA
from nola_codec.adapters.dialects.unilora import UNILORA
from nola_codec.adapters.dialects.vblora import VBLORA
from nola_codec.adapters.dialects.waveft import WAVEFT
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor

_STEP = 2.0**-6
"""The size of a change of a tensor that measures its gain, over the tensor's own norm."""


class PeftSeeded(PeftVectors):
    """PEFT's dialect for one of the methods.

    Attributes:
        method: The method.
    """

    def __init__(self, method: SeededMethod) -> None:
        """Make the dialect of a method."""
        self.method = method
        self.title = method.title
        self.config_class = method.config_class

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: ``empty-adapter``, ``foreign-dialect``, ``missing-partner``, ``rank-mismatch``, ``bad-shape``,
                ``not-finite``, ``not-float``, ``overflow``, ``unknown-key``, ``bad-config``.
        """
        store, config, method = source.file, dict(source.config or {}), self.method
        method.check_config(config, f"{source.where}: {CONFIG_NAME}")
        coded = [key for key in store.tensors if method.coded.fullmatch(key)]
        if not coded:
            looks_like = describe_keys(store.tensors)
            if looks_like is None:
                message = f"no tensors of {method.title} in it"
                raise AdapterError(message, code="empty-adapter", where=source.where)
            message = f"{CONFIG_NAME} says {method.title}, and the keys look like {looks_like}"
            if any(self._is_own(key) for key in store.tensors):
                message = f"the trained numbers of {method.title} are missing; only their frozen part is in it"
                raise AdapterError(message, code="missing-partner", where=source.where)
            raise AdapterError(message, code="foreign-dialect", where=source.where)
        method.check_shapes({key: info.shape for key, info in store.tensors.items()}, config, store.name)
        # A coded record cannot give float64 values back exactly, so they are carried.
        infos = {key: store.tensors[key] for key in sorted(coded) if method.may_code(key, store.tensors[key].shape)}
        vectors = {key: read_vector(store, key) for key, info in infos.items() if info.dtype in CODED_DTYPES}
        raw = {}
        for key in sorted(set(store.tensors) - set(vectors)):
            if not carry_unknown and not self._is_known(key, config):
                message = f"unknown key: it does not belong to {method.title}, and is not in {CONFIG_NAME}"
                raise AdapterError(message, code="unknown-key", where=f"{store.name}: {key}")
            raw[key] = read_carried(store, key)
        adapter = Adapter(self.name, (), raw, config, dict(store.metadata), tuple(vectors.values()))
        return _with_gains(adapter, self.combined_deltas(adapter), method)

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Raise what the method's `check_config` raises."""
        self.method.check_config(config, where)

    def coding_rules(self, adapter: Adapter) -> CodingRules:
        """Return the rules of these methods."""
        title = self.method.title
        return CodingRules(
            # The objective `effective` assumes that noise hurts little, which was measured on low-rank factors only.
            objectives=("nmse",),
            objectives_reason=f"{title} is coded by the NMSE; other objectives, fits and weights are for low-rank "
            "factors",
            rank_reason=f"the rank of {title} is that of its frozen part; leave out rank",
            exact_note=f"the numbers of {title} are carried exact; a rate (--size, --ratio, --nmse, --bits) codes "
            "them, and loses something",
            gains_are_estimates=True,
            unknown_note=f"errors are those of the trained numbers of {title}, since the file does not tell the deltas",
            estimated_note="errors of {estimated} of {coded} deltas are estimated from the trained numbers: the deltas "
            "are too large to be made again and again",
            measured_note="errors are those of the trained numbers, since only the model tells the shapes of the deltas"
            if self.method.needs_layer_shape
            else f"errors are measured on the deltas of {title}",
            reduce=self.method.reduce,
        )

    def combined_deltas(self, adapter: Adapter) -> tuple[SeededDelta, ...]:
        """Return a delta for each module that the file tells. Raises AdapterError ``bad-shape``, ``bad-config``."""
        return make_deltas(self.method, adapter)

    def is_trained(self, name: str, tensor: RawTensor) -> bool:
        """Return True for a carried tensor that the method may code."""
        return self.method.may_code(name, tensor.shape)

    def may_be_rounded(self, key: str) -> bool:
        """Return False for the tensors of the method."""
        return not self._is_own(key) and super().may_be_rounded(key)

    def require_complete(self, adapter: Adapter, where: str) -> None:
        """Raise AdapterError ``merge-projections`` for deltas that the file does not tell."""
        missing = self.method.describe_missing(MethodTensors(adapter), adapter.config or {})
        if missing:
            raise AdapterError(missing, code="merge-projections", where=where)

    def merge_targets(
        self, adapter: Adapter, found: Mapping[str, Sequence[AdapterDelta]], base: BaseModel, where: str
    ) -> list[MergeTarget]:
        """Return the target of each delta; arguments as in `Dialect`.

        Raises:
            AdapterError: ``merge-projections`` for deltas that the file does not tell.
        """
        self.require_complete(adapter, where)
        flag = bool((adapter.config or {}).get("fan_in_fan_out"))
        targets = []
        for name, (delta,) in found.items():
            weight = base.find(f"{module_path(name)}.weight")
            stored = () if weight is None else base.shapes[weight]
            turned = base.is_transposed(module_path(name), flag)
            fits = delta.composite is not None and delta.composite.fits
            # An embedding is stored as PEFT makes its delta, also in a model whose linear layers are stored (in, out).
            if turned and fits and not fits(stored[::-1]) and fits(stored):
                turned = False
            shape = stored[::-1] if turned else stored
            shape = shape if fits and fits(shape) else delta.shape
            targets.append(MergeTarget(name, "linear", shape, fan_in_fan_out=turned))
        return targets

    def model_tensors(self, adapter: Adapter) -> dict[str, RawTensor]:
        """Return the carried tensors of the model itself, without those of the method."""
        return {name: tensor for name, tensor in adapter.raw.items() if not self._is_own(name)}

    def _is_own(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in (self.method.coded, self.method.exact))

    def _is_known(self, key: str, config: Mapping[str, Any]) -> bool:
        """Return True for a tensor of the method, and for one that the configuration says is saved with it."""
        has_biases = config.get("bias", "none") != "none"
        saved = is_saved_embedding(key) or is_saved_module(key, config) or (has_biases and key.endswith(".bias"))
        return saved or self._is_own(key)


class PeftSpectra(PeftSeeded):
    """PEFT's dialect for a method whose layers only the model tells the shapes of."""

    needs_layer_shape = True


PEFT_UNILORA, PEFT_TINYLORA, PEFT_VBLORA = PeftSeeded(UNILORA), PeftSeeded(TINYLORA), PeftSeeded(VBLORA)
PEFT_FOURIERFT, PEFT_WAVEFT = PeftSpectra(FOURIERFT), PeftSpectra(WAVEFT)


def _with_gains(adapter: Adapter, deltas: Sequence[SeededDelta], method: SeededMethod) -> Adapter:
    """Set the gain of each vector: the norm of a small change of the deltas over that of the change that caused it."""
    values: dict[str, Float64Array] = {v.name: v.values.astype(np.float64) for v in adapter.vectors}
    users: dict[str, list[SeededDelta]] = {name: [] for name in values}
    for delta in deltas:
        for part in delta.parts if delta.is_measurable else ():
            users[part].append(delta)
    vectors = []
    for vector in adapter.vectors:
        own = values[vector.name]
        size = _STEP * (math.sqrt(float(np.mean(np.square(own)))) or 1.0)
        change = np.random.default_rng(0).choice((-size, size), own.shape)
        changed = {**values, vector.name: own + change}
        moved = sum(delta.squared_distance(changed, values) for delta in users[vector.name])
        gain = math.sqrt(moved) / float(np.linalg.norm(change)) if moved > 0 else 1.0
        vectors.append(replace(vector, gain=gain))
    return replace(adapter, vectors=tuple(vectors))
