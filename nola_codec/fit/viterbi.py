"""Find the best symbols of quantizers with memory by the Viterbi algorithm, for many vectors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, LevelArray
from nola_codec.kernels import library
from nola_codec.kernels.searches import GainTerms, LevelTables, search_dependent, search_trellis
from nola_codec.model.quantizers import Trellis
from nola_codec.quant.trellis import WINDOW, parities, window_table

_STATES = 1 << WINDOW
_DECISIONS = 48 << 20
"""Bytes of decisions that may be kept for the way back: they bound the number of vectors side by side."""
_SIDE_BY_SIDE = 96
"""Number of vectors side by side beyond which the arrays of a step would leave the caches."""
_SETTLE = 64
"""Number of steps after which the least cost is subtracted from all, so that float32 can tell them apart."""
_GAINS = 1536
"""Number of gains of each window that are computed at once: steps times vectors."""
_TAIL = 48
"""Number of bits after which all surviving paths have a common past: the search for a joint looks as far."""


def side_by_side(length: int) -> int:
    """Return the number of vectors of `length` coefficients to search together."""
    return max(16, min(_SIDE_BY_SIDE, _DECISIONS // (length * _STATES // 2)))


def encode_trellis(trellis: Trellis, values: Float32Array) -> npt.NDArray[np.uint8]:
    """Return the symbols (vectors, steps) whose points are nearest in angle to `values` (vectors, count).

    The values have unit variance. The window runs in a ring: the state before the first step is the one after the last.
    A first search over the last and the first steps, with free ends, finds that state. A second search through all
    steps then begins and ends in it.
    """
    vectors, count = values.shape
    steps = trellis.run(count)
    padded = np.zeros((vectors, steps * trellis.stride), np.float32)
    padded[:, :count] = values
    terms, reach = gain_terms(trellis), min(steps // 2, _TAIL // trellis.bits)
    compiled = library()
    if compiled is not None:
        return search_trellis(compiled, terms, padded, reach)
    by_step = np.ascontiguousarray(padded.reshape(vectors, steps, trellis.stride).transpose(1, 2, 0))
    search = _Search(terms, by_step)
    joint = [*range(steps - reach, steps), *range(reach)] if reach else list(range(steps))
    free = search.states(joint, None)
    closing = free[reach - 1] if reach else free[-1]
    states = search.states(range(steps), closing)
    return (states & (trellis.size - 1)).T.astype(np.uint8)


@lru_cache
def gain_terms(trellis: Trellis) -> GainTerms:
    """Return the terms of the gains of a trellis.

    A point of two levels is a multiple of the sign of one parity, and a point of four levels is a sum of two such
    multiples, since the levels are symmetric.
    """
    rate = trellis.bits / trellis.stride
    scale = 1.0 if len(trellis.levels) == 2 else 0.151 * (1 - 4.0**-rate) ** 0.5  # the variance of a good code
    levels = np.array(trellis.levels, np.float64) * scale
    # The multiples are the Walsh-Hadamard coefficients of the levels, one for each mask, the highest bit first.
    signs = [1 - 2 * (np.arange(len(levels)) >> bit & 1) for bit in range((len(levels) - 1).bit_length())][::-1]
    multiples = np.array([(sign * levels).mean() for sign in signs], np.float32)
    points = window_table(trellis).astype(np.float32) * np.float32(scale)
    energy = (points**2).sum(axis=1) / 2
    masks = np.array(trellis.masks, np.int64).reshape(-1)
    # With one bit a step, all masks hold the newest bit, so flipping it turns the signs of all points.
    is_mirrored = trellis.bits == 1 and bool((masks & 1).all())
    windows = slice(None, None, 2) if is_mirrored else slice(None)
    return GainTerms(
        bits=trellis.bits,
        stride=trellis.stride,
        is_mirrored=is_mirrored,
        masks=masks >> is_mirrored,
        columns=np.repeat(np.arange(trellis.stride), len(multiples)),
        weights=np.tile(multiples, trellis.stride),
        half_energy=energy[windows].copy() if np.ptp(energy) > 1e-6 else None,  # an equal energy decides nothing
    )


class _Search:
    """A search for the path of largest gain through a trellis: inner products less half the energy of the points."""

    def __init__(self, terms: GainTerms, by_step: Float32Array) -> None:
        """Prepare a search through float32 (steps, stride, vectors)."""
        self._terms, self._by_step = terms, by_step

    def states(self, steps: Sequence[int], ring: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
        """Return the states (steps, vectors) of the largest gain; `ring` (vectors,) is the first and the last state."""
        bits = self._terms.bits
        ways, heads = 1 << bits, _STATES >> bits
        vectors = self._by_step.shape[2]
        every = np.arange(vectors)
        cost, after = np.zeros((2, _STATES, vectors), np.float32)
        if ring is not None:
            cost[:] = -1e30
            cost[ring, every] = 0
        decisions = np.empty((len(steps), heads, vectors), np.uint8)
        best = np.empty((heads, vectors), np.float32)
        half = self._terms.half_energy
        half = None if half is None else half[:, None]
        together = max(1, _GAINS // vectors)
        for number in range(len(steps)):
            if number % together == 0:
                gains = self._gains(steps[number : number + together])
            gain = gains[:, number % together]
            before, follow = cost.reshape(ways, heads, vectors), after.reshape(heads, ways, vectors)
            if ways == 2:
                np.greater(before[1], before[0], out=decisions[number].view(np.bool_))
                np.maximum(before[0], before[1], out=best)
            else:
                decisions[number] = before.argmax(axis=0)
                np.max(before, axis=0, out=best)
            if self._terms.is_mirrored:
                if half is not None:
                    best -= half
                np.add(best, gain, out=follow[:, 0])
                np.subtract(best, gain, out=follow[:, 1])
            else:
                if half is not None:
                    gain -= half
                np.add(gain.reshape(heads, ways, vectors), best[:, None], out=follow)
            cost, after = after, cost
        state = cost.argmax(axis=0) if ring is None else ring
        states = np.empty((len(steps), vectors), np.int64)
        for number in range(len(steps) - 1, -1, -1):
            states[number] = state
            head = state >> bits
            state = (decisions[number, head, every].astype(np.int64) << (WINDOW - bits)) | head
        return states

    def _gains(self, steps: Sequence[int]) -> Float32Array:
        """Return the inner products with the points of the windows, float32 (windows, steps, vectors).

        A Walsh-Hadamard transform turns the terms of all masks into the sums of all windows. Its sums have a fixed
        order, and so the same bits on every machine.
        """
        values = self._by_step[list(steps)]
        size = self._terms.windows
        sums = np.zeros((size, len(steps), values.shape[2]), np.float32)
        for mask, column, weight in zip(
            self._terms.masks.tolist(), self._terms.columns.tolist(), self._terms.weights, strict=True
        ):
            sums[mask] += values[:, column] * weight
        apart = size // 2
        while apart:
            pairs = sums.reshape(size // (2 * apart), 2, apart, -1)
            low, high = pairs[:, 0], pairs[:, 1]
            added = low + high
            np.subtract(low, high, out=high)
            low[...] = added
            apart //= 2
        return sums


class LevelSearch(NamedTuple):
    """Vectors of one length whose levels are searched with the same tables.

    Attributes:
        values: float32 (vectors, count).
        points: (2, m + 1): 0 and the positive points of the even and of the odd codebook.
        bits: (m + 1,): the code length of level 0 and of each pair of levels -l and l.
        slope: The lambda of the Lagrangian.
    """

    values: Float32Array
    points: Float64Array
    bits: Float64Array
    slope: float


def pack_side_by_side(shapes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Divide searches into packs for `encode_dependent`, so that a pack fills the arrays of a step.

    Args:
        shapes: The number of vectors and the length of each search.

    Returns:
        The indices of the searches of each pack; a search that is larger than a pack has one of its own.
    """
    packs: list[list[int]] = []
    room = 0
    for index in sorted(range(len(shapes)), key=lambda i: -shapes[i][1]):
        vectors, length = shapes[index]
        if vectors > room:
            packs.append([])
            room = side_by_side(length)
        packs[-1].append(index)
        room -= vectors
    return packs


