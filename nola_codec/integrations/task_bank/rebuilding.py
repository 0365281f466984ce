"""Rebuild a packed file: decode it, and give each of its deltas its weight of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.arrays import Arrays
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError
from nola_codec.merger.arithmetic.deltas import RowDelta, factor_delta
from nola_codec.merger.memory_change import MemoryChange, plan_change
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.merge_files import decode_merge_file
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.weight_places import Place
from nola_codec.model.records import CodedKind

if TYPE_CHECKING:
    import torch

_FIRST_ROWS = 16
"""The rows of lora_B that are looked at first for components that are not zero; all rows take ten times as long."""


@dataclass(frozen=True)
class WeightPair:
    """A pair of factors that is the whole delta of one weight, without components that are zero.

    Attributes:
        kind: The kind of the record.
        decoded: lora_B (out, r) and lora_A (r, in), int16, and their exponents; r is the number of components left.
        transposed: True if the weight is stored (in, out).
        xp: The arrays that `decoded` is made of.
    """

    kind: CodedKind
    decoded: DecodedRecord
    transposed: bool
    xp: Arrays

    @classmethod
    def of(cls, kind: CodedKind, decoded: DecodedRecord, place: Place, xp: Arrays) -> WeightPair:
        """Return the pair of a decoded record."""
        return cls(kind, _trimmed(decoded, xp), place.transposed, xp)

    @property
    def rank(self) -> int:
        """The number of components."""
        return int(self.decoded.sides[1].shape[0])

    @property
    def nbytes(self) -> int:
        """The size of both factors in bytes."""
        return sum(2 * math.prod(side.shape) for side in self.decoded.sides)

    def factors(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lora_A (r, in) and lora_B (out, r); the scaling is multiplied into lora_B.

        lora_A is exact in float32, and so is lora_B if the scaling is a power of two; otherwise the product is computed
        in float64 and rounded to float32. Other dtypes are rounded from float32.

        Raises:
            AdapterError: ``overflow``: a number leaves the range of the dtype.
        """
        lora_B, lora_A = (_tensor(side) for side in self.decoded.sides)
        exponent_B, exponent_A = self.decoded.exponents
        scaling = self.kind.scaling
        single = lora_A.float().mul_(2.0**exponent_A)
        if math.frexp(scaling)[0] == 0.5:
            scaled = lora_B.float().mul_(2.0**exponent_B * scaling)
        else:
            scaled = lora_B.double().mul_(2.0**exponent_B * scaling).float()
        made = single.to(device, dtype), scaled.to(device, dtype)
        if not _is_wide(dtype) and not all(bool(factor.isfinite().all()) for factor in made):
            raise AdapterError(f"a factor leaves the range of {dtype}", code="overflow")
        return made

    def delta(self, shape: tuple[int, ...]) -> RowDelta:
        """Return the delta as rows of the weight, which has this shape; for a pair of NumPy arrays."""
        return factor_delta(self.decoded, self.kind, self.xp, shape, transposed=self.transposed)


@dataclass(frozen=True)
class RebuiltTask:
    """A decoded file, each delta with its weight.

    Attributes:
        pairs: The pairs of factors, by the name of the weight.
        rest: The deltas that are no pair of factors, and the tensors that the file brings; None if there are none.
    """

    pairs: Mapping[str, WeightPair]
    rest: MemoryChange | None = None

    @cached_property
    def nbytes(self) -> int:
        """The memory that the task takes, in bytes."""
        total = sum(pair.nbytes for pair in self.pairs.values())
        if self.rest is not None:
            adapter = self.rest.file.adapter
            total += 4 * sum(module.lora_A.size + module.lora_B.size for module in adapter.modules)
            total += 4 * sum(vector.values.size for vector in adapter.vectors)
            total += sum(len(tensor.data) for tensor in adapter.raw.values())
            records = self.rest.file.decoded.values()
            total += sum(2 * math.prod(side.shape) for record in records for side in record.sides)
        return total


def rebuild_pairs(decoder: Decoder, places: Mapping[str, Place], *, verify: bool) -> RebuiltTask:
    """Decode a file that has pairs of factors alone.

    Args:
        decoder: The file.
        places: The place of each pair, by weight.
        verify: True compares the decoded SHA-256.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
    """
    records = decoder.decode_all() if verify else [record for _, record in decoder.decode()]
    found = {record.name: (record.kind, made) for record, made in zip(decoder.header.pairs, records, strict=True)}
    return RebuiltTask(
        {weight: WeightPair.of(*found[place.module], place, decoder.xp) for weight, place in places.items()}
    )


def rebuild_any(decoder: Decoder, name: str, memory: MemoryModel, base: WeightShapes) -> RebuiltTask:
    """Decode a file of any kind, and find the place of everything in it. The decoded SHA-256 is compared.

    Args:
        decoder: The file.
        name: The file's name, for messages.
        memory: The model.
        base: The weights of the model by name.

    Raises:
        AdapterError: Those of `plan_change`.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    file = decode_merge_file(decoder, name)
    change = plan_change(file, memory, base)
    pairs = {
        weight: WeightPair.of(file.kinds[place.module], file.decoded[place.module], place, file.xp)
        for weight, place in change.pairs.items()
    }
    rest = change.without(pairs)
    return RebuiltTask(pairs, rest if rest.weights else None)


def _trimmed(decoded: DecodedRecord, xp: Arrays) -> DecodedRecord:
    """Return a pair without the components of which one side is zero."""
    lora_B, lora_A = decoded.sides
    used = xp.numpy((lora_A != 0).any(1))
    kept = np.flatnonzero(used)
    if not _has_all(lora_B[:_FIRST_ROWS], kept, xp):
        kept = np.flatnonzero(used & xp.numpy((lora_B != 0).any(0)))
    if len(kept) == len(used):
        return decoded
    return DecodedRecord((_take(lora_B, kept, 1), _take(lora_A, kept, 0)), decoded.exponents)


def _has_all(rows: Any, components: np.ndarray[Any, np.dtype[np.intp]], xp: Arrays) -> bool:
    """Return True if some rows of lora_B (rows, r) have a number other than zero in each of these components."""
    return bool(xp.numpy((rows != 0).any(0))[components].all())


def _take(side: Any, kept: np.ndarray[Any, np.dtype[np.intp]], axis: int) -> Any:
    """Return some rows or columns of a side as an array of its own."""
    if isinstance(side, np.ndarray):
        return np.ascontiguousarray(side.take(kept, axis))
    import torch

    return side.index_select(axis, torch.from_numpy(kept).to(side.device))


def _tensor(array: Any) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor


def _is_wide(dtype: torch.dtype) -> bool:
    """Return True for a dtype with at least the range of float32."""
    import torch

    return torch.finfo(dtype).max >= torch.finfo(torch.bfloat16).max
