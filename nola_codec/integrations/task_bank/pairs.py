"""`WeightPair`: a pair of factors that is the whole delta of one weight; and its factors as floating-point tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.arrays import Arrays, library_for
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError
from nola_codec.kernels import library
from nola_codec.kernels.sides import to_float32, trim_pairs
from nola_codec.merger.arithmetic.deltas import RowDelta, factor_delta
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

    @property
    def rank(self) -> int:
        """The number of components."""
        return int(self.decoded.sides[1].shape[0])

    @property
    def nbytes(self) -> int:
        """The size of both factors in bytes."""
        return sum(2 * math.prod(side.shape) for side in self.decoded.sides)

    def factors(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lora_A (r, in) and lora_B (out, r) as `float_factors` does."""
        ((lora_A, lora_B),) = float_factors([self], [dtype], [device])
        return lora_A, lora_B

    def delta(self, shape: tuple[int, ...]) -> RowDelta:
        """Return the delta as rows of the weight, which has this shape; for a pair of NumPy arrays."""
        return factor_delta(self.decoded, self.kind, self.xp, shape, transposed=self.transposed)


def float_factors(
    pairs: Sequence[WeightPair], dtypes: Sequence[torch.dtype], devices: Sequence[torch.device]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return lora_A (r, in) and lora_B (out, r) of each pair; the scaling is multiplied into lora_B.

    lora_A is exact in float32, and so is lora_B if the scaling is a power of two; otherwise the product is computed in
    float64 and rounded to float32. Other dtypes are rounded from float32.

    Args:
        pairs: The pairs.
        dtypes: The dtype of the factors of each.
        devices: The device of each.

    Raises:
        AdapterError: ``overflow``: a number leaves the range of its dtype.
    """
    made = []
    for lora_A, lora_B, dtype, device in zip(*_single_factors(pairs), dtypes, devices, strict=True):
        own = lora_A, lora_B
        if lora_A.dtype != dtype or lora_A.device != device:
            own = lora_A.to(device, dtype), lora_B.to(device, dtype)
        if not _is_wide(dtype) and not all(bool(factor.isfinite().all()) for factor in own):
            raise AdapterError(f"a factor leaves the range of {dtype}", code="overflow")
        made.append(own)
    return made


def _single_factors(pairs: Sequence[WeightPair]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return lora_A and lora_B of each pair in float32, where they are."""
    import torch

    sides = [pair.decoded.sides[number] for number in (1, 0) for pair in pairs]
    powers = [2.0 ** pair.decoded.exponents[1] for pair in pairs]
    powers += [2.0 ** pair.decoded.exponents[0] * pair.kind.scaling for pair in pairs]
    lib = library()
    if lib is not None and all(isinstance(side, np.ndarray) for side in sides):
        made = [torch.from_numpy(factor) for factor in to_float32(lib, sides, powers)]
    else:
        made = [
            # The product of 16 bits and a power of two is exact.
            side.float().mul_(power) if math.frexp(power)[0] == 0.5 else side.double().mul_(power).float()
            for side, power in zip(map(_tensor, sides), powers, strict=True)
        ]
    return made[: len(pairs)], made[len(pairs) :]


def trim_records(records: Sequence[DecodedRecord], xp: Arrays) -> list[DecodedRecord]:
    """Return pairs without the components of which one side is zero; NumPy's arrays are copies with the kernels."""
    lib = library_for(xp)
    if lib is None:
        return [_trimmed(record, xp) for record in records]
    made = trim_pairs(lib, [(record.sides[0], record.sides[1]) for record in records])
    return [DecodedRecord(sides, record.exponents) for sides, record in zip(made, records, strict=True)]


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
