"""Measure the quantizers with memory on a Gaussian source, and search their masks.

    python tools/design_trellis.py           # the constants of nola_codec/fit/coders.py
    python tools/design_trellis.py --search  # random masks, slowly, until interrupted: the best found

A rate is the entropy of the levels, or the bits of a trellis. A cosine is that between a vector and its points.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from nola_codec.fit import coders
from nola_codec.fit.coders import DependentCoder, dependent_statistics, find_levels, fit_tables
from nola_codec.fit.ecsq import frontier
from nola_codec.fit.viterbi import encode_trellis
from nola_codec.model.quantizers import Trellis
from nola_codec.quant.trellis import TRELLISES, trellis_points

Floats = npt.NDArray[np.float32]
STEPS = tuple(float(s) for s in np.geomspace(0.75, 0.02, 28))


def gaussian(seed: int, vectors: int, count: int) -> Floats:
    """Unit variance, float32."""
    return np.random.default_rng(seed).standard_normal((vectors, count)).astype(np.float32)


def cosine2(values: Floats, points: npt.NDArray[np.float64]) -> float:
    """Mean squared cosine of the rows."""
    dots, squares = (values * points).sum(axis=1), (values**2).sum(axis=1) * (points**2).sum(axis=1)
    return float((dots**2 / squares).mean())


def dependent(step: float, values: Floats) -> tuple[float, float]:
    """(rate, squared cosine)."""
    coder = DependentCoder(step, 0.0, 0.0)
    (tables,) = fit_tables([(coder, values)])
    (levels,) = find_levels([coder.search(values, tables)])
    counts, sums = (part.sum(axis=0) for part in dependent_statistics(levels, values, coder.most))
    share = counts.sum(axis=0)
    folded = np.concatenate((share[:1], np.repeat(share[1:] / 2, 2)))
    folded = folded[folded > 0] / share.sum()
    centroids = sums / np.maximum(counts, 1)
    centroids[:, 0] = 0.0
    dot, square = float((centroids * sums).sum()), float((centroids**2 * counts).sum())
    return float(-(folded * np.log2(folded)).sum()), dot**2 / (square * float((values**2).sum()))


def tables() -> None:
    """Print the constants."""
    values = gaussian(1, 96, 2048)
    print("_DEPENDENT = (")
    for step in STEPS:
        rate, c = dependent(step, values)
        print(f"    ({step:.4f}, {rate:.4f}, {c:.6f}),", flush=True)
    print(")")
    long = gaussian(2, 48, 4608)
    found = [cosine2(long, trellis_points(t, encode_trellis(t, long), long.shape[1]).astype(float)) for t in TRELLISES]
    print("_COSINES = (" + ", ".join(f"{c:.4f}" for c in found) + ")")


def search() -> None:
    """Print ever better masks, until interrupted."""
    random = np.random.default_rng()
    values = gaussian(3, 48, 576)
    rates, cosines = (np.array(c) for c in zip(*((m.rate, m.cosine2) for m in frontier()), strict=True))
    best: dict[tuple[str, int], float] = {}
    while True:
        for memory in (6, 8):
            mask = coders.MASK = int(random.integers(1 << (memory - 1), 1 << memory)) | 1
            rate, c = dependent(0.5, values)
            saved = 1 - rate / float(np.interp(c, cosines, rates))
            if saved > best.get(("dependent", memory), 0.0):
                best["dependent", memory] = saved
                print(f"dependent {memory}: mask {mask:#010b} saves {saved:.2%} of a scalar's bits", flush=True)
        for old in TRELLISES:
            masks = tuple(tuple(int(m) for m in random.integers(1, 256, len(row))) for row in old.masks)
            masks = tuple(tuple(m | 0x81 if old.bits == 1 else m for m in row) for row in masks)
            made = Trellis(old.number, old.bits, masks, old.levels)
            c = cosine2(values, trellis_points(made, encode_trellis(made, values), values.shape[1]).astype(float))
            if c > best.get(("trellis", old.number), 0.0):
                best["trellis", old.number] = c
                flat = bytes(m for row in masks for m in row).hex()
                print(f"trellis {old.number}: {flat} {c:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true")
    search() if parser.parse_args().search else tables()
