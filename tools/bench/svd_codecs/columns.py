"""Peers that keep some SVD components and round the kept ones: which are kept, at which width, at which error.

All components are quantized once at every width. The error of any choice is then a sum over small Gram matrices, so
the best setting for a target is found by bisection without reconstructing anything; only finalists are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nola_codec.fit.components import singular_components
from nola_codec.reporting.rounding import Floats, Quantized, Quantizer
from svd_codecs.file import FileWriter, entropy_bits

Vector = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DROPPED = -1
RESIZE_RULES = ("rank", "fro", "ratio", "cumulative")
"""The rules of kohya's resize_lora, which look at one module at a time and keep at least one component."""


@dataclass(frozen=True)
class Component:
    """A module in canonical form, ``delta_W = U diag(s) V^T``.

    Attributes:
        name: The name of the module.
        u: float32 (out, r), orthonormal columns.
        s: float64 (r,), descending, with |scaling| included.
        v: float32 (in, r), orthonormal columns.
    """

    name: str
    u: npt.NDArray[np.float32]
    s: Vector
    v: npt.NDArray[np.float32]


def component(name: str, lora_B: npt.NDArray[np.float32], lora_A: npt.NDArray[np.float32], scaling: float) -> Component:
    """Return all components of ``scaling * lora_B @ lora_A``."""
    parts = singular_components(lora_B, lora_A)
    count = min(lora_B.shape[0], lora_A.shape[1], len(parts.s))
    sign = np.float32(-1 if scaling < 0 else 1)
    return Component(name, sign * parts.u[:count].T, abs(scaling) * parts.s[:count], parts.v[:count].T)


@dataclass(frozen=True)
class Point:
    """One file of a peer: its setting, its bytes and its NMSE."""

    setting: str
    bytes: int
    nmse: float


def scores(components: Sequence[Component], rule: str) -> Vector:
    """(modules, ranks) positive scores: a setting keeps what scores at least its threshold. Padding scores 0.

    rank: 1 / (index + 1). fro: share of the module's energy not yet captured (`sv_fro`). cumulative: the same of its
    singular values (`sv_cumulative`). ratio: s_c / s_0 squared (`sv_ratio`). global: s_c^2 per stored number, over the
    whole file.
    """
    out = np.zeros((len(components), max(len(c.s) for c in components)))
    for row, c in zip(out, components, strict=True):
        energy = c.s**2
        if rule == "rank":
            score: Vector = 1 / np.arange(1, len(energy) + 1)
        elif rule in ("fro", "cumulative"):
            amount = energy if rule == "fro" else c.s
            score = np.cumsum(amount[::-1])[::-1]
            score = score / max(score[0], 1e-300)  # exactly 1 at the first, which no threshold then takes away
        elif rule == "ratio":
            score = energy / max(energy[0], 1e-300)
        else:
            score = energy / (len(c.u) + len(c.v))
        row[: len(energy)] = score
    return out


