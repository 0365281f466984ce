"""Make files to measure on a task, ours and those of peers: each as (bytes, deltas to add to a model).

These functions serve task_loss.py and second_task.py. The bytes are those of a whole file. A peer's is written by
`quantizers.FileWriter`: a compressed header of names and shapes, then codes and scales, each stream through zstd -19
where that is smaller. "SVD fp16" counts its numbers alone.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Pair, load, singular_components
from elements import Vectors, dare
from quantizers import FileWriter, Integers
from svd_codecs.columns import Component

import nola_codec
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.sizes import parse_size

Deltas = dict[str, tuple[Any, Any]]
"""Module -> (B, A), the scaling in B."""

BASE, FULL, OURS, PEER = "base", "full", "ours", "peer"


@dataclass(frozen=True)
class Case:
    """Something to evaluate. `group` joins our files of one --size, which differ in the seed; the error is ours too."""

    kind: str
    name: str
    bytes: int
    deltas: Deltas
    group: str = ""
    effective_error: float | None = None


@dataclass(frozen=True)
class Result:
    """The loss, and for some tasks the accuracy, of a case."""

    kind: str
    name: str
    bytes: int
    loss: float
    group: str = ""
    accuracy: float | None = None
    effective_error: float | None = None


def ours(source: Path, size: str, options: dict[str, Any]) -> tuple[int, Deltas, float | None]:
    """Bytes, decoded deltas and effective error of one encode."""
    data, report = nola_codec.encode_bytes(source, size=size, **options)
    decoder = Decoder(open_container(data), NUMPY)
    deltas = {}
    for record, factors in zip(decoder.header.pairs, decoder.decode_all(), strict=True):
        b, a = factors.float32(NUMPY)
        deltas[record.name] = (b * record.kind.scaling, a)
    return len(data), deltas, report.effective_error


def truncated(components: Sequence[Component], limit: int) -> tuple[int, Deltas]:
    """SVD in fp16: components by energy a byte, over all layers, until the size is reached."""
    order = sorted(
        (
            (c.s[i] ** 2 / (len(c.u) + len(c.v)), index, i)
            for index, c in enumerate(components)
            for i in range(len(c.s))
        ),
        reverse=True,
    )
    ranks = [0] * len(components)
    total = 0
    for _, index, _ in order:
        cost = 2 * (len(components[index].u) + len(components[index].v))
        if total + cost > limit:
            break
        ranks[index] += 1
        total += cost
    deltas = {}
    for c, rank in zip(components, ranks, strict=True):
        b, a = _balanced(c, rank)
        deltas[c.name] = (b.astype(np.float16), a.astype(np.float16))
    return total, deltas


def rounded(components: Sequence[Component], rank: int, bits: int) -> tuple[int, Deltas]:
    """SVD at one rank for all modules, rounded with a scale for 64 numbers."""
    quantizer = Integers(bits)
    writer = FileWriter([(c.name, len(c.u), len(c.v)) for c in components] + [rank], compress=True)
    deltas = {}
    for c in components:
        b, a = _balanced(c, rank)
        left, right = quantizer(b.T), quantizer(a)
        for side in (left, right):
            writer.add(side, np.arange(len(side.values)))
        deltas[c.name] = (left.values.T, right.values)
    return len(writer.blob()), deltas


def dropped(pairs: Sequence[Pair], drop: float, bits: int) -> tuple[int, Deltas]:
    """DARE on the factors as trained: a random share dropped, the rest rescaled, rounded. The mask's seed is free."""
    vectors = Vectors.raw(pairs)
    flat, coded, _ = dare(vectors, 1 - drop, Integers(bits))
    writer = FileWriter(vectors.header(), compress=True)
    writer.add(coded, np.array([0]))
    deltas = {pair.name: (b.T, a) for pair, (b, a) in zip(pairs, vectors.split(flat), strict=True)}
    return len(writer.blob()), deltas


def _balanced(c: Component, rank: int) -> tuple[Any, Any]:
    root = np.sqrt(c.s[:rank])
    return c.u[:, :rank] * root, (c.v[:, :rank] * root).T


