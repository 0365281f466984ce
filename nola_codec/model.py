"""What the layers hand to each other: frozen dataclasses, no behaviour beyond derived sizes.

Shapes follow PEFT: ``delta_W (out, in) = scaling * lora_B (out, r) @ lora_A (r, in)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Layout = Literal["linear", "conv", "embedding"]

# Names of safetensors; the index in this tuple is the id in a file.
DTYPES: tuple[str, ...] = (
    "F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64", "F8_E4M3", "F8_E5M2",
)  # fmt: skip
DTYPE_BYTES: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class RawTensor:
    """A tensor carried as it came: little-endian bytes, row-major.

    Example: ``RawTensor("F32", (576,), data)`` with ``len(data) == 2304``.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


DrawMethod = Literal["uniform", "uniform-fused", "ternary"]


@dataclass(frozen=True)
class Draw:
    """A tensor that a library drew with MT19937 and that is drawn again instead of being stored.

    Specification, "Drawn tensors"; `prng.draws` makes it.

    Attributes:
        shape: Of the tensor.
        dtypes: Of "F32", "F16", "BF16": what is drawn, and what it was cast to since; the last is the tensor's.
        method: ``"uniform"``: low + u * (high - low), each operation rounded to float32; ``"uniform-fused"``: product
            and sum rounded together. ``"ternary"``: -1 where u < low, 1 where u > high, else 0.
        digits: Low bits of a word that make u: 24, 11 or 8.
        seed: 0 to 2^32 - 1.
        start: Words of the sequence before this tensor's first.
        axis: 0: elements are drawn in row-major order; 1: so are those of each slice along dimension 1, slice by slice.
        low, high: Exact in float32.
        divisor: What is drawn is divided by it, or None.
    """

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    method: DrawMethod
    digits: int
    seed: int
    start: int
    axis: int
    low: float
    high: float
    divisor: float | None = None

    @property
    def dtype(self) -> str:
        return self.dtypes[-1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def words(self) -> int:
        """Words of the sequence up to its end."""
        return self.start + self.elements


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
        fan_in_fan_out: The base weight is stored (in, out) (Conv1D of GPT-2).
        dtype: Source dtype of both factors, one of DTYPES.
        gain: What an error of ``lora_B @ lora_A`` is multiplied by on its way into the delta; None is ``|scaling|``.
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
    def rank(self) -> int:
        return int(self.lora_A.shape[0])

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
        gain: What an error of the tensor is multiplied by on its way into the delta.
    """

    name: str
    values: npt.NDArray[np.float32]
    dtype: str = "F32"
    gain: float = 1.0

    @property
    def rank(self) -> int:
        """Units that it can have."""
        return 1

    @property
    def error_gain(self) -> float:
        return self.gain

    @property
    def vector_lengths(self) -> tuple[int]:
        return (int(self.values.size),)


Codable = LoraModule | VectorTensor
"""What the encoder codes: a tensor of a file's coded records."""


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
        notes: What the user should know of how it was read, in sentences.
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


@dataclass(frozen=True)
class Codebook:
    """Integer reconstruction points in ascending order; a symbol is an index into them.

    `form` says how the file spells it:
        ``"symmetric"``: the positive points only; 0 and the mirror images are implied.
        ``"points"``: every point.
        ``"midtread"``: -2^(b-1) .. 2^(b-1) - 1.
        ``"midrise"``: the odd numbers -(2^b - 1) .. 2^b - 1.

    Example: ``Codebook("symmetric", (-31, 0, 31))``.
    """

    form: Literal["symmetric", "points", "midtread", "midrise"]
    points: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.points)

    @property
    def peak(self) -> int:
        return max(abs(self.points[0]), abs(self.points[-1]))

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return count


