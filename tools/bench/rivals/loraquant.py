"""LoRAQuant (arXiv 2510.26690): the strong singular components of every module in 2 or 3 bits, the others as signs.

    delta_W = sum_i s_i u_i v_i^T;   a module's first h components, which hold a share of its energy, are rounded to
    2^b levels between the least and the largest number of each group of 128, and the others to their sign times the
    mean magnitude of a group.

The strong components are then refined by gradient, each by itself: its two vectors move so that the product of the
rounded vectors comes nearer to s_i u_i v_i^T, with the rounding passed over in the backward pass. Two things are added
to the paper in its favour: the refinement begins at the best range of each group, and components beyond a rank can be
left out, since 1 bit a number is the least that the method spends otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from common import Floats
from quantizers import FileWriter, Quantized, Signs
from svd_codecs.columns import Component
from task_peers import Deltas

from nola_codec.reporting.rounding import groups_of, ungrouped

GROUP = 128
SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


@dataclass(frozen=True)
class RangeLevels:
    """Round to 2^bits levels from the least to the largest number of a group, with 0 among them."""

    bits: int
    group: int = GROUP

    @property
    def name(self) -> str:
        return f"range{self.bits}/g{self.group}"

    def __call__(self, rows: Floats) -> Quantized:
        n, top = rows.shape[1], 2**self.bits - 1
        x = groups_of(rows.astype(np.float32), self.group)
        low, high = x.min(2, keepdims=True), x.max(2, keepdims=True)
        scale = ((high - low) / top).astype(np.float16)
        step = np.where(scale == 0, 1, scale).astype(np.float32)
        zero = np.clip(np.rint(-low / step), 0, top)
        codes = np.clip(np.rint(x / step) + zero, 0, top)
        values = ungrouped((codes - zero) * step, n)
        side = scale[..., 0], zero[..., 0].astype(np.uint8)
        return Quantized(values, ungrouped(codes, n).astype(np.uint8), self.bits, side)


@dataclass(frozen=True)
class LoraQuant:
    """A setting of the method.

    Attributes:
        share: The share of a module's energy that its strong components hold.
        bits: The bits of their numbers.
        rank: The most components of a module; those beyond are left out.
        steps: Steps of the refinement.
    """

    share: float
    bits: int
    rank: int
    steps: int = 100

    @property
    def name(self) -> str:
        """The setting as text."""
        return f"LoRAQuant {self.bits} bits for {self.share:.0%}, rank {self.rank}"

    def __call__(self, components: Sequence[Component]) -> tuple[int, Deltas]:
        """Return the bytes of a file, and what it decodes to."""
        writer = FileWriter([], compress=True)
        header, deltas = [], {}
        strong = self._strong(components)
        left, right = self._refined(components, strong)
        keep, signs = RangeLevels(self.bits), Signs(GROUP)
        for c, h in zip(components, strong, strict=True):
            weak = slice(h, self.rank)
            root = np.sqrt(c.s)
            made = []
            for vectors, others in ((left[c.name], (c.u * root).T[weak]), (right[c.name], (c.v * root).T[weak])):
                coded = [keep(vectors), *([signs(others)] if len(others) else [])]
                for part in coded:
                    writer.add(part, range(len(part.values)))
                made.append(np.concatenate([part.values for part in coded]))
            header.append([c.name, len(c.u), len(c.v), h, len(made[0])])
            deltas[c.name] = made[0].T, made[1]
        writer.header = header
        return len(writer.blob()), deltas

    def _strong(self, components: Sequence[Component]) -> list[int]:
        """Return h of each module."""
        found = []
        for c in components:
            energy = np.cumsum(c.s**2) / max(float((c.s**2).sum()), 1e-300)
            found.append(min(self.rank, int((energy < self.share).sum()) + 1))
        return found

    def _refined(
        self, components: Sequence[Component], strong: Sequence[int]
    ) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return the vectors (h, out) and (h, in) to be rounded of each module."""
        left, right = {}, {}
        for shape in {(len(c.u), len(c.v)) for c in components}:
            own = [(c, h) for c, h in zip(components, strong, strict=True) if (len(c.u), len(c.v)) == shape]
            size = np.concatenate([np.sqrt(c.s[:h]) for c, h in own]).astype(np.float32)[:, None]
            u, v = (np.concatenate([side[:, :h].T for side, h in sides]).astype(np.float32)
                    for sides in ([(c.u, h) for c, h in own], [(c.v, h) for c, h in own]))  # fmt: skip
            u, v = refine(u, v, RangeLevels(self.bits), self.steps)
            ends = np.cumsum([h for _, h in own])
            for (c, h), end in zip(own, ends.tolist(), strict=True):
                left[c.name], right[c.name] = (size * u)[end - h : end], (size * v)[end - h : end]
        return left, right


def clip(rows: Floats, keep: RangeLevels) -> Floats:
    """Clip each group to the range at which rounding it costs the least squared error."""
    x = groups_of(rows, keep.group)
    best, least = x.copy(), np.full((*x.shape[:2], 1), np.inf)
    for shrink in SHRINKS:
        tried = np.clip(x, shrink * x.min(2, keepdims=True), shrink * x.max(2, keepdims=True))
        values = groups_of(keep(tried.reshape(len(rows), -1)).values, keep.group)
        error = ((values - x) ** 2).sum(2, keepdims=True)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return ungrouped(best, rows.shape[1])


def refine(u: Floats, v: Floats, keep: RangeLevels, steps: int, rate: float = 0.05) -> tuple[Floats, Floats]:
    """Move unit vectors u (m, out) and v (m, in) so that their rounded product comes nearer to u v^T, row by row.

    Returns:
        For each row the best vectors that were met, before rounding. Without steps they are the vectors themselves.
    """
    if not steps:
        return u, v
    best, least = (u.copy(), v.copy()), np.full(len(u), np.inf)
    x, y = clip(u, keep), clip(v, keep)
    for step in range(steps):
        p, q = keep(x).values, keep(y).values
        up, vq, pp, qq = ((a * b).sum(1) for a, b in ((u, p), (v, q), (p, p), (q, q)))
        error = 1 - 2 * up * vq + pp * qq
        better = error < least
        least = np.where(better, error, least)
        best[0][better], best[1][better] = x[better], y[better]
        fall = rate * (1 - step / steps)
        x = x - fall * (qq[:, None] * p - vq[:, None] * u)  # the gradient of the error in p and q
        y = y - fall * (pp[:, None] * q - up[:, None] * v)
    return best
