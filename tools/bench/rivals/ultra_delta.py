"""UltraDelta (arXiv 2505.13563): a dense change in few levels; a random share is dropped, and the rest enlarged.

Numbers are rounded to levels of one step a matrix; then a share is dropped at random, a smaller one in matrices of
large variance; what stays is divided by the share that stays, times a factor that is chosen on text (the authors
estimate it from the trace norm). In its favour: 0 is one of the levels, and the positions that stay come from a seed
and cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from common import Floats
from quantizers import FileWriter, Quantized
from svd_codecs.file import entropy_bits

from rivals.dense import DenseChange, DenseFile, header

SPREAD = 0.25
"""Of a share p, matrices of small variance keep p^(1 + SPREAD), and those of large variance p^(1 - SPREAD)."""


@dataclass(frozen=True)
class UltraDelta:
    """A setting of the method.

    Attributes:
        bits: The width of a level.
        seed: Draws what is dropped.
        factor: What stays is multiplied by it, besides the inverse of the share that stays.
    """

    bits: int
    seed: int = 0
    factor: float = 1.0

    def __call__(self, change: DenseChange, limit: int) -> DenseFile:
        """Return the file with the largest share kept of at most `limit` bytes."""
        third = _thirds(change)
        limit -= change.vector_bytes
        share = min(1.0, 8 * limit / (self._entropy(change) + 1e-9))
        while (size := len(self._write(change, share, third).blob())) > limit:
            share *= 0.995 * limit / size
        made = {
            name: self._kept(index, delta, share, third[name])[1]
            for index, (name, delta) in enumerate(change.matrices.items())
        }
        what = f"UltraDelta, {self.bits} bits, {share:.1%} kept, factor {self.factor:g}, seed {self.seed}"
        return DenseFile(what, size + change.vector_bytes, {**made, **change.vectors})

    def _entropy(self, change: DenseChange) -> float:
        """Return the bits that all levels take, by their entropy in each matrix."""
        total = 0.0
        for index, (_, delta) in enumerate(change.matrices.items()):
            codes = self._kept(index, delta, 1.0, 1)[0].codes
            assert codes is not None
            total += entropy_bits(codes, self.bits) * codes.size
        return total

    def _write(self, change: DenseChange, share: float, third: dict[str, int]) -> FileWriter:
        writer = FileWriter([*header(change), self.bits, self.seed, share], compress=True)
        for index, (name, delta) in enumerate(change.matrices.items()):
            writer.add(self._kept(index, delta, share, third[name])[0], [0])
        return writer

    def _kept(self, index: int, delta: Floats, share: float, third: int) -> tuple[Quantized, Floats]:
        """Return what a file stores of a matrix, and what it decodes to."""
        own = share ** (1 - SPREAD * (third - 1))
        kept = np.random.default_rng([self.seed, index]).random(delta.shape, np.float32) < own
        top = 2 ** (self.bits - 1) - 1
        step = np.float16(max(float(np.abs(delta).max()) / top, 1e-7))
        levels = np.rint(delta[kept] / np.float32(step)).clip(-top, top)
        made = np.zeros_like(delta)
        made[kept] = levels * (np.float32(step) * np.float32(self.factor / max(own, 1e-9)))
        codes = (levels + top).astype(np.uint8)[None]
        return Quantized(levels, codes, self.bits, (np.array([[step]], np.float16),)), made


def _thirds(change: DenseChange) -> dict[str, int]:
    """Return 0, 1 or 2 for each matrix: the third of all numbers that it lies in, by variance."""
    order = sorted(change.matrices, key=lambda name: float(change.matrices[name].var()))
    total = sum(change.matrices[name].size for name in order)
    found, before = {}, 0
    for name in order:
        found[name] = min(2, 3 * before // total)
        before += change.matrices[name].size
    return found
