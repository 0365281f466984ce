"""A plan -> levels, codebooks fitted to what was quantized, and one amplitude a component and rung."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.basis import basis_by_id
from nola_codec.fit.allocation import BOOST, Plan, coder_class, ladder, precision_shifts
from nola_codec.fit.bank import PLAIN, Bank
from nola_codec.fit.books import fit_quantizer, level_statistics
from nola_codec.fit.coders import DependentCoder, ScalarCoder, TrellisCoder, coders
from nola_codec.fit.viterbi import side_by_side
from nola_codec.model.quantizers import Book, Quantizer, Trellis
from nola_codec.parallel import parallel_map
from nola_codec.quant.points import book_points
from nola_codec.quant.scales import MAX_WEIGHT_CODE, layer_weight
from nola_codec.spool import allocate_array

Levels = npt.NDArray[np.int8]
Sides = tuple[dict[int, Levels], dict[int, Levels]]

_CHUNK = 1 << 20
_SAMPLE = 64
"""Vectors that a dependent quantizer's points are fitted to before the search."""
_WEIGHT_ONE = 1 << 15
"""What a ladder's coefficients are multiplied by to be integers."""


@dataclass
class Workspace:
    """Levels of all vectors, kept from draft to draft: a search is not repeated for a vector that keeps its coder.

    Attributes:
        levels: For each rung and side, {length: int8 (vectors of the bank, length)}: levels around 0; of a trellis, a
            step's bits in the first columns.
        owner: For each side, {length: int16 (vectors,)}: the coder whose levels rung 0 holds, -1 for none.
        prepared: What a dependent coder searches with.
        empty_bytes: Size of a file with nothing kept, once it is known.
    """

    levels: list[Sides] = field(default_factory=list)
    owner: tuple[dict[int, npt.NDArray[np.int16]], dict[int, npt.NDArray[np.int16]]] = ({}, {})
    prepared: dict[tuple[int, int], tuple[Float64Array, Float64Array]] = field(default_factory=dict)
    empty_bytes: int = 0

    def reserve(self, bank: Bank, rungs: int) -> None:
        """Make room for a bank and a number of rungs."""
        while len(self.levels) < rungs:
            self.levels.append(_like(bank, lambda matrix: allocate_array(matrix.shape, np.int8)))
        if not self.owner[0]:
            self.owner = _like(bank, lambda matrix: np.full(len(matrix), -1, np.int16))


def _like(bank: Bank, make: Callable[[Float32Array], Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """Something for each of a bank's matrices."""
    u, v = ({length: make(matrix) for length, matrix in side.items()} for side in bank.matrices)
    return u, v


@dataclass(frozen=True)
class Quantized:
    """Levels of every kept unit.

    Attributes:
        kept: Indices of the bank's units, without those whose every level is 0 on a side.
        entry: int64 (kept,): rung at which each comes in.
        precision: int64 (kept,).
        quantizer: int64 (rungs, 2, kept): index into `quantizers` of the layer that a rung adds, -1 for none.
        weight: int64 (rungs, 2, kept): code of the factor of the layer's points, see `layer_weight`.
        levels: As in `Workspace`.
        quantizers: Fitted.
        amplitude: float64 (rungs, kept): log2 of the product's scale, in sixteenths of an octave, not yet rounded.
        survival: float64 (rungs, 2, kept): A as measured, the gain included.
        squares: float64 (rungs, 2, kept): squared norm of a vector's integer coefficients at a rung.
    """

    kept: Int64Array
    entry: Int64Array
    precision: Int64Array
    quantizer: Int64Array
    weight: Int64Array
    levels: tuple[Sides, ...]
    quantizers: tuple[Quantizer, ...]
    amplitude: Float64Array
    survival: Float64Array
    squares: Float64Array

    @property
    def rungs(self) -> int:
        return len(self.levels)

    def symbols(self, bank: Bank, rung: int, side: int, unit: int) -> npt.NDArray[np.uint8]:
        """Symbols of the layer that a rung adds to a kept unit's vector."""
        book = self.quantizers[int(self.quantizer[rung, side, unit])].codebook
        index = int(self.kept[unit])
        length = int(bank.lengths[side, index])
        levels = self.levels[rung][side][length][bank.rows[side, index], : book.run(length)]
        return _symbols(book, levels)


def _symbols(book: Book, levels: Levels) -> npt.NDArray[np.uint8]:
    """Symbols of levels as a workspace holds them."""
    symbols = levels.view(np.uint8)
    return symbols if isinstance(book, Trellis) else np.asarray(symbols + np.uint8(book.size // 2))


def quantize(bank: Bank, plan: Plan, basis: int, workspace: Workspace) -> Quantized:
    """Quantize the plan's vectors with its coders, then fit points and frequencies to the result."""
    rungs = len(plan.steps)
    workspace.reserve(bank, rungs)
    made = _Layers(bank, plan, workspace)
    for rung in range(rungs):
        made.add(rung)
    alive = np.flatnonzero(made.alive())
    kept = plan.kept[alive]
    lengths = np.maximum(bank.lengths[:, kept], 1)
    dots, squares = np.maximum(made.dots[:, :, alive], 1e-30), np.maximum(made.squares[:, :, alive], 1e-30)
    cosine2 = np.minimum(dots**2 / (squares * lengths), 1.0)
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) for n in side] for side in lengths])
    norms = np.sqrt(norm2.reshape(2, -1) * squares)
    gains, survival = (
        np.array(
            [
                [of(objective)(cosine2[rung, side], bank.roles[side, kept], bank.bears(side, kept)) for side in (0, 1)]
                for rung, objective in enumerate(plan.objectives)
            ]
        )
        for of in (attrgetter("gain"), attrgetter("survival"))
    )
    size = bank.singular[kept] * np.prod(gains * np.sqrt(cosine2) / norms, axis=1)
    boost = _boost(bank, plan, kept, plan.entry[alive], survival.prod(axis=1))
    size *= np.where(bank.roles[0, kept] == PLAIN, 1.0, boost[:, None])
    return Quantized(
        kept=kept,
        entry=plan.entry[alive],
        precision=plan.precision[alive],
        quantizer=made.quantizer[:, :, alive],
        weight=made.weight[:, :, alive],
        levels=tuple(workspace.levels[:rungs]),
        quantizers=tuple(made.quantizers),
        amplitude=16 * np.log2(size),
        survival=survival,
        squares=squares,
    )


