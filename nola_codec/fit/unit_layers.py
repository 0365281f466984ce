"""Make the layers of kept units: one for each rung that codes a unit, with levels, a quantizer and a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float32Array, Float64Array, Int64Array
from nola_codec.fit.allocation import RatePlan, coder_class, precision_shifts, rate_table
from nola_codec.fit.books import coded_products, fit_quantizer, level_statistics
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.coders import MASK, DependentCoder, ScalarCoder, TrellisCoder, coders, fit_tables
from nola_codec.fit.levels import DraftLevels, levels_to_symbols, matrices_like
from nola_codec.fit.viterbi import encode_dependent, pack_side_by_side, side_by_side
from nola_codec.model.quantizers import Quantizer
from nola_codec.parallel import parallel_map
from nola_codec.quant.points import book_points
from nola_codec.quant.scales import MAX_WEIGHT_CODE, layer_weight
from nola_codec.spool import allocate_array

_CHUNK = 1 << 20
_SAMPLE = 64
"""Number of vectors to which the points of a dependent quantizer are fitted before the search."""
_WEIGHT_ONE = 1 << 15
"""The weight that stands for 1 in a progressive file: weights are integers."""


class _Batch(NamedTuple):
    """Some vectors of one side, role, length and coder, few enough to stay in the caches.

    Attributes:
        side, role, length, coder: What the vectors share.
        units: int64: the positions of their units in `plan.kept`.
    """

    side: int
    role: int
    length: int
    coder: int
    units: Int64Array


def _zeros(matrix: Float32Array) -> Float32Array:
    """Return zeros in the shape of a matrix."""
    made = allocate_array(matrix.shape, np.float32)
    made[:] = 0
    return made


class Layers:
    """The layers of the kept units, made rung by rung.

    Attributes:
        levels: The levels of all vectors.
        quantizers: The quantizers that were fitted so far.
        quantizer: int64 (rungs, 2, kept): the index into `quantizers` of each layer, -1 for none.
        weight: int64 (rungs, 2, kept): the code of each layer's weight.
        dots: float64 (rungs, 2, kept): the inner product of each vector with its coded form at a rung.
        squares: float64 (rungs, 2, kept): the squared norm of that coded form.
    """

    def __init__(
        self, form: CanonicalForm, plan: RatePlan, levels: DraftLevels, tell: Callable[[int, int], None] | None = None
    ) -> None:
        """Make room for the layers of a plan; `tell` is called as (vectors searched, vectors to search)."""
        self._form, self._plan, self._workspace = form, plan, levels.workspace
        self._tell = tell
        self.levels = levels
        shape = (len(plan.steps), 2, len(plan.kept))
        self.quantizers: list[Quantizer] = []
        self._numbers: dict[tuple[int, int], int] = {}  # index of the quantizer of (rung or -1, coder)
        self.quantizer = np.full(shape, -1, np.int64)
        self.weight = np.zeros(shape, np.int64)
        self.dots, self.squares = np.zeros(shape), np.zeros(shape)
        absent = form.lengths[:, plan.kept] == 0  # a vector has no second side, which counts as exact
        self.dots[:, absent], self.squares[:, absent] = 1.0, 1.0
        self._sums: tuple[dict[int, Float32Array], dict[int, Float32Array]] | None = None
        if len(plan.steps) > 1:
            self._sums = matrices_like(form, _zeros)
        self._searched, self._to_search = 0, self._count_searches()

    def find_alive(self) -> npt.NDArray[np.bool_]:
        """Return True for each kept unit that has a non-zero level on each side at every rung that has it."""
        there = np.arange(len(self.dots))[:, None, None] >= self._plan.entry[None, None, :]
        return np.asarray(((self.dots > 0) | ~there).all(axis=(0, 1)))

    def add(self, rung: int) -> None:
        """Code the layers of one rung."""
        batches = self._batches(rung)
        self._search_dependent(rung, batches)
        for coder in sorted({batch.coder for batch in batches}):
            self._code(rung, coder, [batch for batch in batches if batch.coder == coder])
        if self._sums is not None:
            self._weigh(rung)
        unknown = [
            batch for batch in batches if self._sums is not None or isinstance(coders()[batch.coder], TrellisCoder)
        ]
        for _ in parallel_map(lambda batch: self._measure(rung, batch), unknown):
            pass
        if rung:  # units without a layer stay as they were
            idle = self.quantizer[rung] < 0
            self.dots[rung][idle], self.squares[rung][idle] = self.dots[rung - 1][idle], self.squares[rung - 1][idle]

    def _batches(self, rung: int) -> list[_Batch]:
        """Divide the vectors that a rung codes into batches."""
        batches: list[_Batch] = []
        plan = self._plan
        for side in (0, 1):
            chosen = plan.coder[rung, side]
            for role, length, own in self._form.groups(side, plan.kept):
                for coder in np.unique(chosen[own][chosen[own] >= 0]).tolist():
                    units = own[chosen[own] == coder]
                    scalar = isinstance(coders()[coder], ScalarCoder)
                    step = max(1, _CHUNK // length) if scalar else side_by_side(length)
                    batches += [
                        _Batch(side, role, length, coder, units[start : start + step])
                        for start in range(0, len(units), step)
                    ]
        return batches

    def _count_searches(self) -> int:
        """Return the number of vectors whose levels are found by a search, which takes nearly all of the time."""
        if self._tell is None:
            return 0
        rungs = range(len(self._plan.steps))
        return sum(
            len(batch.units)
            for rung in rungs
            for batch in self._batches(rung)
            if not isinstance(coders()[batch.coder], ScalarCoder) and not self._is_known(rung, batch)
        )

    def _report(self, vectors: int) -> None:
        """Count vectors whose levels were searched."""
        self._searched += vectors
        if self._tell is not None:
            self._tell(self._searched, self._to_search)

    def _values(self, rung: int, batch: _Batch) -> Float32Array:
        """Return the rest of the vectors after the rungs before, scaled to unit variance, float32 (units, length)."""
        side, role, length, _, units = batch
        rows = self._form.rows[side][self._plan.kept[units]]
        values: Float32Array = self._form.matrices[side][length][rows]
        if self._sums is None or rung == 0:
            return values
        table = rate_table(self._plan.objectives, role, coder_class(role, length), self._plan.steps)
        where = table.positions(self._plan.precision[units] + precision_shifts(np.array([length])))
        deviation = np.sqrt(1 - table.cosine2[rung - 1, where]).astype(np.float32)
        return np.asarray((values - self._sums[side][length][rows]) / deviation[:, None])

    def _is_known(self, rung: int, batch: _Batch) -> bool:
        """Return True if an earlier draft has found the levels of a batch with the same coder."""
        side, _, length, number, units = batch
        rows = self._form.rows[side][self._plan.kept[units]]
        return rung == 0 and bool((self._workspace.owner[side][length][rows] == number).all())

    def _search_dependent(self, rung: int, batches: list[_Batch]) -> None:
        """Find the levels of the vectors of all dependent coders, side by side."""
        tables = self._workspace.tables
        dependent = [batch for batch in batches if isinstance(coders()[batch.coder], DependentCoder)]
        samples: dict[int, tuple[DependentCoder, Float32Array]] = {}
        for batch in dependent:
            coder = coders()[batch.coder]
            if isinstance(coder, DependentCoder) and (rung, batch.coder) not in tables and batch.coder not in samples:
                samples[batch.coder] = coder, self._values(rung, batch._replace(units=batch.units[:_SAMPLE]))
        for number, fitted in zip(samples, fit_tables(list(samples.values())), strict=True):
            tables[rung, number] = fitted
        unknown = [batch for batch in dependent if not self._is_known(rung, batch)]

        def find(pack: list[int]) -> None:
            """Write the levels of some batches."""
            searches = []
            for batch in (unknown[i] for i in pack):
                coder = coders()[batch.coder]
                assert isinstance(coder, DependentCoder)
                searches.append(coder.search(self._values(rung, batch), tables[rung, batch.coder]))
            for index, levels in zip(pack, encode_dependent(MASK, searches), strict=True):
                side, _, length, _, units = unknown[index]
                self.levels.matrix(rung, side, length)[self._form.rows[side][self._plan.kept[units]]] = levels

        packs = pack_side_by_side([(len(batch.units), batch.length) for batch in unknown])
        for pack, _ in zip(packs, parallel_map(find, packs), strict=True):
            self._report(sum(len(unknown[i].units) for i in pack))

    def _code(self, rung: int, number: int, batches: list[_Batch]) -> None:
        """Find the levels of all vectors of one coder, except for those of a dependent one, and its quantizer.

        A file of one rung then has `dots` and `squares` too, except for those of a trellis.
        """
        coder = coders()[number]
        space = self._workspace
        work = [(batch, isinstance(coder, TrellisCoder) and not self._is_known(rung, batch)) for batch in batches]

        def find_levels(item: tuple[_Batch, bool]) -> tuple[Float64Array, Float64Array]:
            """Write the levels of a batch's vectors, unless they are there, and return their statistics."""
            batch, is_searched = item
            side, _, length, _, units = batch
            rows = self._form.rows[side][self._plan.kept[units]]
            out = self.levels.matrix(rung, side, length)
            values = self._values(rung, batch)
            if isinstance(coder, ScalarCoder):
                out[rows] = coder.levels(values)
            elif isinstance(coder, TrellisCoder) and is_searched:
                symbols = coder.symbols(values)
                out[rows, : symbols.shape[1]] = symbols
            if rung == 0:
                space.owner[side][length][rows] = number
            return level_statistics(coder, out[rows], values)

        statistics = []
        for (batch, is_searched), found in zip(work, parallel_map(find_levels, work), strict=True):
            statistics.append(found)
            if is_searched:
                self._report(len(batch.units))
        key = (-1 if isinstance(coder, TrellisCoder) else rung, number)
        if key not in self._numbers:
            self._numbers[key] = len(self.quantizers)
            self.quantizers.append(
                fit_quantizer(coder, [np.concatenate(part) for part in zip(*statistics, strict=True)])
            )
        book = self.quantizers[self._numbers[key]].codebook
        for batch, (counts, sums) in zip(batches, statistics, strict=True):
            self.quantizer[rung, batch.side, batch.units] = self._numbers[key]
            if self._sums is None and not isinstance(coder, TrellisCoder):
                products = coded_products(book, counts, sums)
                self.dots[rung, batch.side, batch.units], self.squares[rung, batch.side, batch.units] = products

    def _points(self, rung: int, batch: _Batch) -> npt.NDArray[np.float32]:
        """Return the points of the layer without its weight, float32 (units, length)."""
        side, _, length, _, units = batch
        book = self.quantizers[int(self.quantizer[rung, side, units[0]])].codebook
        rows = self._form.rows[side][self._plan.kept[units]]
        levels = self.levels.matrix(rung, side, length)[rows, : book.run(length)]
        return np.asarray(book_points(book, levels_to_symbols(book, levels), length), np.float32)

    def _weigh(self, rung: int) -> None:
        """Find the weight of each layer: the least-squares factor over all units that have the same layers so far."""
        assert self._sums is not None
        sums = self._sums
        shared: dict[tuple[int, ...], list[float]] = {}
        found: list[tuple[_Batch, list[tuple[int, ...]], npt.NDArray[np.float32]]] = []
        for batch in self._batches(rung):
            side, role, length, _, units = batch
            rows = self._form.rows[side][self._plan.kept[units]]
            points = self._points(rung, batch)
            rest = self._form.matrices[side][length][rows] - sums[side][length][rows]
            dots, squares = np.einsum("ij,ij->i", rest, points), np.einsum("ij,ij->i", points, points)
            chains = [
                (role, coder_class(role, length), *c) for c in self._plan.coder[: rung + 1, side, units].T.tolist()
            ]
            for chain, dot, square in zip(chains, dots.tolist(), squares.tolist(), strict=True):
                total = shared.setdefault(chain, [0.0, 0.0])
                total[0] += dot
                total[1] += square
            found.append((batch, chains, points))
        for (side, _, length, _, units), chains, points in found:
            factors = np.array([shared[c][0] / max(shared[c][1], 1e-30) for c in chains])
            codes = np.clip(np.rint(8 * np.log2(np.maximum(factors, 1e-9) * _WEIGHT_ONE)), 0, MAX_WEIGHT_CODE).astype(
                np.int64
            )
            self.weight[rung, side, units] = codes
            rows = self._form.rows[side][self._plan.kept[units]]
            weights = np.array([layer_weight(int(c)) for c in codes], np.float64) / _WEIGHT_ONE
            sums[side][length][rows] += points * weights[:, None].astype(np.float32)

    def _measure(self, rung: int, batch: _Batch) -> None:
        """Measure `dots` and `squares` of some vectors at a rung, on their points."""
        side, _, length, _, units = batch
        rows = self._form.rows[side][self._plan.kept[units]]
        if self._sums is None:
            coded = self._points(rung, batch)
        else:
            coded = self._sums[side][length][rows] * np.float32(_WEIGHT_ONE)
        self.dots[rung, side, units] = np.einsum("ij,ij->i", coded, self._form.matrices[side][length][rows])
        self.squares[rung, side, units] = np.einsum("ij,ij->i", coded, coded)
