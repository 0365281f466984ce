"""Searches for the best symbols of quantizers with memory: the Viterbi algorithm, many vectors side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nola_codec.model import Trellis
from nola_codec.quant.trellis import PARITY, WINDOW, window_table

Floats = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
Levels = npt.NDArray[np.int8]

_STATES = 1 << WINDOW
_DECISIONS = 24 << 20
"""Bytes of decisions kept for the way back, which bounds how many vectors go side by side."""
_TAIL = 48
"""Bits after which survivors have long met: as much of the other end is looked at to find where a ring closes."""


def side_by_side(length: int) -> int:
    """Vectors of `length` coefficients to search together."""
    return max(16, min(256, _DECISIONS // (length * _STATES // 2)))


def encode_trellis(trellis: Trellis, values: Floats) -> npt.NDArray[np.uint8]:
    """Symbols (vectors, steps) whose points are nearest in angle to `values` (vectors, count), of unit variance.

    The window runs in a ring: the state before the first step is the one after the last. It is found by a search over
    the joint from free ends, and a second search through all steps then keeps to it.
    """
    vectors, count = values.shape
    steps = trellis.run(count)
    padded = np.zeros((vectors, steps * trellis.stride), np.float32)
    padded[:, :count] = values
    by_step = np.ascontiguousarray(padded.reshape(vectors, steps, trellis.stride).transpose(1, 2, 0))
    rate = trellis.bits / trellis.stride
    scale = 1.0 if len(trellis.levels) == 2 else 0.151 * (1 - 4.0**-rate) ** 0.5  # the variance of a good code
    points = window_table(trellis).astype(np.float32) * np.float32(scale)
    energy = (points**2).sum(axis=1, keepdims=True) / 2

    def gain(step: int) -> Floats:
        return np.asarray(points @ by_step[step] - energy, np.float32)

    reach = min(steps // 2, _TAIL // trellis.bits)
    joint = [*range(steps - reach, steps), *range(reach)] if reach else list(range(steps))
    free = _search(gain, joint, trellis.bits, None)
    closing = free[reach - 1] if reach else free[-1]
    states = _search(gain, range(steps), trellis.bits, closing)
    return (states & (trellis.size - 1)).T.astype(np.uint8)


def _search(
    gain: Callable[[int], Floats], steps: Sequence[int], bits: int, ring: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """States (steps, vectors) of the largest gain; `ring` (vectors,) is the state to begin from and to end in."""
    ways, heads = 1 << bits, _STATES >> bits
    first = gain(steps[0])
    vectors = first.shape[1]
    every = np.arange(vectors)
    cost = np.zeros((_STATES, vectors), np.float32)
    if ring is not None:
        cost[:] = -1e30
        cost[ring, every] = 0
    decisions = np.empty((len(steps), heads, vectors), np.uint8)
    for number, step in enumerate(steps):
        before = cost.reshape(ways, heads, vectors)
        if ways == 2:
            np.greater(before[1], before[0], out=decisions[number].view(np.bool_))
            best = np.maximum(before[0], before[1])
        else:
            decisions[number] = before.argmax(axis=0)
            best = before.max(axis=0)
        cost = gain(step)
        cost.reshape(heads, ways, vectors)[...] += best[:, None]
    state = cost.argmax(axis=0) if ring is None else ring
    states = np.empty((len(steps), vectors), np.int64)
    for number in range(len(steps) - 1, -1, -1):
        states[number] = state
        head = state >> bits
        state = (decisions[number, head, every].astype(np.int64) << (WINDOW - bits)) | head
    return states


def encode_dependent(mask: int, values: Floats, points: Vector, bits: Vector, slope: float) -> Levels:
    """Levels (vectors, count), -m to m, of the least squared error plus slope times bits.

    Args:
        mask: As in `Dependent`, its highest bit set being the memory's length.
        values: (vectors, count).
        points: (2, m + 1): 0 and the positive points of the even and of the odd codebook.
        bits: (m + 1,): code length of level 0 and of each of +-l.
        slope: The Lagrangian's lambda.
    """
    memory = mask.bit_length()
    states = 1 << memory
    heads = states >> 1
    vectors, count = values.shape
    turned = np.ascontiguousarray(values.T)
    costs, levels = _candidates(turned, points, bits, slope)
    chooses = PARITY[np.arange(states) & mask]
    low, high = chooses[:heads].astype(np.intp), chooses[heads:].astype(np.intp)
    cost = np.full((2, heads, vectors), np.float32(1e30))
    cost[0, 0] = 0
    decisions = np.empty((count, heads, 2, vectors), np.bool_)
    after = np.empty((heads, 2, vectors), np.float32)
    for step in range(count):
        for parity in (0, 1):
            branch = costs[step, :, parity]
            a, b = cost[0] + branch[low], cost[1] + branch[high]
            np.less(b, a, out=decisions[step, :, parity])
            np.minimum(a, b, out=after[:, parity])
        cost = (after - after.min(axis=(0, 1))).reshape(2, heads, vectors)
    state = cost.reshape(states, vectors).argmin(axis=0)
    every = np.arange(vectors)
    out = np.empty((count, vectors), np.int8)
    for step in range(count - 1, -1, -1):
        head, parity = state >> 1, state & 1
        state = head | (decisions[step, head, parity, every].astype(np.int64) << (memory - 1))
        out[step] = levels[step, chooses[state], parity, every]
    return np.ascontiguousarray(out.T)


def _candidates(values: Floats, points: Vector, bits: Vector, slope: float) -> tuple[Floats, Levels]:
    """Least cost, and its level, of each (codebook, parity): float32 and int8 (count, 2, 2, vectors)."""
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
