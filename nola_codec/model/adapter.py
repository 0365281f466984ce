"""An adapter of any dialect, read whole.

Shapes follow PEFT: ``delta_W (out, in) = scaling * lora_B (out, r) @ lora_A (r, in)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nola_codec.model.tensors import Draw, RawTensor

Layout = Literal["linear", "conv", "embedding"]


class Codable(Protocol):
    """A tensor or pair of factors that the encoder codes, seen as its sides.

    Attributes:
        name: Module path of a pair, full key of a tensor.
        dtype: Source dtype, one of DTYPES.
        sides: float32 (lora_B (out, r), lora_A (r, in)) of a pair, (values,) of a tensor.
        stored_shapes: Shapes of the sides as stored in the adapter, e.g. (out, r, 1, 1) and (r, in, kh, kw).
        is_pair: True for a pair of factors: its delta is ``scaling * lora_B @ lora_A``.
        rank: Units that it can have: components of a pair, 1 for a tensor.
        vector_lengths: Length of a unit's vector on each side: (out, in) of a pair, (elements,) of a tensor.
        is_whole_delta: True where the sides alone make the delta of a weight.
        error_gain: Factor on an error of the sides' product, or of the tensor, on its way into the delta.
        layout, scaling, fan_in_fan_out: As in `LoraModule`; ``"linear"``, 1 and False for a tensor.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def sides(self) -> tuple[npt.NDArray[np.float32], ...]: ...
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
    def layout(self) -> Layout: ...
    @property
    def scaling(self) -> float: ...
    @property
    def fan_in_fan_out(self) -> bool: ...


@dataclass(frozen=True)
class LoraModule:
    """One adapted weight: two factors and what turns them into a delta.

    Attributes:
        name: Module path as the adapter writes it, without the factor suffix
            (``base_model.model.model.layers.0.self_attn.q_proj``).
        lora_A: float32 (r, in); convolutions flattened to (r, in * kh * kw).
        lora_B: float32 (out, r).
        a_shape: Shape of lora_A as stored in the adapter, e.g. (r, in, kh, kw).
        b_shape: Shape of lora_B as stored, e.g. (out, r, 1, 1).
        scaling: alpha / r or alpha / sqrt(r); ``delta_W = scaling * lora_B @ lora_A``.
        layout: How the factors' keys are spelt and how delta_W is shaped.
        fan_in_fan_out: True where the base weight is stored (in, out) (Conv1D of GPT-2).
        dtype: Source dtype of both factors, one of DTYPES.
        gain: Factor on an error of ``lora_B @ lora_A`` on its way into the delta; None is ``|scaling|``.
            It differs where the product is only a part of the delta (LoHa, LoKr).
    """

    name: str
    lora_A: npt.NDArray[np.float32]
    lora_B: npt.NDArray[np.float32]
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    scaling: float
    layout: Layout = "linear"
    fan_in_fan_out: bool = False
    dtype: str = "F32"
    gain: float | None = None

    @property
    def sides(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(lora_B, lora_A), the order of a file."""
        return self.lora_B, self.lora_A

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(b_shape, a_shape)."""
        return self.b_shape, self.a_shape

    @property
    def is_pair(self) -> bool:
        """True: see `Codable`."""
        return True

    @property
    def rank(self) -> int:
        """Columns of lora_B and rows of lora_A."""
        return int(self.lora_A.shape[0])

    @property
    def is_whole_delta(self) -> bool:
        """True where ``scaling * lora_B @ lora_A`` is a delta by itself, not a part of one."""
        return self.gain is None

    @property
    def error_gain(self) -> float:
        """`gain` after its default."""
        return abs(self.scaling) if self.gain is None else self.gain

    @property
    def vector_lengths(self) -> tuple[int, int]:
        """(out, in): lengths of a column of lora_B and a row of lora_A."""
        return int(self.lora_B.shape[0]), int(self.lora_A.shape[1])


@dataclass(frozen=True)
class VectorTensor:
    """A tensor that is coded as one flat vector: the change of a bias or a norm, a dense delta, a part of a LoKr.

    Attributes:
        name: Its full key.
        values: float32, in its shape.
        dtype: Source dtype, one of DTYPES.
        gain: Factor on an error of the tensor on its way into the delta.
    """

    name: str
    values: npt.NDArray[np.float32]
    dtype: str = "F32"
    gain: float = 1.0

    @property
    def sides(self) -> tuple[npt.NDArray[np.float32]]:
        """(values,)."""
        return (self.values,)

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...]]:
        """(values.shape,)."""
        return (self.values.shape,)

    @property
    def is_pair(self) -> bool:
        """False: see `Codable`."""
        return False

    @property
    def rank(self) -> int:
        """1, the units that it can have."""
        return 1

    @property
    def vector_lengths(self) -> tuple[int]:
        """(elements,)."""
        return (int(self.values.size),)

    @property
    def is_whole_delta(self) -> bool:
        """False: a dialect decides what the tensor is to a weight."""
        return False

    @property
    def error_gain(self) -> float:
        """`gain`."""
        return self.gain

    @property
    def layout(self) -> Layout:
        """``"linear"``: only pairs have another."""
        return "linear"

    @property
    def scaling(self) -> float:
        """1: only pairs have another."""
        return 1.0

    @property
    def fan_in_fan_out(self) -> bool:
        """False: only pairs can have it."""
        return False


@dataclass(frozen=True)
class Adapter:
    """An adapter of any dialect, read whole.

    Attributes:
        dialect: ``"peft"`` and others, see `adapters.DIALECTS`.
        modules: In the order of their names.
        vectors: Tensors that are coded, and are not pairs of factors.
        raw: Tensors carried exact: biases, DoRA magnitudes, modules_to_save. Keyed by their full key.
        config: ``adapter_config.json`` as parsed, or None for a lone file.
        metadata: safetensors ``__metadata__``.
        draws: For keys of `raw`, how to make that tensor again: the file holds this in its place.
        notes: Sentences for the user about the way it was read.
    """

    dialect: str
    modules: tuple[LoraModule, ...]
    raw: Mapping[str, RawTensor] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[VectorTensor, ...] = ()
    draws: Mapping[str, Draw] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in the factors, the vectors and the raw tensors together; what a seed makes is none."""
        return (
            sum(m.lora_A.size + m.lora_B.size for m in self.modules)
            + sum(v.values.size for v in self.vectors)
            + sum(int(np.prod(t.shape, dtype=np.int64)) for key, t in self.raw.items() if key not in self.draws)
        )
