"""The content of an adapter of any dialect.

Shapes follow PEFT: ``delta_W (out, in) = scaling * lora_B (out, r) @ lora_A (r, in)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from nola_codec.array_types import Float32Array
from nola_codec.model.tensors import Draw, RawTensor

Layout = Literal["linear", "conv", "embedding"]
Origin = Literal["tensor", "config", "metadata", "option", "dialect", "assumed", ""]
ORIGINS: tuple[Origin, ...] = ("tensor", "config", "metadata", "option", "dialect", "assumed", "")
"""The places that a scaling can come from: the alphas in the tensors, a configuration, the metadata, the user; or
``dialect``: the dialect defines it; ``assumed``: it is a guess; the empty string: it is not known."""


class Codable(Protocol):
    """A tensor or a pair of factors that the encoder codes, as one or two sides.

    Attributes:
        name: The module path of a pair, or the full key of a tensor.
        dtype: The dtype in the source, one of DTYPES.
        sides: float32 arrays: (lora_B (out, r), lora_A (r, in)) of a pair, (values,) of a tensor.
        stored_shapes: Shapes of the sides as stored in the adapter, e.g. (out, r, 1, 1) and (r, in, kh, kw).
        is_pair: True for a pair of factors, whose delta is ``scaling * lora_B @ lora_A``.
        rank: The number of units that it can have: the components of a pair, 1 for a tensor.
        vector_lengths: The length of a unit's vector on each side: (out, in) of a pair, (elements,) of a tensor.
        is_whole_delta: True if the sides alone make the delta of a weight.
        error_gain: The error of the delta over the error of the sides' product, or of the tensor, both as norms; 0
            for a tensor that is no part of a delta.
        is_carried: True for a carried tensor that is coded (`--carried coded`), which is no part of a delta.
        layout, scaling, fan_in_fan_out: As in `LoraModule`; ``"linear"``, 1 and False for a tensor.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def sides(self) -> tuple[Float32Array, ...]: ...
    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def is_pair(self) -> bool: ...
    @property
    def rank(self) -> int: ...
    @property
    def vector_lengths(self) -> tuple[int, ...]: ...
    @property
    def is_whole_delta(self) -> bool: ...
    @property
    def error_gain(self) -> float: ...
    @property
    def is_carried(self) -> bool: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def scaling(self) -> float: ...
    @property
    def fan_in_fan_out(self) -> bool: ...