def _boost(bank: Bank, plan: Plan, kept: Int64Array, entry: Int64Array, share: Float64Array) -> Float64Array:
    """Factor on the amplitudes of each rung, (rungs,): the share of the energy that survives, to the power -BOOST.

    Norms and biases are coded for themselves and take no part in it.
    """
    energy = np.where(bank.roles[0] == PLAIN, 0.0, bank.strength**2)
    total = float(energy.sum())
    factors = []
    for rung, objective in enumerate(plan.objectives):
        survived = float((energy[kept] * share[rung] * (entry <= rung)).sum())
        factors.append((survived / total) ** -BOOST if objective.name != "nmse" and survived > 0 else 1.0)
    return np.array(factors)


class _Job(NamedTuple):
    """Vectors of one side, role, length and coder, at some positions in plan.kept; few enough to stay in the caches."""

    side: int
    role: int
    length: int
    coder: int
    units: Int64Array


def _zeros(matrix: Float32Array) -> Float32Array:
    made = allocate_array(matrix.shape, np.float32)
    made[:] = 0
    return made


class _Layers:
    """Layers of the kept units, rung by rung."""

    def __init__(self, bank: Bank, plan: Plan, workspace: Workspace) -> None:
        self._bank, self._plan, self._workspace = bank, plan, workspace
        shape = (len(plan.steps), 2, len(plan.kept))
        self.quantizers: list[Quantizer] = []
        self._numbers: dict[tuple[int, int], int] = {}  # of (rung or -1, coder)
        self.quantizer = np.full(shape, -1, np.int64)
        self.weight = np.zeros(shape, np.int64)
        self.dots, self.squares = np.zeros(shape), np.zeros(shape)
        absent = bank.lengths[:, plan.kept] == 0  # of what a vector has no second side: counts as kept exactly
        self.dots[:, absent], self.squares[:, absent] = 1.0, 1.0
        self._sums: tuple[dict[int, Float32Array], dict[int, Float32Array]] | None = None
        if len(plan.steps) > 1:
            self._sums = _like(bank, _zeros)

    def alive(self) -> npt.NDArray[np.bool_]:
        """Units that are not zero on a side at any rung that has them."""
        there = np.arange(len(self.dots))[:, None, None] >= self._plan.entry[None, None, :]
        return np.asarray(((self.dots > 0) | ~there).all(axis=(0, 1)))

    def add(self, rung: int) -> None:
        """Code one rung's layers."""
        jobs = self._jobs(rung)
        for coder in sorted({job.coder for job in jobs}):
            self._code(rung, coder, [job for job in jobs if job.coder == coder])
        if self._sums is not None:
            self._weigh(rung)
        for _ in parallel_map(lambda job: self._measure(rung, job), jobs):
            pass
        if rung:  # units without a layer stand as they stood
            idle = self.quantizer[rung] < 0
            self.dots[rung][idle], self.squares[rung][idle] = self.dots[rung - 1][idle], self.squares[rung - 1][idle]

    def _jobs(self, rung: int) -> list[_Job]:
        jobs: list[_Job] = []
        plan = self._plan
        for side in (0, 1):
            chosen = plan.coder[rung, side]
            for role, length, own in self._bank.groups(side, plan.kept):
                for coder in np.unique(chosen[own][chosen[own] >= 0]).tolist():
                    units = own[chosen[own] == coder]
                    scalar = isinstance(coders()[coder], ScalarCoder)
                    step = max(1, _CHUNK // length) if scalar else side_by_side(length)
                    jobs += [
                        _Job(side, role, length, coder, units[start : start + step])
                        for start in range(0, len(units), step)
                    ]
        return jobs

    def _values(self, rung: int, job: _Job) -> Float32Array:
        """What the rungs before have left of the units' vectors, scaled to unit variance."""
        side, role, length, _, units = job
        rows = self._bank.rows[side][self._plan.kept[units]]
        values: Float32Array = self._bank.matrices[side][length][rows]
        if self._sums is None or rung == 0:
            return values
        steps = ladder(self._plan.objectives, role, coder_class(role, length), self._plan.steps)
        where = steps.at(self._plan.precision[units] + precision_shifts(np.array([length])))
        spread = np.sqrt(1 - steps.cosine2[rung - 1, where]).astype(np.float32)
        return np.asarray((values - self._sums[side][length][rows]) / spread[:, None])

    def _code(self, rung: int, number: int, jobs: list[_Job]) -> None:
        """Levels of all vectors of one coder, and its quantizer."""
        coder = coders()[number]
        space = self._workspace
        if isinstance(coder, DependentCoder) and (rung, number) not in space.prepared:
            sample = jobs[0]._replace(units=jobs[0].units[:_SAMPLE])
            space.prepared[rung, number] = coder.prepared(self._values(rung, sample))

        def fill(job: _Job) -> tuple[Float64Array, Float64Array]:
            side, _, length, _, units = job
            rows = self._bank.rows[side][self._plan.kept[units]]
            out = space.levels[rung][side][length]
            known = rung == 0 and bool((space.owner[side][length][rows] == number).all())
            values = self._values(rung, job)
            if isinstance(coder, ScalarCoder):
                out[rows] = coder.levels(values)
            elif not known and isinstance(coder, DependentCoder):
                out[rows] = coder.levels(values, space.prepared[rung, number])
            elif not known and isinstance(coder, TrellisCoder):
                symbols = coder.symbols(values)
                out[rows, : symbols.shape[1]] = symbols
            if rung == 0:
                space.owner[side][length][rows] = number
            return level_statistics(coder, out[rows], values)

        statistics = list(parallel_map(fill, jobs))
        key = (-1 if isinstance(coder, TrellisCoder) else rung, number)
        if key not in self._numbers:
            self._numbers[key] = len(self.quantizers)
            self.quantizers.append(fit_quantizer(coder, [sum(part) for part in zip(*statistics, strict=True)]))
        for job in jobs:
            self.quantizer[rung, job.side, job.units] = self._numbers[key]

    def _points(self, rung: int, job: _Job) -> npt.NDArray[np.float32]:
        """The layer's points, without its weight."""
        side, _, length, _, units = job
        book = self.quantizers[int(self.quantizer[rung, side, units[0]])].codebook
        rows = self._bank.rows[side][self._plan.kept[units]]
        levels = self._workspace.levels[rung][side][length][rows, : book.run(length)]
        return np.asarray(book_points(book, _symbols(book, levels), length), np.float32)

    def _weigh(self, rung: int) -> None:
        """Integer weights: a layer's least-squares factor, shared by all units with the same layers so far."""
        assert self._sums is not None
        sums = self._sums
        shared: dict[tuple[int, ...], list[float]] = {}
        found: list[tuple[_Job, list[tuple[int, ...]], npt.NDArray[np.float32]]] = []
        for job in self._jobs(rung):
            side, role, length, _, units = job
            rows = self._bank.rows[side][self._plan.kept[units]]
            points = self._points(rung, job)
            rest = self._bank.matrices[side][length][rows] - sums[side][length][rows]
            dots, squares = np.einsum("ij,ij->i", rest, points), np.einsum("ij,ij->i", points, points)
            chains = [
                (role, coder_class(role, length), *c) for c in self._plan.coder[: rung + 1, side, units].T.tolist()
            ]
            for chain, dot, square in zip(chains, dots.tolist(), squares.tolist(), strict=True):
                total = shared.setdefault(chain, [0.0, 0.0])
                total[0] += dot
                total[1] += square
            found.append((job, chains, points))
        for (side, _, length, _, units), chains, points in found:
            factors = np.array([shared[c][0] / max(shared[c][1], 1e-30) for c in chains])
            codes = np.clip(np.rint(8 * np.log2(np.maximum(factors, 1e-9) * _WEIGHT_ONE)), 0, MAX_WEIGHT_CODE).astype(
                np.int64
            )
            self.weight[rung, side, units] = codes
            rows = self._bank.rows[side][self._plan.kept[units]]
            weights = np.array([layer_weight(int(c)) for c in codes], np.float64) / _WEIGHT_ONE
            sums[side][length][rows] += points * weights[:, None].astype(np.float32)

    def _measure(self, rung: int, job: _Job) -> None:
        """Inner products of the vectors with their coded form so far, and its squared norm."""
        side, _, length, _, units = job
        rows = self._bank.rows[side][self._plan.kept[units]]
        coded = (
            self._points(rung, job) if self._sums is None else self._sums[side][length][rows] * np.float32(_WEIGHT_ONE)
        )
        self.dots[rung, side, units] = np.einsum("ij,ij->i", coded, self._bank.matrices[side][length][rows])
        self.squares[rung, side, units] = np.einsum("ij,ij->i", coded, coded)


def unit_points(bank: Bank, quantized: Quantized, side: int, units: Int64Array, rung: int) -> npt.NDArray[np.float32]:
    """Coefficients that a decoder at a rung has for kept units of one module, float32 (units, length)."""
    length = int(bank.lengths[side, quantized.kept[units[0]]])
    total = np.zeros((len(units), length), np.float32)
    for layer in range(rung + 1):
        for number in np.unique(quantized.quantizer[layer, side, units]).tolist():
            if number < 0:
                continue
            own = np.flatnonzero(quantized.quantizer[layer, side, units] == number)
            symbols = np.stack([quantized.symbols(bank, layer, side, int(units[i])) for i in own])
            points = book_points(quantized.quantizers[number].codebook, symbols, length).astype(np.float32)
            weights = [layer_weight(int(code)) for code in quantized.weight[layer, side, units[own]]]
            total[own] += points * np.array(weights, np.float32)[:, None]
    return total


def coded_nmse(bank: Bank, quantized: Quantized, amplitude: Int64Array, basis: int, rung: int) -> float:
    """Exact NMSE of the whole bank as coded at a rung, components' cross terms included, int16 rounding left out.

    Args:
        bank: The units.
        quantized: Their levels.
        amplitude: int64 (kept,): rounded codes at the rung; those of units not yet there are ignored.
        basis: Id of the orthogonal basis.
        rung: Which one.
    """
    total = float((bank.strength**2).sum())
    if total == 0:
        return 0.0
    scale = np.exp2(amplitude / (16 * (bank.lengths[:, quantized.kept] > 0).sum(axis=0)))
    records = bank.record[quantized.kept]
    starts = np.searchsorted(bank.record, np.arange(int(bank.record.max()) + 1))

    def one(record: int) -> float:
        own = np.flatnonzero((records == record) & (quantized.entry <= rung))
        first = int(starts[record])
        count = int((bank.record == record).sum())
        singular = bank.singular[first : first + count]
        factor = float(bank.strength[first] / singular[0]) if singular[0] > 0 else 0.0
        if not len(own):
            return float((singular**2).sum()) * factor**2
        cross = np.repeat(singular[:, None], len(own), axis=1)
        square = np.ones((len(own), len(own)))
        for side in (0, 1):
            length = int(bank.lengths[side][first])
            if not length:
                continue
            rows = bank.rows[side][first : first + count]
            vectors = bank.matrices[side][length][rows[0] : rows[-1] + 1] / np.float32(np.sqrt(length))
            points = unit_points(bank, quantized, side, own, rung)
            points *= (scale[own] * np.sqrt(basis_by_id(basis).norm2(length)))[:, None].astype(np.float32)
            cross *= vectors @ points.T
            square *= points @ points.T
        return (float((singular**2).sum()) - 2 * float(cross.sum()) + float(square.sum())) * factor**2

    return sum(parallel_map(one, range(len(starts)))) / total
