"""Quantize the vectors that a plan keeps; fit the codebooks to the result, and an amplitude to each unit and rung."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.basis import basis_by_id
from nola_codec.fit.allocation import BOOST, RatePlan, coder_class, precision_shifts, rate_table
from nola_codec.fit.books import fit_quantizer, level_statistics
from nola_codec.fit.canonical_form import PLAIN, CanonicalForm
from nola_codec.fit.coders import DependentCoder, ScalarCoder, TrellisCoder, coders
from nola_codec.fit.levels import DraftLevels, Levels, Workspace, matrices_like
from nola_codec.fit.viterbi import side_by_side
from nola_codec.model.quantizers import Book, Quantizer, Trellis
from nola_codec.parallel import parallel_map
from nola_codec.quant.points import book_points
from nola_codec.quant.scales import MAX_WEIGHT_CODE, layer_weight
from nola_codec.spool import spooled

_CHUNK = 1 << 20
_SAMPLE = 64
"""Number of vectors that a dependent quantizer's points are fitted to before the search."""
_WEIGHT_ONE = 1 << 15
"""Factor that turns the coefficients of a progressive file into integers."""


@dataclass(frozen=True)
class QuantizedForm:
    """A canonical form, quantized: the levels of every kept unit, and the quantizers that they belong to.

    The levels live in the workspace that made them. Reading symbols raises `StaleDraftError` after the workspace was
    used for a newer draft; everything else belongs to this object.

    Attributes:
        kept: Indices of the form's units that are coded, without those that have only zeros on a side.
        entry: int64 (kept,): the rung at which each unit starts.
        precision: int64 (kept,).
        quantizer: int64 (rungs, 2, kept): index into `quantizers` of the layer that a rung adds, -1 for none.
        weight: int64 (rungs, 2, kept): code of the factor on the layer's points, see `layer_weight`.
        levels: See above.
        quantizers: Fitted to the levels.
        amplitude: float64 (rungs, kept): log2 of the product's scale, in sixteenths of an octave, not yet rounded.
        survival: float64 (rungs, 2, kept): A as measured, the gain included.
        squares: float64 (rungs, 2, kept): squared norm of a vector's integer coefficients at a rung.
    """

    kept: Int64Array
    entry: Int64Array
    precision: Int64Array
    quantizer: Int64Array
    weight: Int64Array
    levels: DraftLevels
    quantizers: tuple[Quantizer, ...]
    amplitude: Float64Array
    survival: Float64Array
    squares: Float64Array

    @property
    def rungs(self) -> int:
        """The number of rungs."""
        return self.levels.rungs

    def symbols(self, form: CanonicalForm, rung: int, side: int, unit: int) -> npt.NDArray[np.uint8]:
        """Return the symbols of the layer that a rung adds to a kept unit's vector, uint8 (run of the length,).

        Raises:
            StaleDraftError: A newer draft has written over the levels.
        """
        book = self.quantizers[int(self.quantizer[rung, side, unit])].codebook
        index = int(self.kept[unit])
        length = int(form.lengths[side, index])
        levels = self.levels.matrix(rung, side, length)[form.rows[side, index], : book.run(length)]
        return _symbols(book, levels)


def _symbols(book: Book, levels: Levels) -> npt.NDArray[np.uint8]:
    """Return the symbols of levels as a workspace holds them."""
    symbols = levels.view(np.uint8)
    return symbols if isinstance(book, Trellis) else np.asarray(symbols + np.uint8(book.size // 2))


def quantize(form: CanonicalForm, plan: RatePlan, basis: int, workspace: Workspace) -> QuantizedForm:
    """Quantize the plan's vectors with its coders, then fit points and frequencies to the result.

    With c the squared cosine between a vector and its points, and t the objective's gain, a unit's scale is
    s * prod over sides of (t sqrt(c) / |decoded points|), times a boost for the signal that is lost.

    Args:
        form: The units.
        plan: Names the kept units and their coders.
        basis: Id of the form's basis.
        workspace: Holds the levels; earlier drafts in it become stale.
    """
    layers = _Layers(form, plan, workspace.begin_draft(form, len(plan.steps)))
    for rung in range(len(plan.steps)):
        layers.add(rung)
    alive = np.flatnonzero(layers.find_alive())
    kept = plan.kept[alive]
    lengths = np.maximum(form.lengths[:, kept], 1)  # (2, kept)
    dots, squares = np.maximum(layers.dots[:, :, alive], 1e-30), np.maximum(layers.squares[:, :, alive], 1e-30)
    cosine2 = np.minimum(dots**2 / (squares * lengths), 1.0)  # (rungs, 2, kept)
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) for n in side] for side in lengths])
    norms = np.sqrt(norm2.reshape(2, -1) * squares)
    gains, survival = (
        np.array(
            [
                [
                    of(objective)(cosine2[rung, side], form.roles[side, kept], form.noise_tolerance(side, kept))
                    for side in (0, 1)
                ]
                for rung, objective in enumerate(plan.objectives)
            ]
        )
        for of in (attrgetter("gain"), attrgetter("survival"))
    )
    size = form.singular[kept] * np.prod(gains * np.sqrt(cosine2) / norms, axis=1)  # (rungs, kept)
    boost = _boost(form, plan, kept, plan.entry[alive], survival.prod(axis=1))
    size *= np.where(form.roles[0, kept] == PLAIN, 1.0, boost[:, None])
    return QuantizedForm(
        kept=kept,
        entry=plan.entry[alive],
        precision=plan.precision[alive],
        quantizer=layers.quantizer[:, :, alive],
        weight=layers.weight[:, :, alive],
        levels=layers.levels,
        quantizers=tuple(layers.quantizers),
        amplitude=16 * np.log2(size),
        survival=survival,
        squares=squares,
    )


