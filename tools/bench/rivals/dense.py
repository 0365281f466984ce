"""What the rivals for dense changes share: the parts of a change, and files that fit a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from common import Floats
from svd_codecs.columns import Bank, Component, Labels, Mix, scores

from nola_codec.fit.truncated_svd import truncated_svd

Changes = Mapping[str, Floats]
"""Name of a weight -> its change, float32."""
RANK = 48
"""Components of a matrix that are at hand; more do not fit at 1/64 of 576 x 576 numbers in 2 bits or more."""


@dataclass(frozen=True)
class DenseChange:
    """A dense change: matrices, which are coded, and vectors (norms), which every rival keeps in 16 bits."""

    found: Changes

    @cached_property
    def matrices(self) -> dict[str, Floats]:
        """The changes with two axes."""
        return {name: delta for name, delta in self.found.items() if delta.ndim == 2}

    @cached_property
    def vectors(self) -> dict[str, Floats]:
        """The other changes."""
        return {
            name: delta.astype(np.float16).astype(np.float32) for name, delta in self.found.items() if delta.ndim != 2
        }

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vectors."""
        return 2 * sum(delta.size for delta in self.vectors.values())

    @cached_property
    def components(self) -> list[Component]:
        """The strongest components of each matrix."""
        return [component(name, delta, i) for i, (name, delta) in enumerate(self.matrices.items())]


@dataclass(frozen=True)
class DenseFile:
    """A rival's file: what it is, its bytes, and the changes that it decodes to."""

    what: str
    bytes: int
    changes: Changes


def component(name: str, matrix: Floats, stream: int, rank: int = RANK) -> Component:
    """Return the strongest components of a matrix."""
    parts = truncated_svd(matrix, rank, seed=0, stream=stream)
    return Component(name, parts.u.T, parts.s, parts.v.T)


def labels_that_fit(bank: Bank, mix: Mix, limit: int, *, written: bool) -> Labels:
    """Return the choice of components at the lowest threshold that fits `limit` bytes.

    The size is estimated from entropies. If `written`, the file is written too, and less is kept until it really fits.
    """
    score = scores(bank.components, mix.rule)
    levels = [score[score > 0] / multiple for multiple in mix.multiples.values()]
    thresholds = np.unique(np.concatenate([*levels, [np.inf]]))[::-1]
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if bank.estimate(mix.labels(score, thresholds[middle])) <= limit:
            low = middle
        else:
            high = middle - 1
    while written and low and len(bank.write(mix.labels(score, thresholds[low]), compress=True)) > limit:
        low -= 1 + low // 200
    return mix.labels(score, thresholds[low])


def header(change: DenseChange) -> Sequence[object]:
    """Return the names and shapes of the weights of a file."""
    return [(name, delta.shape) for name, delta in change.found.items()]