@dataclass(frozen=True)
class Trellis:
    """Coefficients chosen by a sliding window over the vector's own bits (specification, "Trellis").

    A step of `bits` bits gives `stride` coefficients: coefficient j of a step is levels[i], i being the number spelt by
    the parities of the window under masks[j], the first mask's parity the highest bit.

    Attributes:
        number: Its id in a file.
        bits: Of a step, 1 or 2.
        masks: For each coefficient of a step, 8-bit masks.
        levels: The points that a coefficient can take.
    """

    number: int
    bits: int
    masks: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]

    @property
    def stride(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> int:
        """Symbols: one for each value of a step's bits."""
        return 1 << self.bits

    @property
    def peak(self) -> int:
        return max(self.levels)

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return -(-count // self.stride)


@dataclass(frozen=True)
class Dependent:
    """Two symmetric codebooks of one size; which one holds is decided by the parities of the eight levels before.

    Attributes:
        mask: Of the window of parities, 8 bits; an even number of ones under it chooses `even`, an odd one `odd`.
        even, odd: Positive points, ascending.
    """

    mask: int
    even: tuple[int, ...]
    odd: tuple[int, ...]

    @property
    def size(self) -> int:
        return 2 * len(self.even) + 1

    @property
    def peak(self) -> int:
        return max(self.even[-1], self.odd[-1])

    def run(self, count: int) -> int:
        """Symbols that `count` coefficients take."""
        return count


Book = Codebook | Trellis | Dependent


@dataclass(frozen=True)
class SymbolModel:
    """What an entropy codec knows of the symbols of one run: the alphabet, and frequencies of 2^12 in total or None."""

    size: int
    frequencies: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Runs:
    """How a symbol stream is made up: run i has `lengths[i]` symbols of model `models[i]`.

    Both are int64 arrays of one length. The symbols themselves follow one another in the order of the runs.
    """

    models: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.lengths.sum())


Split = Literal["component", "factor"]


@dataclass(frozen=True)
class LowRankKind:
    """What low-rank records of one family share; a file lists each kind once.

    Attributes:
        template: Name with every run of digits replaced by ``#``.
        layout, b_shape, a_shape, scaling, fan_in_fan_out, dtype: As in `LoraModule`.
        basis: Basis id.
        split: ``"component"``: each column of lora_B and each row of lora_A is a vector of its own, one *unit* being
            such a pair. ``"factor"``: each factor is one flat vector, lora_B then lora_A being the two units.
        num_basis: Coefficients of each vector of lora_B and of lora_A.
        tables: Allocation tables of lora_B and of lora_A, as numbers in each rung's `allocation`.
        shift: Added to a unit's precision before these are looked up.
        amplitude: Constant part of the prediction of a unit's amplitude code.
    """

    template: str
    layout: Layout
    b_shape: tuple[int, ...]
    a_shape: tuple[int, ...]
    scaling: float
    fan_in_fan_out: bool
    dtype: str
    basis: int
    split: Split
    num_basis: tuple[int, int]
    tables: tuple[int, int] = (0, 1)
    shift: tuple[int, int] = (0, 0)
    amplitude: int = 0

    @property
    def rank(self) -> int:
        return self.a_shape[0]

    @property
    def rows(self) -> int:
        """out: length of a column of lora_B."""
        return self.b_shape[0]

    @property
    def columns(self) -> int:
        """in, or in * kh * kw: length of a row of lora_A."""
        return int(np.prod(self.a_shape[1:], dtype=np.int64))

    @property
    def vector_lengths(self) -> tuple[int, int]:
        """Length of one vector of lora_B and of lora_A."""
        if self.split == "component":
            return self.rows, self.columns
        return self.rows * self.rank, self.columns * self.rank

    @property
    def elements(self) -> int:
        """Numbers in both factors."""
        return self.rank * (self.rows + self.columns)

    @property
    def most_units(self) -> int:
        return self.rank if self.split == "component" else 2

    def unit_sides(self, unit: int) -> tuple[int, ...]:
        """Sides on which a unit has a vector."""
        return (0, 1) if self.split == "component" else (unit,)

    def vectors(self, units: int) -> int:
        """Vectors of each side of a record with so many units."""
        return units if self.split == "component" else units // 2


@dataclass(frozen=True)
class VectorKind:
    """What vector records of one family share: a low-rank record of one component that has no second side.

    Attributes:
        template: Name with every run of digits replaced by ``#``.
        dtype, shape: Of the tensor.
        basis: Basis id.
        num_basis: Coefficients of the vector.
        tables, shift, amplitude: As in `LowRankKind`.
    """

    template: str
    dtype: str
    shape: tuple[int, ...]
    basis: int
    num_basis: tuple[int]
    tables: tuple[int] = (0,)
    shift: tuple[int] = (0,)
    amplitude: int = 0

    split: ClassVar[Split] = "component"
    most_units: ClassVar[int] = 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def vector_lengths(self) -> tuple[int]:
        return (self.elements,)

    def unit_sides(self, unit: int) -> tuple[int, ...]:
        """Sides on which a unit has a vector."""
        return (0,)

    def vectors(self, units: int) -> int:
        """Vectors of a record with so many units."""
        return units


CodedKind = LowRankKind | VectorKind


@dataclass(frozen=True)
class RawKind:
    """A family of tensors carried as they came."""

    template: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]  # no fixed width: shapes of a damaged file may overflow


@dataclass(frozen=True)
class DrawnKind:
    """A family of tensors that are one draw."""

    template: str
    draw: Draw


Kind = CodedKind | RawKind | DrawnKind


