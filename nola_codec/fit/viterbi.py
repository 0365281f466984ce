"""Find the best symbols of quantizers with memory by the Viterbi algorithm, for many vectors side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, LevelArray
from nola_codec.model.quantizers import Trellis
from nola_codec.quant.trellis import PARITY, WINDOW, window_table

_STATES = 1 << WINDOW
_DECISIONS = 48 << 20
"""Bytes of decisions that may be kept for the way back: they bound the number of vectors side by side."""
_SIDE_BY_SIDE = 96
"""Number of vectors side by side beyond which the arrays of a step would leave the caches."""
_SETTLE = 64
"""Number of steps after which the least cost is subtracted from all, so that float32 can tell them apart."""
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
    by_step = np.ascontiguousarray(padded.reshape(vectors, steps, trellis.stride).transpose(1, 2, 0))
    rate = trellis.bits / trellis.stride
    scale = 1.0 if len(trellis.levels) == 2 else 0.151 * (1 - 4.0**-rate) ** 0.5  # the variance of a good code
    points = window_table(trellis).astype(np.float32) * np.float32(scale)
    search = _Search(points, by_step, trellis.bits)
    reach = min(steps // 2, _TAIL // trellis.bits)
    joint = [*range(steps - reach, steps), *range(reach)] if reach else list(range(steps))
    free = search.states(joint, None)
    closing = free[reach - 1] if reach else free[-1]
    states = search.states(range(steps), closing)
    return (states & (trellis.size - 1)).T.astype(np.uint8)


class _Search:
    """A search for the path of largest gain through a trellis: inner products less half the energy of the points."""

    def __init__(self, points: Float32Array, by_step: Float32Array, bits: int) -> None:
        """Prepare a search.

        Args:
            points: float32 (256, stride): the points of each window.
            by_step: float32 (steps, stride, vectors): the vectors.
            bits: The bits of a step.
        """
        self._points, self._by_step, self._bits = points, by_step, bits
        energy = (points**2).sum(axis=1, keepdims=True) / 2
        self._energy = energy if np.ptp(energy) > 1e-6 else None  # an equal energy decides nothing
        # With one bit a step, all masks hold the newest bit, so flipping it turns the signs of all points.
        self._mirrored = bits == 1 and bool((points[0::2] == -points[1::2]).all())
        self._even = np.ascontiguousarray(points[0::2])

    def states(self, steps: Sequence[int], ring: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
        """Return the states (steps, vectors) of the largest gain; `ring` (vectors,) is the first and the last state."""
        bits = self._bits
        ways, heads = 1 << bits, _STATES >> bits
        vectors = self._by_step.shape[2]
        every = np.arange(vectors)
        cost, after = np.zeros((2, _STATES, vectors), np.float32)
        if ring is not None:
            cost[:] = -1e30
            cost[ring, every] = 0
        decisions = np.empty((len(steps), heads, vectors), np.uint8)
        best = np.empty((heads, vectors), np.float32)
        gain = np.empty((heads if self._mirrored else _STATES, vectors), np.float32)
        half = None if self._energy is None else self._energy[0::2] if self._mirrored else self._energy
        for number, step in enumerate(steps):
            before, follow = cost.reshape(ways, heads, vectors), after.reshape(heads, ways, vectors)
            if ways == 2:
                np.greater(before[1], before[0], out=decisions[number].view(np.bool_))
                np.maximum(before[0], before[1], out=best)
            else:
                decisions[number] = before.argmax(axis=0)
                np.max(before, axis=0, out=best)
            np.matmul(self._even if self._mirrored else self._points, self._by_step[step], out=gain)
            if self._mirrored:
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


def encode_dependent(
    mask: int, values: Float32Array, points: Float64Array, bits: Float64Array, slope: float
) -> LevelArray:
    """Return the levels -m to m, int8 (vectors, count), with the least squared error + slope * bits.

    Args:
        mask: The mask of a `Dependent`; the position of its highest one gives the length of the memory.
        values: float32 (vectors, count).
        points: (2, m + 1): 0 and the positive points of the even and of the odd codebook.
        bits: (m + 1,): the code length of level 0 and of each pair of levels -l and l.
        slope: The lambda of the Lagrangian.
    """
    memory = mask.bit_length()
    states = 1 << memory
    heads = states >> 1
    vectors, count = values.shape
    turned = np.ascontiguousarray(values.T)
    costs, levels = _candidates(turned, points, bits, slope)
    chooses = PARITY[np.arange(states) & mask]
    # A head is two states that differ in the highest bit. The mask has that bit, so they choose different codebooks.
    # Heads are sorted by the codebook of their lower state, so that the costs of a codebook are added to a slice.
    order = np.argsort(chooses[:heads], kind="stable")
    upper = memory > 1 and heads > 1
    cut = int((chooses[:heads] == 0).sum())
    place = np.empty(heads, np.int64)
    place[order] = np.arange(heads)
    target = np.array([order * 2 + parity for parity in (0, 1)])  # state after (parity, position)
    gather = np.empty(states, np.int64)
    gather[(target >> (memory - 1)) * heads + place[target & (heads - 1)]] = np.arange(states).reshape(2, heads)
    cost = np.full((2, heads, vectors), np.float32(1e30))
    cost[0, place[0]] = 0
    decisions = np.empty((count, 2, heads, vectors), np.bool_)
    after = np.empty((2, heads, vectors), np.float32)
    a, b = np.empty((2, heads, vectors), np.float32)
    for step in range(count):
        for parity in (0, 1):
            for low, part in ((0, slice(0, cut)), (1, slice(cut, heads))):
                np.add(cost[0, part], costs[step, low, parity], out=a[part])
                np.add(cost[1, part], costs[step, 1 - low if upper else low, parity], out=b[part])
            np.less(b, a, out=decisions[step, parity])
            np.minimum(a, b, out=after[parity])
        np.take(after.reshape(states, vectors), gather, axis=0, out=cost.reshape(states, vectors))
        if step % _SETTLE == _SETTLE - 1:
            cost -= cost.min(axis=(0, 1))
    cost = cost[:, place]
    state = cost.reshape(states, vectors).argmin(axis=0)
    every = np.arange(vectors)
    out = np.empty((count, vectors), np.int8)
    for step in range(count - 1, -1, -1):
        head, parity = state >> 1, state & 1
        state = head | (decisions[step, parity, place[head], every].astype(np.int64) << (memory - 1))
        out[step] = levels[step, chooses[state], parity, every]
    return np.ascontiguousarray(out.T)


def _candidates(
    values: Float32Array, points: Float64Array, bits: Float64Array, slope: float
) -> tuple[Float32Array, LevelArray]:
    """Return the least cost and its level for each (codebook, parity): float32 and int8 (count, 2, 2, vectors)."""
    most = points.shape[1] - 1
    signed = np.arange(-most, most + 1)
    costs = np.empty((values.shape[0], 2, 2, values.shape[1]), np.float32)
    levels = np.empty(costs.shape, np.int8)
    for book in (0, 1):
        for parity in (0, 1):
            own = signed[(signed & 1) == parity]
            places = np.sign(own) * points[book, np.abs(own)]
            price = slope * bits[np.abs(own)]
            cuts = (places[1:] + places[:-1]) / 2 + np.diff(price) / (2 * np.maximum(np.diff(places), 1e-9))
            cuts = np.maximum.accumulate(cuts).astype(np.float32)
            index = np.searchsorted(cuts, values)
            levels[:, book, parity] = own[index]
            costs[:, book, parity] = (values - places.astype(np.float32)[index]) ** 2 + price.astype(np.float32)[index]
    return costs, levels
