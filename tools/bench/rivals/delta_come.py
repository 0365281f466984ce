"""Delta-CoMe (arXiv 2406.08903): singular components of a dense change in 8, 3 and 2 bits, the strong ones finer.

The authors give all matrices the same numbers of columns; one threshold over the whole model is tried too, and the
split that loses least is taken. They round by GPTQ on texts; here every group of 128 is clipped at its best instead.
"""

from __future__ import annotations

import numpy as np
from quantizers import Integers
from svd_codecs.columns import Bank, Labels, Mix

from rivals.dense import Changes, DenseChange, DenseFile, labels_that_fit

WIDTHS = (Integers(8, 128), Integers(3, 128), Integers(2, 128))
GRID: tuple[dict[int, float], ...] = (
    {2: 1}, {2: 1, 1: 2}, {2: 1, 1: 4}, {2: 1, 1: 16}, {2: 1, 1: 2, 0: 8}, {2: 1, 1: 4, 0: 64}, {2: 1, 0: 16}, {1: 1},
    {1: 1, 0: 8}, {1: 1, 0: 64},
)  # fmt: skip
"""How much more a component must weigh for 3 and for 8 bits than for 2: quantizer -> multiple of the threshold."""


class DeltaCome:
    """The method on one change; the components are rounded once for all sizes."""

    def __init__(self, change: DenseChange) -> None:
        self._change = change
        self._bank = Bank(change.components, WIDTHS)

    def __call__(self, limit: int) -> DenseFile:
        """Return the file of least error of at most `limit` bytes."""
        limit -= self._change.vector_bytes
        mixes = [Mix(rule, multiples) for rule in ("rank", "global") for multiples in GRID]
        best = min(mixes, key=lambda mix: self._bank.nmse(labels_that_fit(self._bank, mix, limit, written=False)))
        labels = labels_that_fit(self._bank, best, limit, written=True)
        size = len(self._bank.write(labels, compress=True)) + self._change.vector_bytes
        columns = [f"{(labels == q).sum() / len(labels):.1f} in {width.bits} bits" for q, width in enumerate(WIDTHS)]
        return DenseFile(f"Delta-CoMe, columns of a matrix: {', '.join(columns)}", size, self._decode(labels))

    def _decode(self, labels: Labels) -> Changes:
        pairs = self._bank.decoded(labels)
        made = {c.name: (b @ a).astype(np.float32) for c, (b, a) in zip(self._bank.components, pairs, strict=True)}
        return {**made, **self._change.vectors}
