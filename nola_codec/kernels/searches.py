"""The Viterbi searches of the encoder (`fit/viterbi.py`), which release the interpreter's lock while they run.

They compute in float32, but only by sums, products and comparisons in the order of the NumPy code, and so find the same
symbols to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Int64Array, LevelArray
from nola_codec.kernels.arguments import require, require_array
from nola_codec.kernels.loading import Library

_STATES = 256
_CUTS = 128
"""The width of a table in C: the places of levels of one parity, of which there are at most 128."""


@dataclass(frozen=True, eq=False)
class GainTerms:
    """The gain of a window of a trellis, as a sum of terms: weight * coefficient * (-1) ** parity(window & mask).

    Attributes:
        bits: The bits of a step, 1 or 2.
        stride: The coefficients of a step.
        is_mirrored: True if flipping the newest bit of a window turns the signs of its points. Then only the windows in
            which it is 0 have gains, and masks and windows lack that bit.
        masks, columns: int64 (terms,): the mask, and the number of the coefficient in its step.
        weights: float32 (terms,).
        half_energy: float32 (windows,): half the energy of the points, which is subtracted; None for an equal energy.
    """

    bits: int
    stride: int
    is_mirrored: bool
    masks: Int64Array
    columns: Int64Array
    weights: Float32Array
    half_energy: Float32Array | None

    @property
    def windows(self) -> int:
        """The number of windows that have gains."""
        return _STATES // 2 if self.is_mirrored else _STATES


class LevelTables(NamedTuple):
    """What a step of a dependent quantizer can choose: four lists, with an array for each (codebook, parity).

    Attributes:
        levels: int64 (n,): the levels of the parity, ascending.
        places: float32 (n,): their points.
        prices: float32 (n,): what their bits cost.
        cuts: float32 (n - 1,): the values from which the next level is better, ascending.
    """

    levels: Sequence[Int64Array]
    places: Sequence[Float32Array]
    prices: Sequence[Float32Array]
    cuts: Sequence[Float32Array]


def search_trellis(lib: Library, terms: GainTerms, values: Float32Array, reach: int) -> npt.NDArray[np.uint8]:
    """Return the symbols (vectors, steps) of largest gain in a ring.

    Args:
        lib: The library.
        terms: The gains of the windows.
        values: float32 (vectors, steps * stride).
        reach: The number of steps at each end that the search for the joint looks at.

    Raises:
        ValueError: An argument is out of range.
        MemoryError: There is not enough memory.
    """
    vectors, count = values.shape
    steps, size = count // terms.stride, terms.windows
    shape = terms.masks.shape
    require(steps > 0 and steps * terms.stride == count and 0 <= reach <= steps // 2, "a whole number of steps")
    require(terms.bits in (1, 2) and not (terms.is_mirrored and terms.bits == 2), "one or two bits a step")
    masks, columns = require_array(terms.masks, ("int64",), shape), require_array(terms.columns, ("int64",), shape)
    require(bool(((masks >= 0) & (masks < size)).all()), "masks of the window")
    require(bool(((columns >= 0) & (columns < terms.stride)).all()), "coefficients of a step")
    half = None if terms.half_energy is None else require_array(terms.half_energy, ("float32",), (size,))
    symbols = np.empty((vectors, steps), np.uint8)
    failed = lib.call(
        "nola_search_trellis", require_array(values, ("float32",), values.shape), symbols, vectors, steps,
        terms.stride, terms.bits, size, masks, columns, require_array(terms.weights, ("float32",), shape), len(masks),
        half, reach,
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory to search a trellis")
    return symbols


def search_dependent(
    lib: Library, mask: int, values: Sequence[Float32Array], tables: Sequence[LevelTables]
) -> list[LevelArray]:
    """Return the levels of least cost of each search, int8 of the shape of its values.

    Args:
        lib: The library.
        mask: The mask of the codebooks, of 2 to 8 bits.
        values: For each search, float32 (vectors, count).
        tables: The tables of each search.

    Raises:
        ValueError: An argument is out of range.
        MemoryError: There is not enough memory.
    """
    require(1 < mask < 1 << 8 and mask.bit_count() > 1, "a mask of 2 to 8 bits")
    if not values:
        return []
    searches = len(values)
    sizes = np.array([own.shape for own in values], np.int64).reshape(-1, 2)
    flat = np.concatenate([own.reshape(-1) for own in values])
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    search = np.repeat(np.arange(searches), sizes[:, 0])
    lengths = sizes[search, 1]
    rank = np.arange(len(search)) - np.repeat(np.cumsum(sizes[:, 0]) - sizes[:, 0], sizes[:, 0])
    starts = (ends - sizes[:, 0] * sizes[:, 1])[search] + rank * lengths
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    columns = [_tables_of(each) for each in tables]
    counts, lowest, cuts, places, prices = (np.stack(part) for part in zip(*columns, strict=True))
    levels = np.empty(len(flat), np.int8)
    failed = lib.call(
        "nola_search_dependent", require_array(flat, ("float32",), flat.shape), levels, starts[order], lengths[order],
        search[order], len(order), cuts, places, prices, counts, lowest, mask,
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory to search levels")
    parts = np.split(levels, ends[:-1])
    return [part.reshape(own.shape) for part, own in zip(parts, values, strict=True)]


def _tables_of(tables: LevelTables) -> tuple[Int64Array, Int64Array, Float32Array, Float32Array, Float32Array]:
    """Return counts and lowest levels, int64 (4,), and cuts, places and prices, float32 (4, _CUTS)."""
    counts, lowest = np.empty((2, 4), np.int64)
    cuts, places, prices = np.zeros((3, 4, _CUTS), np.float32)
    for part, (levels, place, price, cut) in enumerate(zip(*tables, strict=True)):
        count = len(levels)
        require(0 < count <= _CUTS and len(place) == len(price) == len(cut) + 1 == count, "a table of levels")
        require(levels[0] >= -128 and levels[0] + 2 * (count - 1) <= 127, "levels of eight bits")
        counts[part], lowest[part] = count, levels[0]
        cuts[part, : count - 1], places[part, :count], prices[part, :count] = cut, place, price
    return counts, lowest, cuts, places, prices