def _boost(
    form: CanonicalForm, plan: RatePlan, kept: Int64Array, entry: Int64Array, share: Float64Array
) -> Float64Array:
    """Return the factor on the amplitudes of each rung, (rungs,): (surviving share of the energy) ** -BOOST.

    Norms and biases take no part in it: their signal is not made up for by others.
    """
    energy = np.where(form.roles[0] == PLAIN, 0.0, form.strength**2)
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
    made = spooled(matrix.shape, np.float32)
    made[:] = 0
    return made


class _Layers:
    """The layers of the kept units, made rung by rung."""

    def __init__(self, form: CanonicalForm, plan: RatePlan, levels: DraftLevels) -> None:
        self._form, self._plan, self._workspace = form, plan, levels.workspace
        self.levels = levels
        shape = (len(plan.steps), 2, len(plan.kept))
        self.quantizers: list[Quantizer] = []
        self._numbers: dict[tuple[int, int], int] = {}  # of (rung or -1, coder)
        self.quantizer = np.full(shape, -1, np.int64)
        self.weight = np.zeros(shape, np.int64)
        self.dots, self.squares = np.zeros(shape), np.zeros(shape)
        absent = form.lengths[:, plan.kept] == 0  # the second side of a vector counts as kept exactly
        self.dots[:, absent], self.squares[:, absent] = 1.0, 1.0
        self._sums: tuple[dict[int, Float32Array], dict[int, Float32Array]] | None = None
        if len(plan.steps) > 1:
            self._sums = matrices_like(form, _zeros)

    def find_alive(self) -> npt.NDArray[np.bool_]:
        """Return True for each kept unit that has a non-zero level on each side at every rung that has it."""
        there = np.arange(len(self.dots))[:, None, None] >= self._plan.entry[None, None, :]
        return np.asarray(((self.dots > 0) | ~there).all(axis=(0, 1)))

    def add(self, rung: int) -> None:
        """Code the layers of one rung."""
        jobs = self._jobs(rung)
        for coder in sorted({job.coder for job in jobs}):
            self._code(rung, coder, [job for job in jobs if job.coder == coder])
        if self._sums is not None:
            self._weigh(rung)
        for _ in parallel_map(lambda job: self._measure(rung, job), jobs):
            pass
        if rung:  # units without a layer stay as they were
            idle = self.quantizer[rung] < 0
            self.dots[rung][idle], self.squares[rung][idle] = self.dots[rung - 1][idle], self.squares[rung - 1][idle]

    def _jobs(self, rung: int) -> list[_Job]:
        jobs: list[_Job] = []
        plan = self._plan
        for side in (0, 1):
            chosen = plan.coder[rung, side]
            for role, length, own in self._form.groups(side, plan.kept):
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
        """Return what the rungs before have left of the units' vectors, scaled to unit variance: (units, length)."""
        side, role, length, _, units = job
        rows = self._form.rows[side][self._plan.kept[units]]
        values: Float32Array = self._form.matrices[side][length][rows]
        if self._sums is None or rung == 0:
            return values
        table = rate_table(self._plan.objectives, role, coder_class(role, length), self._plan.steps)
        where = table.at(self._plan.precision[units] + precision_shifts(np.array([length])))
        deviation = np.sqrt(1 - table.cosine2[rung - 1, where]).astype(np.float32)
        return np.asarray((values - self._sums[side][length][rows]) / deviation[:, None])

    def _code(self, rung: int, number: int, jobs: list[_Job]) -> None:
        """Find the levels of all vectors of one coder, and its quantizer."""
        coder = coders()[number]
        space = self._workspace
        if isinstance(coder, DependentCoder) and (rung, number) not in space.tables:
            sample = jobs[0]._replace(units=jobs[0].units[:_SAMPLE])
            space.tables[rung, number] = coder.fit_tables(self._values(rung, sample))

        def fill(job: _Job) -> tuple[Float64Array, Float64Array]:
            side, _, length, _, units = job
            rows = self._form.rows[side][self._plan.kept[units]]
            out = self.levels.matrix(rung, side, length)
            known = rung == 0 and bool((space.owner[side][length][rows] == number).all())
            values = self._values(rung, job)
            if isinstance(coder, ScalarCoder):
                out[rows] = coder.levels(values)
            elif not known and isinstance(coder, DependentCoder):
                out[rows] = coder.levels(values, space.tables[rung, number])
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
        """Return the layer's points, without its weight: float32 (units, length)."""
        side, _, length, _, units = job
        book = self.quantizers[int(self.quantizer[rung, side, units[0]])].codebook
        rows = self._form.rows[side][self._plan.kept[units]]
        levels = self.levels.matrix(rung, side, length)[rows, : book.run(length)]
        return np.asarray(book_points(book, _symbols(book, levels), length), np.float32)

    def _weigh(self, rung: int) -> None:
        """Find the integer weights: a layer's least-squares factor, shared by all units with the same layers so far."""
        assert self._sums is not None
        sums = self._sums
        shared: dict[tuple[int, ...], list[float]] = {}
        found: list[tuple[_Job, list[tuple[int, ...]], npt.NDArray[np.float32]]] = []
        for job in self._jobs(rung):
            side, role, length, _, units = job
            rows = self._form.rows[side][self._plan.kept[units]]
            points = self._points(rung, job)
            rest = self._form.matrices[side][length][rows] - sums[side][length][rows]
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
            rows = self._form.rows[side][self._plan.kept[units]]
            weights = np.array([layer_weight(int(c)) for c in codes], np.float64) / _WEIGHT_ONE
            sums[side][length][rows] += points * weights[:, None].astype(np.float32)

    def _measure(self, rung: int, job: _Job) -> None:
        """Measure the inner product of each vector with its coded form so far, and the squared norm of that form."""
        side, _, length, _, units = job
        rows = self._form.rows[side][self._plan.kept[units]]
        coded = (
            self._points(rung, job) if self._sums is None else self._sums[side][length][rows] * np.float32(_WEIGHT_ONE)
        )
        self.dots[rung, side, units] = np.einsum("ij,ij->i", coded, self._form.matrices[side][length][rows])
        self.squares[rung, side, units] = np.einsum("ij,ij->i", coded, coded)