@dataclass(frozen=True)
class LoraModule:
    """One adapted weight: two factors, and the numbers that turn them into a delta.

    Attributes:
        name: The module path as the adapter writes it, without the suffix of the factor
            (``base_model.model.model.layers.0.self_attn.q_proj``).
        lora_A: float32 (r, in); that of a convolution is flattened to (r, in * kh * kw).
        lora_B: float32 (out, r).
        a_shape: The shape of lora_A as stored in the adapter, e.g. (r, in, kh, kw).
        b_shape: The shape of lora_B as stored in the adapter, e.g. (out, r, 1, 1).
        scaling: alpha / r or alpha / sqrt(r); ``delta_W = scaling * lora_B @ lora_A``.
        layout: The kind of layer, which decides the keys of the factors and the shape of delta_W.
        fan_in_fan_out: True if the base weight is stored as (in, out), like Conv1D of GPT-2.
        dtype: The dtype of both factors in the source, one of DTYPES.
        gain: The norm of an error of the delta over that of ``lora_B @ lora_A``; None stands for ``|scaling|``. It is
            another number if the product is only a part of the delta (LoHa, LoKr).
    """

    name: str
    lora_A: Float32Array
    lora_B: Float32Array
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    scaling: float
    layout: Layout = "linear"
    fan_in_fan_out: bool = False
    dtype: str = "F32"
    gain: float | None = None

    @property
    def sides(self) -> tuple[Float32Array, Float32Array]:
        """(lora_B, lora_A), which is their order in a file."""
        return self.lora_B, self.lora_A

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(b_shape, a_shape)."""
        return self.b_shape, self.a_shape

    @property
    def is_pair(self) -> bool:
        """Always True; see `Codable`."""
        return True

    @property
    def rank(self) -> int:
        """The number of columns of lora_B and of rows of lora_A."""
        return int(self.lora_A.shape[0])

    @property
    def is_carried(self) -> bool:
        """Always False; see `Codable`."""
        return False

    @property
    def is_whole_delta(self) -> bool:
        """True if ``scaling * lora_B @ lora_A`` is a whole delta, False if it is a part of one."""
        return self.gain is None

    @property
    def error_gain(self) -> float:
        """The `gain`, or its default."""
        return abs(self.scaling) if self.gain is None else self.gain

    @property
    def vector_lengths(self) -> tuple[int, int]:
        """(out, in): the lengths of a column of lora_B and of a row of lora_A."""
        return int(self.lora_B.shape[0]), int(self.lora_A.shape[1])


@dataclass(frozen=True)
class VectorTensor:
    """A tensor that is coded as one flat vector: the change of a bias or a norm, a dense delta, a part of a LoKr.

    Attributes:
        name: The full key of the tensor.
        values: float32, in the shape of the tensor.
        dtype: The dtype in the source, one of DTYPES.
        gain: The norm of an error of the delta over that of the tensor.
        is_carried: As in `Codable`.
    """

    name: str
    values: Float32Array
    dtype: str = "F32"
    gain: float = 1.0
    is_carried: bool = False

    @property
    def sides(self) -> tuple[Float32Array]:
        """(values,)."""
        return (self.values,)

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...]]:
        """(values.shape,)."""
        return (self.values.shape,)

    @property
    def is_pair(self) -> bool:
        """Always False; see `Codable`."""
        return False

    @property
    def rank(self) -> int:
        """1: a vector has one unit."""
        return 1

    @property
    def vector_lengths(self) -> tuple[int]:
        """(elements,)."""
        return (int(self.values.size),)

    @property
    def is_whole_delta(self) -> bool:
        """Always False: the dialect decides how the tensor changes a weight."""
        return False

    @property
    def error_gain(self) -> float:
        """The `gain`; 0 for a carried tensor."""
        return 0.0 if self.is_carried else self.gain

    @property
    def layout(self) -> Layout:
        """``"linear"``; only a pair can have another layout."""
        return "linear"

    @property
    def scaling(self) -> float:
        """1; only a pair can have another scaling."""
        return 1.0

    @property
    def fan_in_fan_out(self) -> bool:
        """Always False; only a pair can have True."""
        return False


@dataclass(frozen=True)
class BaseReference:
    """A reference to a tensor of the base model.

    Attributes:
        sha256: The SHA-256 of the tensor's bytes in the base model.
        norm: The Frobenius norm of the carried tensor that the change stands for; 0 for a decoded file, which does not
            say it.
    """

    sha256: bytes
    norm: float = 0.0


@dataclass(frozen=True)
class BaseEntry:
    """The base model that an adapter was trained on (`spec/conventions.md`, "Base models").

    Attributes:
        name: The name of the model, such as that of its repository; it may be empty.
        revision: The revision of the model, such as a commit of its repository; it may be empty.
        sha256: The fingerprint of its weights, 32 bytes.
    """

    name: str
    revision: str
    sha256: bytes


@dataclass(frozen=True)
class Adapter:
    """An adapter of any dialect, as read.

    Attributes:
        dialect: The name of the dialect, such as ``"peft"``; see `adapters.DIALECTS`.
        modules: The pairs of factors, in the order of their names.
        vectors: The tensors that are coded, and are not pairs of factors.
        raw: The carried tensors by their full keys: biases, DoRA magnitudes, modules_to_save.
        config: The parsed ``adapter_config.json``, or None for a lone file.
        metadata: The ``__metadata__`` of the safetensors file.
        draws: The draws of some tensors of `raw`, by key: a file holds the draw in place of the tensor.
        notes: Sentences that tell the user how the adapter was read.
        references: For each vector that is a change of a tensor of the base model in place of a carried tensor, by
            name, which tensor that is.
        scale_origin: The place that the scalings came from, one of `ORIGINS`.
        base: The base model that it was trained on, if it is known.
    """

    dialect: str
    modules: tuple[LoraModule, ...]
    raw: Mapping[str, RawTensor] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[VectorTensor, ...] = ()
    draws: Mapping[str, Draw] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    references: Mapping[str, BaseReference] = field(default_factory=dict)
    scale_origin: Origin = ""
    base: BaseEntry | None = None

    @property
    def parameters(self) -> int:
        """The number of elements in factors, vectors and carried tensors together; drawn tensors do not count."""
        return (
            sum(m.lora_A.size + m.lora_B.size for m in self.modules)
            + sum(v.values.size for v in self.vectors)
            + sum(math.prod(t.shape) for key, t in self.raw.items() if key not in self.draws)
        )
