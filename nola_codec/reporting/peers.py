"""Measure what other ways to store the same adapter cost and lose: a truncated SVD, in fp16 or rounded to few bits.

Tools that make an adapter smaller do this: they keep the strongest singular components of every weight, at one rank for
all, and may round them. Nothing is written. The errors follow from the weights, and the sizes are kind to the peers:
numbers and scales alone, without names, and rounded numbers as an ideal entropy code would store them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.fit.allocation import EFFECTIVE
from nola_codec.fit.canonical_form import LORA_A, LORA_B
from nola_codec.fit.components import Components, singular_components, squared_error, squared_norm
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.progress import Progress
from nola_codec.reporting.rounding import Half, Integers, Quantized, Quantizer

MOST_RANK = 64
"""The greatest rank of a peer: a larger one is no use beside a file of a few bits for a component."""
_ROUNDERS: tuple[tuple[str, Quantizer], ...] = (
    ("SVD in fp16", Half()),
    ("SVD in 4 bits", Integers(4, 64)),
    ("SVD in 2 bits", Integers(2, 64)),
)
"""Each peer and its rounding; 64 numbers share one scale in fp16."""


@dataclass(frozen=True)
class PeerPoint:
    """The file of a peer at one rank.

    Attributes:
        name: What stores the adapter.
        rank: The number of components that are kept of every weight.
        bytes: The size of the numbers and scales.
        ratio: How many times smaller than the adapter in fp16.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2 over all weights.
        effective_error: The effective error, by the definition that the encoder has for its own files.
    """

    name: str
    rank: int
    bytes: int
    ratio: float
    nmse: float
    effective_error: float


def measure_peers(adapter: Adapter, progress: Progress | None = None) -> tuple[PeerPoint, ...]:
    """Return the points of all peers, at ranks that are powers of two up to the largest rank of the adapter.

    Tensors that are no product of two factors count as stored in fp16, without an error, and carried tensors as they
    are. The result is empty for an adapter without products, and for one whose products are parts of its deltas.

    Args:
        adapter: The adapter as read.
        progress: Called as (stage, done, total).
    """
    if not adapter.modules or not all(module.is_whole_delta for module in adapter.modules):
        return ()
    most = min(MOST_RANK, max(module.rank for module in adapter.modules))
    ranks = tuple(2**power for power in range(most.bit_length()))
    tallies = [_Tally(name, rounder, ranks) for name, rounder in _ROUNDERS]
    energy = sum(squared_norm(vector.values) * vector.error_gain**2 for vector in adapter.vectors)
    for number, module in enumerate(adapter.modules):
        if progress is not None:
            progress("measuring peers", number, len(adapter.modules))
        parts = singular_components(module.lora_B, module.lora_A)
        energy += module.scaling**2 * float((parts.s**2).sum())
        for tally in tallies:
            tally.add(module, parts)
    if not (energy > 0 and math.isfinite(energy)):
        return ()
    others = sum(2 * vector.values.size for vector in adapter.vectors)
    others += sum(len(tensor.data) for tensor in adapter.raw.values())
    fp16 = 2 * adapter.parameters
    return tuple(point for tally in tallies for point in tally.points(energy, others, fp16))


class _Tally:
    """The bytes and the errors of one peer at all ranks, over the weights so far."""

    def __init__(self, name: str, rounder: Quantizer, ranks: Sequence[int]) -> None:
        self._name, self._rounder, self._ranks = name, rounder, ranks
        self._bytes = np.zeros(len(ranks))  # of what is stored as it is: fp16 numbers and scales
        self._codes: Int64Array = np.zeros((len(ranks), 256), np.int64)  # how often each rounded number is stored
        self._squared: Float64Array = np.zeros(len(ranks))
        self._effective: Float64Array = np.zeros(len(ranks))

    def add(self, module: LoraModule, parts: Components) -> None:
        """Add a weight."""
        kept = min(self._ranks[-1], len(parts.s))
        root = np.sqrt(parts.s[:kept, None]).astype(np.float32)  # on both sides, as resized files have it
        left, right = self._rounder(parts.u[:kept] * root), self._rounder(parts.v[:kept] * root)
        lost = _effective_errors(parts, left.values, right.values)
        dropped = (parts.s**2).sum() - np.cumsum(parts.s[:kept] ** 2)
        for index, rank in enumerate(self._ranks):
            count = min(rank, kept)
            for side in (left, right):
                self._bytes[index] += sum(part[:count].nbytes for part in side.side)
                self._codes[index] += _histogram(side, count)
            gap = squared_error(module.lora_B, module.lora_A, left.values[:count].T, right.values[:count])
            self._squared[index] += module.scaling**2 * gap
            self._effective[index] += module.scaling**2 * (float(lost[:count].sum()) + max(dropped[count - 1], 0.0))

    def points(self, energy: float, others: int, fp16: int) -> list[PeerPoint]:
        """Return the points.

        Args:
            energy: The sum of ||delta_W||_F^2 over all weights.
            others: The bytes of all that is no product.
            fp16: The bytes of the adapter in fp16.
        """
        found = []
        for index, rank in enumerate(self._ranks):
            size = math.ceil(self._bytes[index] + _entropy(self._codes[index]) / 8) + others
            nmse, effective = self._squared[index] / energy, self._effective[index] / energy
            found.append(PeerPoint(self._name, rank, size, fp16 / size, float(nmse), float(effective)))
        return found


def _effective_errors(parts: Components, left: Float32Array, right: Float32Array) -> Float64Array:
    """Return the effective error of each kept component, float64 (kept,), without the scaling.

    A side that is stored as x' for a unit vector x has the signal g = <x, x'> and the noise n = |x'|^2 - g^2. Of a
    component s u v^T the error is s^2 ((1 - g_u g_v)^2 + what the noise adds), which is 1 - 2 g_u g_v + p_u p_v with
    p = g^2 + n / gamma. At the best gains it is the 1 - A_u A_v of docs/architecture.md.
    """
    kept = len(left)
    signal, felt = np.ones(kept), np.ones(kept)
    for role, unit, stored in ((LORA_B, parts.u, left), (LORA_A, parts.v, right)):
        both = stored.astype(np.float64)
        along = (unit[:kept] * both).sum(axis=1)
        noise = np.maximum((both**2).sum(axis=1) - along**2, 0.0)
        signal *= along
        felt *= along**2 + noise / EFFECTIVE.gammas[role]
    # The strength s is in the stored vectors already, its root on either side.
    return np.asarray(np.maximum(parts.s[:kept] ** 2 - 2 * parts.s[:kept] * signal + felt, 0.0))


def _histogram(side: Quantized, count: int) -> Int64Array:
    if side.codes is None:
        return np.zeros(256, np.int64)
    return np.bincount(side.codes[:count].ravel(), minlength=256).astype(np.int64)


def _entropy(counts: Int64Array) -> float:
    """Return the bits of an ideal code for all symbols, by how often each one occurs."""
    used = counts[counts > 0].astype(np.float64)
    return float(used @ np.log2(used.sum() / used)) if len(used) else 0.0