def unit_points(
    form: CanonicalForm, quantized: QuantizedForm, side: int, units: Int64Array, rung: int
) -> npt.NDArray[np.float32]:
    """Return the coefficients that a decoder at a rung has for kept units of one module, float32 (units, length)."""
    length = int(form.lengths[side, quantized.kept[units[0]]])
    total = np.zeros((len(units), length), np.float32)
    for layer in range(rung + 1):
        for number in np.unique(quantized.quantizer[layer, side, units]).tolist():
            if number < 0:
                continue
            own = np.flatnonzero(quantized.quantizer[layer, side, units] == number)
            symbols = np.stack([quantized.symbols(form, layer, side, int(units[i])) for i in own])
            points = book_points(quantized.quantizers[number].codebook, symbols, length).astype(np.float32)
            weights = [layer_weight(int(code)) for code in quantized.weight[layer, side, units[own]]]
            total[own] += points * np.array(weights, np.float32)[:, None]
    return total


def coded_nmse(form: CanonicalForm, quantized: QuantizedForm, amplitude: Int64Array, basis: int, rung: int) -> float:
    """Return the NMSE of the whole form as coded at a rung: exact with all cross terms, before the int16 rounding.

    Args:
        form: The units.
        quantized: Their levels.
        amplitude: int64 (kept,): rounded codes at the rung; those of units that start later are ignored.
        basis: Id of the orthogonal basis.
        rung: Number of the rung.
    """
    total = float((form.strength**2).sum())
    if total == 0:
        return 0.0
    scale = np.exp2(amplitude / (16 * (form.lengths[:, quantized.kept] > 0).sum(axis=0)))
    records = form.record[quantized.kept]
    starts = np.searchsorted(form.record, np.arange(int(form.record.max()) + 1))

    def squared_loss(record: int) -> float:
        own = np.flatnonzero((records == record) & (quantized.entry <= rung))
        first = int(starts[record])
        count = int((form.record == record).sum())
        singular = form.singular[first : first + count]
        factor = float(form.strength[first] / singular[0]) if singular[0] > 0 else 0.0
        if not len(own):
            return float((singular**2).sum()) * factor**2
        cross = np.repeat(singular[:, None], len(own), axis=1)
        square = np.ones((len(own), len(own)))
        for side in (0, 1):
            length = int(form.lengths[side][first])
            if not length:
                continue
            rows = form.rows[side][first : first + count]
            vectors = form.matrices[side][length][rows[0] : rows[-1] + 1] / np.float32(np.sqrt(length))
            points = unit_points(form, quantized, side, own, rung)
            points *= (scale[own] * np.sqrt(basis_by_id(basis).norm2(length)))[:, None].astype(np.float32)
            cross *= vectors @ points.T
            square *= points @ points.T
        return (float((singular**2).sum()) - 2 * float(cross.sum()) + float(square.sum())) * factor**2

    return sum(parallel_map(squared_loss, range(len(starts)))) / total