def encode_dependent(mask: int, searches: Sequence[LevelSearch]) -> list[LevelArray]:
    """Return the levels -m to m of each search, int8 (vectors, count), with the least squared error + slope * bits.

    All vectors go through the steps side by side, whatever their lengths and tables are: a step of few vectors costs
    as much as one of many. No result depends on the other searches.

    Args:
        mask: The mask of a `Dependent`, with two bits or more; its highest one gives the length of the memory.
        searches: The vectors and their tables.
    """
    compiled = library()
    if compiled is not None:
        tables = [level_tables(search) for search in searches]
        return search_dependent(compiled, mask, [search.values for search in searches], tables)
    order = sorted(range(len(searches)), key=lambda i: -searches[i].values.shape[1])  # those that end first come last
    lengths = np.repeat([searches[i].values.shape[1] for i in order], [len(searches[i].values) for i in order])
    costs = np.zeros((lengths[0], 2, 2, len(lengths)), np.float32)
    levels = np.zeros(costs.shape, np.int8)
    columns: list[slice] = [slice(0)] * len(searches)
    first = 0
    for index in order:
        values = searches[index].values
        columns[index] = own = slice(first, first + len(values))
        costs[: values.shape[1], :, :, own], levels[: values.shape[1], :, :, own] = _candidates(searches[index])
        first += len(values)
    graph = _Graph(mask)
    after = graph.search(costs, lengths)
    before = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    index = 2 * graph.chooses[before] + (after & 1)
    found = np.take_along_axis(levels.reshape(len(levels), 4, -1), index[:, None], axis=1)[:, 0]
    return [
        np.ascontiguousarray(found[: search.values.shape[1], own].T)
        for search, own in zip(searches, columns, strict=True)
    ]


