"""Deltas that are a part of another delta, or that change only parts of a weight.

The experts of one parameter in memory are many weights on disk, and the reverse; the same holds for fused projections.

    DeltaSlice       a part of a delta, such as one expert of it
    JoinedDelta      deltas of several parts of one weight, and zeros elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.arithmetic.deltas import RowDelta, StackedDelta

T = TypeVar("T")
Region = tuple[tuple[int, int], ...]
"""A part of a tensor: start and stop of each of its first dimensions; the other dimensions are whole."""


def swap_last(sizes: tuple[T, ...]) -> tuple[T, ...]:
    """Return the sizes, or the region, of a transposed tensor: the last two change places, and experts stay first."""
    return (*sizes[:-2], *sizes[:-3:-1])


def region_shape(region: Region, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a region of a tensor.

    Args:
        region: The region.
        shape: The shape of the tensor.

    Raises:
        AdapterError: ``bad-shape``: the region lies outside of the tensor.
    """
    inside = len(region) <= len(shape) and all(
        0 <= start < stop <= size for (start, stop), size in zip(region, shape, strict=False)
    )
    if not inside:
        raise AdapterError(mismatch("part", f"one of a tensor {list(shape)}", region), code="bad-shape")
    return (*(stop - start for start, stop in region), *shape[len(region) :])


@dataclass(frozen=True)
class DeltaSlice:
    """A part of a delta, in another shape with the same rows.

    Attributes:
        delta: The whole delta.
        region: The part of it.
        shape: The shape of the weight: that of the region, which may lack leading dimensions of size 1.
    """

    delta: RowDelta
    region: Region
    shape: tuple[int, ...]

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return self.delta.bound

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        inner, region = self.delta, self.region
        while isinstance(inner, StackedDelta) and region and region[0][1] - region[0][0] == 1:
            if len(region_shape(region, inner.shape)) == len(self.shape):
                break  # the weight has this dimension too
            inner, region = inner.slices[region[0][0]], region[1:]
        first = region[0][0] if region else 0
        rows = inner.rows(first + start, first + stop)
        return np.ascontiguousarray(rows[(slice(None), *(slice(*each) for each in region[1:]))])


@dataclass(frozen=True)
class JoinedDelta:
    """The deltas of several parts of one weight, which do not overlap.

    Attributes:
        parts: The region of each part, and its delta. Leading dimensions of size 1 of the region may lack in the delta.
        shape: The shape of the weight.
    """

    parts: Sequence[tuple[Region, RowDelta]]
    shape: tuple[int, ...]

    @property
    def bound(self) -> float:
        """See `RowDelta`."""
        return max(delta.bound for _, delta in self.parts)

    def rows(self, start: int, stop: int) -> Float64Array:
        """See `RowDelta`."""
        total = np.zeros((stop - start, *self.shape[1:]))
        for region, delta in self.parts:
            first, last = region[0] if region else (0, self.shape[0])
            begin, end = max(start, first), min(stop, last)
            if begin >= end:
                continue
            place = total[(slice(begin - start, end - start), *(slice(*each) for each in region[1:]))]
            if len(delta.shape) == len(self.shape):
                place += delta.rows(begin - first, end - first)
            else:  # the delta of one expert has no dimension for experts
                place += delta.rows(0, delta.shape[0]).reshape(place.shape)
        return total
