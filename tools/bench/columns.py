"""Peers that keep some SVD components and quantize the kept ones: which are kept, at which width, at which error.

All components are quantized once at every width. The error of any choice is then a sum over small Gram matrices, so
the best setting for a target is found by bisection without reconstructing anything; only finalists are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from common import Component, Floats
from quantizers import FileWriter, Quantized, Quantizer, entropy_bits

DROPPED = -1
RESIZE_RULES = ("rank", "fro", "ratio")  # what kohya's resize_lora offers: each module looks at itself alone


@dataclass(frozen=True)
class Point:
    """One setting of a peer at work."""

    setting: str
    bytes: int
    nmse: float


def scores(components: Sequence[Component], rule: str) -> Floats:
    """(modules, ranks) positive scores: a setting keeps what scores at least its threshold. Padding scores 0.

    rank: 1 / (index + 1). fro: share of the module's energy not yet captured (`sv_fro`). ratio: s_c / s_0 squared
    (`sv_ratio`). global: s_c^2 per stored number, over the whole file.
    """
    width = max(len(c.s) for c in components)
    out = np.zeros((len(components), width))
    for row, c in zip(out, components, strict=True):
        energy = c.s**2
        if rule == "rank":
            row[: len(energy)] = 1 / np.arange(1, len(energy) + 1)
        elif rule == "fro":
            row[: len(energy)] = np.cumsum(energy[::-1])[::-1] / max(energy.sum(), 1e-300)
        elif rule == "ratio":
            row[: len(energy)] = energy / max(energy[0], 1e-300)
        else:
            row[: len(energy)] = energy / (len(c.u) + len(c.v))
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
            u = np.concatenate([pair[0].values for pair in coded])
            v = np.concatenate([pair[1].values for pair in coded])
            self.gram[row][np.ix_(at, at)] = (u @ u.T) * (v @ v.T)
            self.cross[row, at] = ((u @ c.u) * (v @ c.v)) @ c.s

    def nmse(self, labels: Floats) -> float:
        """Error when component (module, c) is stored by quantizer `labels[module, c]`, or dropped at -1."""
        mask = np.concatenate([labels == q for q in range(len(self.quantizers))], axis=1).astype(np.float64)
        kept = np.einsum("lc,lcd,ld->", mask, self.gram, mask, optimize=True) - 2 * (mask * self.cross).sum()
        return max(self.total + float(kept), 0.0) / self.total

    def decoded(self, labels: Floats) -> list[tuple[Floats, Floats]]:
        """(B', A') of every module, for checking `nmse` against the factors themselves."""
        out = []
        for coded, row in zip(self.sides, labels, strict=True):
            chosen = [(c, int(q)) for c, q in enumerate(row) if q != DROPPED]
            b = [coded[q][0].values[c] for c, q in chosen]
            a = [coded[q][1].values[c] for c, q in chosen]
            n, m = coded[0][0].values.shape[1], coded[0][1].values.shape[1]
            out.append((np.array(b).reshape(-1, n).T, np.array(a).reshape(-1, m)))
        return out

    def write(self, labels: Floats, compress: bool) -> bytes:
        """The file for these labels."""
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
    def costs(self) -> Floats:
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

    def estimate(self, labels: Floats) -> float:
        """Bytes of `write(labels)` roughly, for ranking settings."""
        return float(sum((self.costs[:, q] * (labels == q).sum(1)).sum() for q in range(len(self.quantizers))))


@dataclass(frozen=True)
class Mix:
    """A rule of choice: quantizer i goes to what scores at least ``multiples[i] * threshold``, the first that fits.

    What fits none is dropped, or stored by quantizer `rest` where that is given.
    """

    rule: str
    multiples: Mapping[int, float]
    rest: int = DROPPED

    def labels(self, score: Floats, threshold: float) -> Floats:
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
        """The smallest file with an error of at most `nmse`, or None where no setting gets there."""
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


def _loosest(bank: Bank, mix: Mix, nmse: float) -> Floats | None:
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