class _Graph:
    """The states of a dependent quantizer: the parities of the last levels, the newest in the lowest bit.

    A head is two states that differ in the highest bit only: they lead to the same states. The mask has that bit, so
    they choose different codebooks. Half of the heads choose the even codebook in their lower state, since the mask
    has a further bit. Costs therefore lie in the order (highest bit, choice of the lower state, place among the heads
    of this choice), and the costs of a codebook are added to whole slices.

    Attributes:
        chooses: uint8 (states,): the codebook that each state chooses.
    """

    def __init__(self, mask: int) -> None:
        """Lay out the states of a mask."""
        self._memory = mask.bit_length()
        states = 1 << self._memory
        self._heads = states >> 1
        self.chooses = parities()[np.arange(states) & mask]
        order = np.argsort(self.chooses[: self._heads], kind="stable")
        place = np.empty(self._heads, np.int64)
        place[order] = np.arange(self._heads)
        state = np.arange(states)
        half, within = np.divmod(place, self._heads // 2)
        self._position = (state >> (self._memory - 1)) * self._heads + place[state & (self._heads - 1)]
        # The row of each state in the order (choice, parity, place) of what a step makes.
        self._row = (2 * half[state >> 1] + (state & 1)) * (self._heads // 2) + within[state >> 1]
        self._gather = np.empty(states, np.int64)
        self._gather[self._position] = self._row

    def search(self, costs: Float32Array, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Find the cheapest path of each vector from state 0 on, with a free end.

        Args:
            costs: float32 (steps, codebooks, parities, vectors).
            lengths: (vectors,): the steps of each vector; they do not rise.

        Returns:
            The states after each step, uint8 (steps, vectors), 0 after the end of a vector.
        """
        states, half = 2 * self._heads, self._heads // 2
        ends = np.zeros(len(lengths), np.int64)
        cost = np.full((states, len(lengths)), np.float32(1e30))
        cost[self._position[0]] = 0
        decisions: list[npt.NDArray[np.bool_]] = []  # for the steps up to each end
        stops = np.unique(lengths).tolist()
        for start, stop in zip([0, *stops], stops, strict=False):
            active = int((lengths >= stop).sum())
            cost = np.ascontiguousarray(cost[:, :active])
            lower, upper = cost.reshape(2, 2, 1, half, active).swapaxes(0, 1)
            sums = np.empty((2, 2, 2, half, active), np.float32)  # (highest bit, choice, parity, place, vector)
            least = np.empty((states, active), np.float32)
            made = np.empty((stop - start, *sums.shape[1:]), np.bool_)
            own = costs[start:stop, :, :, None, :active]
            for step, (straight, crossed) in enumerate(zip(own, own[:, ::-1], strict=True)):
                np.add(lower, straight, out=sums[:, 0])
                np.add(upper, crossed, out=sums[:, 1])
                np.less(sums[1], sums[0], out=made[step])
                np.minimum(sums[0], sums[1], out=least.reshape(sums.shape[1:]))
                np.take(least, self._gather, axis=0, out=cost, mode="clip")  # clip needs no buffer
                if (start + step) % _SETTLE == _SETTLE - 1:
                    cost -= cost.min(axis=0)
            going = int((lengths > stop).sum())
            ends[going:active] = cost[self._position, going:].argmin(axis=0)
            decisions.append(made)
        return self._trace(decisions, ends, lengths)

    def _trace(
        self, decisions: list[npt.NDArray[np.bool_]], ends: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """Follow the decisions back from the last state of each vector."""
        path = np.zeros((int(lengths[0]), len(lengths)), np.uint8)
        stop, state = len(path), ends[:0]
        for made in reversed(decisions):
            active = made.shape[-1]
            state = np.concatenate([state, ends[len(state) : active]])
            rows, every = self._row * active, np.arange(active)
            for flat in made.reshape(len(made), -1)[::-1]:
                stop -= 1
                path[stop, :active] = state
                state = (state >> 1) + flat.take(rows.take(state) + every) * self._heads
        return path


def level_tables(search: LevelSearch) -> LevelTables:
    """Return the tables of the levels of each (codebook, parity)."""
    points, bits, slope = search.points, search.bits, search.slope
    most = points.shape[1] - 1
    signed = np.arange(-most, most + 1)
    levels, places, prices, cuts = [], [], [], []
    for book in (0, 1):
        for parity in (0, 1):
            own = signed[(signed & 1) == parity]
            place = np.sign(own) * points[book, np.abs(own)]
            price = slope * bits[np.abs(own)]
            cut = (place[1:] + place[:-1]) / 2 + np.diff(price) / (2 * np.maximum(np.diff(place), 1e-9))
            levels.append(own)
            places.append(place.astype(np.float32))
            prices.append(price.astype(np.float32))
            cuts.append(np.maximum.accumulate(cut).astype(np.float32))
    return LevelTables(levels, places, prices, cuts)


def _candidates(search: LevelSearch) -> tuple[Float32Array, LevelArray]:
    """Return the least cost and its level for each (codebook, parity): float32 and int8 (count, 2, 2, vectors)."""
    values, tables = np.ascontiguousarray(search.values.T), level_tables(search)
    costs = np.empty((values.shape[0], 4, values.shape[1]), np.float32)
    levels = np.empty(costs.shape, np.int8)
    for part, (own, places, prices, cuts) in enumerate(zip(*tables, strict=True)):
        index = np.searchsorted(cuts, values)
        levels[:, part] = own[index]
        costs[:, part] = (values - places[index]) ** 2 + prices[index]
    shape = (values.shape[0], 2, 2, values.shape[1])
    return costs.reshape(shape), levels.reshape(shape)