@dataclass(frozen=True)
class CodedRecord:
    """One tensor, or pair of factors, that is coded, as it stands at one rung of a file.

    Attributes:
        name: Module path, or a vector's full key.
        kind: Its family.
        stream: Stream number of its basis; lora_B or a vector uses stream 2 * n, lora_A 2 * n + 1.
        entry: int64 (units,): rung at which each unit came in, ascending.
        exponents: Power of two of each side's int16 form: of lora_B and lora_A, or of the vector.
        precision: int64 (units,), see `LowRankKind`; kept components come first, and what is not kept is zero.
        amplitude: int64 (units,): scale code; of the product or the vector in sixteenths of an octave for
            ``component``, of the factor in thirty-seconds for ``factor``. See `scale_codes`.
    """

    name: str
    kind: CodedKind
    stream: int
    exponents: tuple[int, ...]
    entry: npt.NDArray[np.int64]
    precision: npt.NDArray[np.int64]
    amplitude: npt.NDArray[np.int64]

    @property
    def units(self) -> int:
        return len(self.precision)

    def scale_codes(self, side: int) -> npt.NDArray[np.int64]:
        """Codes E of the vectors of one side, each of which is multiplied by 2^(E / 32), int64 (vectors,)."""
        if self.kind.split == "factor":
            return self.amplitude[side : side + 1]
        return self.amplitude * (2 // len(self.kind.vector_lengths))


@dataclass(frozen=True)
class LowRankRecord(CodedRecord):
    """One adapted weight: a pair of factors."""

    kind: LowRankKind
    exponents: tuple[int, int]


@dataclass(frozen=True)
class VectorRecord(CodedRecord):
    """One tensor coded as a flat vector."""

    kind: VectorKind
    exponents: tuple[int]


@dataclass(frozen=True)
class RawRecord:
    """One tensor carried as it came; its bytes are in a section of its own."""

    name: str
    kind: RawKind


@dataclass(frozen=True)
class DrawnRecord:
    """One tensor that is drawn again; no section has it."""

    name: str
    kind: DrawnKind


Record = CodedRecord | RawRecord | DrawnRecord


@dataclass(frozen=True)
class Quantizer:
    """How a vector's symbols become coefficients and, for rANS, the frequencies of the symbols."""

    codebook: Book
    frequencies: tuple[int, ...] | None = None

    @property
    def model(self) -> SymbolModel:
        return SymbolModel(self.codebook.size, self.frequencies)


Allocation = tuple[tuple[int, int, int, int], ...]
"""((precision, quantizer id or -1, offset, weight), ...), precisions ascending.

A vector of precision p uses the last entry not above p: a layer of this quantizer, its coefficients times
2^(weight / 8), or none. The offset is added to the prediction of its amplitude.
"""


@dataclass(frozen=True)
class Section:
    """A section's codec id, offset from the start of the data area, stored length, CRC-32 of the stored bytes."""

    codec: int
    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it adds to the rungs before it. Most files have one.

    Attributes:
        allocation: Tables that kinds refer to.
        units: Units of each coded record that are kept at this rung, those of the rungs before included.
        exponents: Of each record's sides, as decoded at this rung.
        side_models: Models of the units section's precisions and amplitudes.
        factors_sha256: Digest of what is decoded at this rung.
        measured: What the encoder measured at this rung.
    """

    allocation: tuple[Allocation, ...]
    units: tuple[int, ...]
    exponents: tuple[tuple[int, ...], ...]
    side_models: tuple[SymbolModel, SymbolModel]
    factors_sha256: bytes
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Header:
    """All of a file but its coefficients and raw tensors (specification, "Header").

    `coded` is the records at the last rung, low-rank ones first. `blocks[i]` is the number of records in block i.
    Sections are: units and blocks of rung 0, the raw tensors, then units and blocks of each further rung.
    """

    writer: str
    dialect: str
    generator: int
    seed: int
    quantizers: tuple[Quantizer, ...]
    rungs: tuple[Rung, ...]
    amplitude_slope: int
    coded: tuple[CodedRecord, ...]
    raw: tuple[RawRecord, ...]
    blocks: tuple[int, ...]
    sections: tuple[Section, ...]
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    drawn: tuple[DrawnRecord, ...] = ()

    @cached_property
    def lowrank(self) -> tuple[LowRankRecord, ...]:
        """The low-rank records; their numbers are those in `coded`."""
        return tuple(record for record in self.coded if isinstance(record, LowRankRecord))

    @cached_property
    def vectors(self) -> tuple[VectorRecord, ...]:
        """The vector records, which follow the low-rank ones in `coded`."""
        return tuple(record for record in self.coded if isinstance(record, VectorRecord))

    @property
    def last(self) -> Rung:
        """The finest rung."""
        return self.rungs[-1]

    @property
    def measured(self) -> Mapping[str, float]:
        """What the encoder measured at the last rung."""
        return self.last.measured

    @property
    def factors_sha256(self) -> bytes:
        """Digest of what is decoded at the last rung."""
        return self.last.factors_sha256

    def units_section(self, rung: int) -> int:
        """Number of the section of a rung's units; its blocks follow."""
        return rung * (1 + len(self.blocks)) + (len(self.raw) if rung else 0)

    def sections_at(self, rung: int) -> int:
        """Sections that a reader of this rung needs; they are the first ones."""
        return (rung + 1) * (1 + len(self.blocks)) + len(self.raw)

    def raw_section(self, index: int) -> int:
        """Number of the section of a raw tensor."""
        return 1 + len(self.blocks) + index