def cases(
    source: Path,
    sizes: Sequence[str],
    seeds: Sequence[int],
    options: dict[str, Any],
    grid: tuple[Sequence[int], Sequence[int]],
    drops: tuple[Sequence[float], Sequence[int]],
) -> Iterator[Case]:
    """Everything that is evaluated; `grid` and `drops` are (ranks, bits) and (drop rates, bits) of the peers."""
    pairs = load(source)
    components = [singular_components(p) for p in pairs]
    yield Case(BASE, "base model", 0, {})
    full = {p.name: (p.B * p.scaling, p.A) for p in pairs}
    yield Case(FULL, "adapter, fp16", 2 * sum(p.A.size + p.B.size for p in pairs), full)
    for size in sizes:
        for seed in seeds:
            name = f"nola-codec --size {size}" + (f" seed {seed}" if seed else "")
            count, deltas, error = ours(source, size, {**options, "seed": seed})
            yield Case(OURS, name, count, deltas, size, error)
        yield Case(PEER, f"SVD fp16, {size}", *truncated(components, parse_size(size)))
    for rank in grid[0]:
        for bits in grid[1]:
            yield Case(PEER, f"SVD r={rank}, {bits}-bit g64", *rounded(components, rank, bits))
    for drop in drops[0]:
        for bits in drops[1]:
            yield Case(PEER, f"DARE {drop:g}, {bits}-bit g64", *dropped(pairs, drop, bits))


@contextmanager
def added(weights: Mapping[str, Any], deltas: Deltas) -> Iterator[None]:
    """B A added to each named weight of a model, and taken back on leaving."""
    import torch

    saved = {}
    with torch.no_grad():
        for module, (b, a) in deltas.items():
            name = module.removeprefix("base_model.model.") + ".weight"
            saved[name] = weights[name].clone()
            weights[name].add_(
                torch.from_numpy(np.asarray(b, np.float32)) @ torch.from_numpy(np.asarray(a, np.float32))
            )
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in saved.items():
                weights[name].copy_(weight)


def task_options(parser: argparse.ArgumentParser, sizes: list[str], rows: int, ranks: list[int]) -> None:
    """The options of a task's program, with its own defaults."""
    parser.add_argument("--sizes", nargs="+", default=sizes)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--ranks", nargs="*", type=int, default=ranks, help="ranks of the rounded SVD")
    parser.add_argument("--drops", nargs="*", type=float, default=[0.5, 0.9, 0.95, 0.99], help="drop rates of DARE")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; one is often fastest")
    parser.add_argument("--base", type=Path, help="model directory; made by tools/base_model.py when left out")
    parser.add_argument("--json", action="store_true")


def base_directory(*name: str) -> Path:
    """A base model by tools/base_model.py."""
    made = subprocess.run([sys.executable, ROOT / "tools" / "base_model.py", *name], stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.strip()) if made.returncode == 0 else sys.exit("no base model")


def bytes_at(results: Sequence[Result]) -> Callable[[float], tuple[str, float] | None]:
    """Return a function from a loss to the bytes that we need for it, by our own results.

    Results are averaged over seeds, and log(bytes) is linear between them. A point that is worse than a smaller file
    is left out as noise. For a loss above that of our smallest file the result is ("<", its bytes), and for one below
    our best it is None.
    """
    groups: dict[str, list[Result]] = {}
    for r in results:
        if r.kind == OURS:
            groups.setdefault(r.group, []).append(r)
    means = [np.mean([(r.bytes, r.loss) for r in group], axis=0).tolist() for group in groups.values()]
    curve: list[tuple[float, float]] = []
    for count, loss in sorted(means):
        if not curve or loss < curve[-1][1]:
            curve.append((count, loss))

    def find(loss: float) -> tuple[str, float] | None:
        if not curve or loss < curve[-1][1]:
            return None
        if loss > curve[0][1]:
            return "<", curve[0][0]
        losses = [point[1] for point in reversed(curve)]
        logs = [math.log(point[0]) for point in reversed(curve)]
        return "", math.exp(float(np.interp(loss, losses, logs)))

    return find


def render_error(result: Result) -> str:
    """Return the effective error of one of our files; nothing for others."""
    return "" if result.effective_error is None else f"{result.effective_error:.4f}"


def ratios(results: Sequence[Result]) -> list[str]:
    """For each result: a peer's bytes over ours at equal loss, "> 3.1x" where ours is the smallest file tried.

    A peer as bad as the base model has no ratio, nor one whose loss none of our files reaches.
    """
    find = bytes_at(results)
    base = next(r.loss for r in results if r.kind == BASE)
    out = []
    for r in results:
        found = find(r.loss) if r.kind == PEER and r.loss < base else None
        out.append("" if found is None else f"{'> ' if found[0] else ''}{r.bytes / found[1]:.1f}x")
    return out


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results with their ratios, without what is empty."""
    rows = [{**asdict(r), "peer_over_ours": ratio} for r, ratio in zip(results, ratios(results), strict=True)]
    return [{key: value for key, value in row.items() if value not in ("", None)} for row in rows]
