"""A plan -> levels, codebooks fitted to what was quantized, and one amplitude a component."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.basis import basis_by_id
from nola_codec.entropy.rans import coded_bits, normalize
from nola_codec.fit.allocation import Plan, ladder
from nola_codec.fit.bank import Bank
from nola_codec.model import Codebook, Quantizer
from nola_codec.parallel import parallel_map
from nola_codec.quant.codebooks import POINT_SCALE, symmetric

Vector = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Levels = npt.NDArray[np.int8]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Quantized:
    """Levels of every kept unit.

    Attributes:
        kept: Indices of the bank's units; units whose every level would be 0 on a side are left out.
        precision: int64 (kept,).
        rung: int64 (2, kept): index into `quantizers`.
        levels: For each side, {length: int8 (vectors of the bank, length)}; only kept rows mean anything.
        quantizers: One for each rung of the ladders that is used, else None.
        amplitude: float64 (kept,): log2 of the product's scale, in sixteenths of an octave, not yet rounded.
        survival: float64 (2, kept): A as measured, the gain included.
        cosine2: float64 (2, kept): measured.
        norms: float64 (2, kept): Euclidean norm of the integer vector that the decoder synthesizes.
        coefficient_bits: Ideal bits of all levels under the fitted frequencies.
    """

    kept: Index
    precision: Index
    rung: Index
    levels: tuple[dict[int, Levels], dict[int, Levels]]
    quantizers: tuple[Quantizer | None, ...]
    amplitude: Vector
    survival: Vector
    cosine2: Vector
    norms: Vector
    coefficient_bits: float


def quantize(bank: Bank, plan: Plan, basis: int) -> Quantized:
    """Quantize the plan's vectors with its quantizers, then fit points and frequencies to the result."""
    rungs = ladder(plan.objective, 0).rungs
    most = max(len(r.thresholds) for r in rungs)
    counts = np.zeros((len(rungs), most + 1))
    sums = np.zeros((len(rungs), most + 1))
    levels: tuple[dict[int, Levels], dict[int, Levels]] = (
        {n: np.empty(m.shape, np.int8) for n, m in bank.matrices[0].items()},
        {n: np.empty(m.shape, np.int8) for n, m in bank.matrices[1].items()},
    )
    jobs = list(_jobs(bank, plan))

    def fill(job: tuple[int, int, int, Index]) -> tuple[int, Vector, Vector]:
        side, length, rung, units = job
        matrix, out = bank.matrices[side][length], levels[side][length]
        rows = bank.rows[side][plan.kept[units]]
        gain = plan.gain[side][units].astype(np.float32)
        values = matrix[rows] * gain[:, None]
        magnitude = np.abs(values)
        level = _level(magnitude, rungs[rung].thresholds)
        count = np.bincount(level.reshape(-1), minlength=most + 1).astype(np.float64)
        total = np.bincount(level.reshape(-1), magnitude.reshape(-1), minlength=most + 1).astype(np.float64)
        out[rows] = np.where(values < 0, -level, level)
        return rung, count, total

    for number, count, total in parallel_map(fill, jobs):
        counts[number] += count
        sums[number] += total
    quantizers = tuple(_fit(c, t, rung.points) if c.any() else None
                       for c, t, rung in zip(counts, sums, rungs, strict=True))  # fmt: skip
    bits = sum(
        coded_bits(_folded(c, q.codebook), q.frequencies or ())
        for c, q in zip(counts, quantizers, strict=True)
        if q is not None
    )
    dots, squares = _inner_products(bank, plan, levels, quantizers, jobs)
    alive = np.flatnonzero((dots[0] > 0) & (dots[1] > 0))
    kept, rung = plan.kept[alive], plan.rung[:, alive]
    lengths = bank.lengths[:, kept].astype(np.float64)
    dots, squares = dots[:, alive], squares[:, alive]
    cosine2 = np.minimum(dots**2 / (squares * lengths), 1.0)
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) for n in side] for side in bank.lengths[:, kept]])
    norms = np.sqrt(norm2.reshape(2, -1) * squares)
    gains = np.stack([plan.objective.gain(cosine2[side], side, bank.bears(side, kept)) for side in (0, 1)])
    size = bank.singular[kept] * np.prod(gains * np.sqrt(cosine2) / norms, axis=0)
    return Quantized(
        kept=kept,
        precision=plan.precision[alive],
        rung=rung,
        levels=levels,
        quantizers=quantizers,
        amplitude=16 * np.log2(size),
        survival=np.stack([plan.objective.survival(cosine2[side], side, bank.bears(side, kept)) for side in (0, 1)]),
        cosine2=cosine2,
        norms=norms,
        coefficient_bits=float(bits),
    )