class Bank:
    """Every component of an adapter at every width of a peer.

    Components carry the square root of their singular value on both sides, as resized LoRA files do.
    """

    def __init__(self, components: Sequence[Component], quantizers: Sequence[Quantizer]) -> None:
        self.components = components
        self.quantizers = quantizers
        self.total = float(sum((c.s**2).sum() for c in components))
        self.width = max(len(c.s) for c in components)
        self.sides: list[list[tuple[Quantized, Quantized]]] = []  # [module][quantizer] -> (u side, v side)
        count = len(quantizers) * self.width
        self.gram = np.zeros((len(components), count, count))
        self.cross = np.zeros((len(components), count))
        for row, c in enumerate(components):
            root = np.sqrt(c.s)
            left, right = (c.u * root).T, (c.v * root).T
            coded = [(quantize(left), quantize(right)) for quantize in quantizers]
            self.sides.append(coded)
            at = np.concatenate([np.arange(len(c.s)) + q * self.width for q in range(len(quantizers))])
            u = np.concatenate([pair[0].values for pair in coded]).astype(np.float64)
            v = np.concatenate([pair[1].values for pair in coded]).astype(np.float64)
            self.gram[row][np.ix_(at, at)] = (u @ u.T) * (v @ v.T)
            self.cross[row, at] = ((u @ c.u) * (v @ c.v)) @ c.s

    def nmse(self, labels: Labels) -> float:
        """Return the error if quantizer `labels[module, c]` stores component (module, c), and -1 drops it."""
        if self.total == 0:
            return 0.0
        mask = np.concatenate([labels == q for q in range(len(self.quantizers))], axis=1).astype(np.float64)
        kept = np.einsum("lc,lcd,ld->", mask, self.gram, mask, optimize=True) - 2 * (mask * self.cross).sum()
        return max(self.total + float(kept), 0.0) / self.total

    def decoded(self, labels: Labels) -> list[tuple[Floats, Floats]]:
        """Return (B', A') of every module, to check `nmse` against the factors themselves."""
        out = []
        for coded, row in zip(self.sides, labels, strict=True):
            chosen = [(c, int(q)) for c, q in enumerate(row) if q != DROPPED]
            b = [coded[q][0].values[c] for c, q in chosen]
            a = [coded[q][1].values[c] for c, q in chosen]
            n, m = coded[0][0].values.shape[1], coded[0][1].values.shape[1]
            out.append((np.array(b).reshape(-1, n).T, np.array(a).reshape(-1, m)))
        return out

    def write(self, labels: Labels, compress: bool) -> bytes:
        """Return the bytes of the file for these labels."""
        header = [
            [c.name, len(c.u), len(c.v), *((row == q).sum().item() for q in range(len(self.quantizers)))]
            for c, row in zip(self.components, labels, strict=True)
            if (row != DROPPED).any()
        ]
        writer = FileWriter(header, compress)
        for coded, row in zip(self.sides, labels, strict=True):
            for q, pair in enumerate(coded):
                rows = np.flatnonzero(row == q)
                for side in pair if len(rows) else ():
                    writer.add(side, rows)
        return writer.blob()

    @cached_property
    def costs(self) -> Vector:
        """(modules, quantizers): estimated bytes of a component, codes at their order-0 entropy."""
        out = np.zeros((len(self.components), len(self.quantizers)))
        for q in range(len(self.quantizers)):
            codes = [side.codes.ravel() for pair in self.sides for side in pair[q] if side.codes is not None]
            rate = entropy_bits(np.concatenate(codes), self.sides[0][q][0].bits) if codes else 0.0
            for row, coded in enumerate(self.sides):
                for side in coded[q]:
                    out[row, q] += rate / 8 * side.codes.shape[1] if side.codes is not None else 0
                    out[row, q] += sum(part[0].nbytes for part in side.side)
        return out

    def estimate(self, labels: Labels) -> float:
        """Return the approximate bytes of `write(labels)`, to rank settings."""
        return float(sum((self.costs[:, q] * (labels == q).sum(1)).sum() for q in range(len(self.quantizers))))


@dataclass(frozen=True)
class Mix:
    """A rule of choice: quantizer i goes to what scores at least ``multiples[i] * threshold``, the first that fits.

    A component that fits none is dropped, or stored by quantizer `rest` if that is given.
    """

    rule: str
    multiples: Mapping[int, float]
    rest: int = DROPPED

    def labels(self, score: Vector, threshold: float) -> Labels:
        """Labels for `Bank` at one threshold; the padding is dropped."""
        out = np.full(score.shape, self.rest)
        for quantizer, multiple in sorted(self.multiples.items(), key=lambda item: item[1]):
            out[score >= multiple * threshold] = quantizer
        return np.where(score > 0, out, DROPPED)


class Columns:
    """A peer: widths, rules for mixing them, and whether zstd follows."""

    def __init__(
        self, name: str, banks: Sequence[tuple[Bank, Sequence[Mix]]], *, compress: bool, finalists: int = 3
    ) -> None:
        self.name = name
        self.banks = banks
        self.compress = compress
        self.finalists = finalists

    def best_at(self, nmse: float) -> Point | None:
        """Return the smallest file with an error of at most `nmse`, or None if no setting reaches it."""
        found = []
        for bank, mixes in self.banks:
            for mix in mixes:
                labels = _loosest(bank, mix, nmse)
                if labels is not None:
                    names = "+".join(q.name for q in bank.quantizers)
                    found.append((bank.estimate(labels), f"{names} by {mix.rule}", bank, labels))
        found.sort(key=lambda item: item[0])
        points = [
            Point(name, len(bank.write(labels, self.compress)), bank.nmse(labels))
            for _, name, bank, labels in found[: self.finalists]
        ]
        return min(points, key=lambda point: point.bytes, default=None)


def _loosest(bank: Bank, mix: Mix, nmse: float) -> Labels | None:
    """Labels at the highest threshold that meets the error, by bisection over the distinct thresholds."""
    score = scores(bank.components, mix.rule)
    levels = [score[score > 0] / multiple for multiple in mix.multiples.values()]
    thresholds = np.unique(np.concatenate([*levels, [np.inf]]))[::-1]
    low, high = 0, len(thresholds) - 1
    if bank.nmse(mix.labels(score, thresholds[high])) > nmse:
        return None
    while low < high:
        middle = (low + high) // 2
        if bank.nmse(mix.labels(score, thresholds[middle])) <= nmse:
            high = middle
        else:
            low = middle + 1
    return mix.labels(score, thresholds[low])
