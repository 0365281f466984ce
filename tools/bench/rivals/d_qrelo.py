"""D-QReLO (arXiv 2604.16940): the signs of a dense change with a scale a matrix, and a low-rank form of what they miss.

One bit a number is 1/16 of 16 bits, so the method has no smaller files. Below, in its favour, only some matrices get
signs, as many as a share of the bytes allows, those of most energy a number first. The low-rank part is that of all
matrices, in 8 bits, with as many components as fit, the strongest of the whole model first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from quantizers import Integers
from svd_codecs.columns import Bank, Mix

from rivals.dense import DenseChange, DenseFile, component, labels_that_fit

WIDTH = Integers(8, 128)


@dataclass(frozen=True)
class DQReLO:
    """A setting of the method.

    Attributes:
        share: The share of a file's bytes for signs; None gives signs to all matrices, whatever they take.
    """

    share: float | None

    def __call__(self, change: DenseChange, limit: int) -> DenseFile:
        """Return a file of at most `limit` bytes; with signs for all matrices, `limit` is that of the low-rank part."""
        signed, used = {}, change.vector_bytes
        budget = np.inf if self.share is None else self.share * limit
        order = sorted(change.matrices, key=lambda name: -float((change.matrices[name] ** 2).mean()))
        for name in order:
            delta = change.matrices[name]
            cost = (delta.size + 7) // 8 + 2
            if used + cost > budget:
                continue
            used += cost
            signed[name] = np.where(delta < 0, np.float32(-1), np.float32(1)) * np.float16(np.abs(delta).mean())
        residues = [
            component(name, delta - signed[name] if name in signed else delta, i)
            for i, (name, delta) in enumerate(change.matrices.items())
        ]
        bank = Bank(residues, [WIDTH])
        labels = labels_that_fit(
            bank, Mix("global", {0: 1.0}), limit if self.share is None else limit - used, written=True
        )
        low_rank = len(bank.write(labels, compress=True))
        made = {
            c.name: signed.get(c.name, np.float32(0)) + (b @ a).astype(np.float32)
            for c, (b, a) in zip(residues, bank.decoded(labels), strict=True)
        }
        rank = (labels >= 0).sum() / len(residues)
        what = f"D-QReLO, signs in {len(signed)} of {len(residues)} matrices, rank {rank:.1f} on average"
        return DenseFile(what, used + low_rank, {**made, **change.vectors})