def _jobs(bank: Bank, plan: Plan) -> list[tuple[int, int, int, Index]]:
    """(side, length, rung, positions in plan.kept), cut so that one job's matrix stays in the caches."""
    jobs: list[tuple[int, int, int, Index]] = []
    for side in (0, 1):
        lengths = bank.lengths[side][plan.kept]
        for length in np.unique(lengths):
            for rung in np.unique(plan.rung[side][lengths == length]):
                units = np.flatnonzero((lengths == length) & (plan.rung[side] == rung))
                step = max(1, _CHUNK // int(length))
                jobs += [
                    (side, int(length), int(rung), units[start : start + step]) for start in range(0, len(units), step)
                ]
    return jobs


def _level(magnitude: npt.NDArray[np.float32], thresholds: Vector) -> npt.NDArray[np.int8]:
    if len(thresholds) > 12:
        return np.searchsorted(thresholds.astype(np.float32), magnitude, side="right").astype(np.int8)
    level = np.zeros(magnitude.shape, np.int8)
    for threshold in thresholds.astype(np.float32):
        level += magnitude >= threshold
    return level


def _fit(counts: Vector, sums: Vector, ideal: Vector) -> Quantizer:
    """Codebook at the centroids and frequencies of the counts, levels beyond the highest used one left out."""
    top = max(1, int(np.flatnonzero(counts).max()))
    with np.errstate(invalid="ignore", divide="ignore"):
        centroids = np.where(counts[1 : top + 1] > 0, sums[1 : top + 1] / counts[1 : top + 1], ideal[:top])
    step = centroids[0] if top == 1 else float(np.median(np.diff(centroids)))
    points: list[int] = []
    for value in centroids:
        points.append(max(round(POINT_SCALE * float(value) / step), points[-1] + 1 if points else 1))
    folded = np.concatenate((counts[top:0:-1] / 2, counts[:1], counts[1 : top + 1] / 2))
    return Quantizer(symmetric(points), symmetric_frequencies(folded))


def symmetric_frequencies(counts: Vector) -> tuple[int, ...]:
    """`normalize`, made symmetric about the middle by giving the odd units to the middle symbol."""
    half = len(counts) // 2
    table = np.array(normalize(counts), np.int64)
    side = np.minimum(table[:half], table[half + 1 :][::-1])
    middle = int(table.sum() - 2 * side.sum())
    return (*(int(f) for f in side), middle, *(int(f) for f in side[::-1]))


def _folded(counts: Vector, codebook: Codebook) -> Vector:
    top = codebook.size // 2
    return np.concatenate((counts[top:0:-1] / 2, counts[:1], counts[1 : top + 1] / 2))


def _inner_products(
    bank: Bank,
    plan: Plan,
    levels: tuple[dict[int, Levels], dict[int, Levels]],
    quantizers: tuple[Quantizer | None, ...],
    jobs: list[tuple[int, int, int, Index]],
) -> tuple[Vector, Vector]:
    """<x, points> and |points|^2 of every vector, (2, plan.kept) each."""
    dots, squares = np.zeros((2, len(plan.kept))), np.zeros((2, len(plan.kept)))

    def one(job: tuple[int, int, int, Index]) -> None:
        side, length, rung, units = job
        quantizer = quantizers[rung]
        if quantizer is None:
            return
        rows = bank.rows[side][plan.kept[units]]
        table = np.array(quantizer.codebook.points, np.float32)
        points = table[levels[side][length][rows].astype(np.int16) + len(table) // 2]
        dots[side, units] = np.einsum("ij,ij->i", points, bank.matrices[side][length][rows])
        squares[side, units] = np.einsum("ij,ij->i", points, points)

    for _ in parallel_map(one, jobs):
        pass
    return dots, squares


def coded_nmse(bank: Bank, quantized: Quantized, amplitude: Index, basis: int) -> float:
    """Exact NMSE of the whole bank as coded, components' cross terms included, int16 rounding left out.

    Args:
        bank: The units.
        quantized: Their levels.
        amplitude: int64 (kept,): rounded codes.
        basis: Id of the orthogonal basis.
    """
    total = float((bank.strength**2).sum())
    if total == 0:
        return 0.0
    scale = np.exp2(amplitude / 32)
    modules = bank.module[quantized.kept]
    starts = np.searchsorted(bank.module, np.arange(int(bank.module.max()) + 1))
    tables = [None if q is None else np.array(q.codebook.points, np.float32) for q in quantized.quantizers]

    def one(module: int) -> float:
        own = np.flatnonzero(modules == module)
        first = int(starts[module])
        count = int((bank.module == module).sum())
        singular = bank.singular[first : first + count]
        factor = float(bank.strength[first] / singular[0]) if singular[0] > 0 else 0.0
        if not len(own):
            return float((singular**2).sum()) * factor**2
        crosses, squares = [], []
        for side in (0, 1):
            length = int(bank.lengths[side][first])
            rows = bank.rows[side][first : first + count]
            vectors = bank.matrices[side][length][rows[0] : rows[-1] + 1] / np.float32(np.sqrt(length))
            levels = quantized.levels[side][length][bank.rows[side][quantized.kept[own]]].astype(np.int16)
            points = np.empty(levels.shape, np.float32)
            for position, unit in enumerate(own):
                table = tables[quantized.rung[side][unit]]
                assert table is not None
                points[position] = table[levels[position] + len(table) // 2]
            points *= (scale[own] * np.sqrt(basis_by_id(basis).norm2(length)))[:, None].astype(np.float32)
            crosses.append((vectors @ points.T).astype(np.float64))
            squares.append((points @ points.T).astype(np.float64))
        cross = float((singular[:, None] * crosses[0] * crosses[1]).sum())
        return (float((singular**2).sum()) - 2 * cross + float((squares[0] * squares[1]).sum())) * factor**2

    return sum(parallel_map(one, range(len(starts)))) / total
