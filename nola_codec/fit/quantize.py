"""Quantize the vectors that a plan keeps, and fit codebooks to the result and an amplitude to each unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.basis import basis_by_id
from nola_codec.fit.allocation import RatePlan
from nola_codec.fit.canonical_form import PLAIN, CanonicalForm
from nola_codec.fit.levels import DraftLevels, Workspace, levels_to_symbols
from nola_codec.fit.unit_layers import Layers
from nola_codec.model.quantizers import Quantizer, Trellis
from nola_codec.parallel import one_blas_thread, parallel_map
from nola_codec.quant.points import book_points
from nola_codec.quant.scales import layer_weight

_LARGE_AMPLITUDE = 2.0**30
"""The amplitude above which errors are computed in float64."""


@dataclass(frozen=True)
class QuantizedForm:
    """A canonical form, quantized: the levels of every kept unit, and the quantizers that they belong to.

    The levels live in the workspace that made them. Reading symbols raises `StaleDraftError` after the workspace was
    used for a newer draft; everything else belongs to this object.

    Attributes:
        kept: int64 (kept,): the indices of the form's units that are coded. Units that have only zeros on a side are
            left out.
        entry: int64 (kept,): the rung at which each unit starts.
        precision: int64 (kept,): the precision of each unit, 0 to 255.
        quantizer: int64 (rungs, 2, kept): the index into `quantizers` of the layer that a rung adds, -1 for none.
        weight: int64 (rungs, 2, kept): the code of the layer's weight, see `layer_weight`.
        levels: The levels of all vectors.
        quantizers: The quantizers that were fitted to the levels.
        amplitude: float64 (rungs, kept): log2 of the unit's scale, in sixteenths of an octave, not yet rounded.
        survival: float64 (rungs, 2, kept): the measured share A of each vector that survives (`fit.allocation`).
        squares: float64 (rungs, 2, kept): the squared norm of each vector's integer coefficients at a rung.
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
        """Return the symbols of the layer that a rung adds to a vector of a kept unit, uint8 (symbols,).

        Raises:
            StaleDraftError: A newer draft has written over the levels.
        """
        book = self.quantizers[int(self.quantizer[rung, side, unit])].codebook
        index = int(self.kept[unit])
        length = int(form.lengths[side, index])
        levels = self.levels.matrix(rung, side, length)[form.rows[side, index], : book.run(length)]
        return levels_to_symbols(book, levels)

    def record_symbols(self, form: CanonicalForm, units: Int64Array, rung: int) -> npt.NDArray[np.uint8]:
        """Return the symbols of a record that the block of a rung holds, in the order of `coded_layers`.

        The block holds all layers so far of a unit that starts at the rung, and for an older unit the layer that the
        rung adds.

        Args:
            form: The form that was quantized.
            units: int64: the positions of the record's units among the kept units.
            rung: The number of the rung.
        """
        parts = []
        for side in (0, 1):
            if self.rungs == 1:
                parts.append(self._side_symbols(form, side, units))
                continue
            for unit in units.tolist():
                entry = int(self.entry[unit])
                layers = range(rung + 1) if entry == rung else (rung,) if entry < rung else ()
                coded = [layer for layer in layers if self.quantizer[layer, side, unit] >= 0]
                parts += [self.symbols(form, layer, side, unit) for layer in coded]
        return np.concatenate(parts) if parts else np.empty(0, np.uint8)

    def _side_symbols(self, form: CanonicalForm, side: int, units: Int64Array) -> npt.NDArray[np.uint8]:
        """Return the symbols of one side of a record in a file of one rung: those of its units, all at once."""
        numbers = self.quantizer[0, side, units]
        units, numbers = units[numbers >= 0], numbers[numbers >= 0]
        if not len(units):
            return np.empty(0, np.uint8)
        index = self.kept[units]
        lengths = form.lengths[side, index]
        changes = np.flatnonzero(np.diff(lengths)) + 1
        if len(changes):  # a difference has the vectors of both factors on one side
            return np.concatenate([self._side_symbols(form, side, part) for part in np.split(units, changes)])
        books = [self.quantizers[number].codebook for number in numbers.tolist()]
        length = int(lengths[0])
        levels = self.levels.matrix(0, side, length)[form.rows[side, index]]
        middle = np.array([0 if isinstance(book, Trellis) else book.size // 2 for book in books], np.uint8)
        symbols = levels.view(np.uint8) + middle[:, None]
        if not any(isinstance(book, Trellis) for book in books):
            return np.asarray(symbols.reshape(-1))
        return np.concatenate([row[: book.run(length)] for row, book in zip(symbols, books, strict=True)])


def quantize(
    form: CanonicalForm,
    plan: RatePlan,
    basis: int,
    workspace: Workspace,
    tell: Callable[[int, int], None] | None = None,
) -> QuantizedForm:
    """Quantize the vectors of a plan with its coders, then fit points and frequencies to the result.

    Let c be the squared cosine between a vector and its points, and t the gain of the objective. The scale of a unit is
    then s times the product over its sides of t sqrt(c) / |decoded points|, times a boost for the lost signal.

    Args:
        form: The units.
        plan: The kept units and their coders.
        basis: The id of the form's basis.
        workspace: The workspace for the levels; earlier drafts in it become stale.
        tell: Called as (vectors searched, vectors to search), or None.
    """
    layers = Layers(form, plan, workspace.begin_draft(form, len(plan.steps)), tell)
    with one_blas_thread():
        for rung in range(len(plan.steps)):
            layers.add(rung)
    alive = np.flatnonzero(layers.find_alive())
    kept = plan.kept[alive]
    lengths = np.maximum(form.lengths[:, kept], 1)  # (2, kept)
    dots, squares = np.maximum(layers.dots[:, :, alive], 1e-30), np.maximum(layers.squares[:, :, alive], 1e-30)
    cosine2 = np.minimum(dots**2 / (squares * lengths), 1.0)  # (rungs, 2, kept)
    norm2 = np.array([[basis_by_id(basis).norm2(int(n)) for n in side] for side in lengths])
    norms = np.sqrt(norm2.reshape(2, -1) * squares)
    gains, survival = np.empty(cosine2.shape), np.empty(cosine2.shape)
    for rung, objective in enumerate(plan.objectives):
        for side in (0, 1):
            tolerance = 1.0 if form.tolerance is None or side else form.tolerance[kept]
            coded = cosine2[rung, side], form.roles[side, kept], tolerance
            gains[rung, side], survival[rung, side] = objective.gain(*coded), objective.survival(*coded)
    size = form.singular[kept] * np.prod(gains * np.sqrt(cosine2) / norms, axis=1)  # (rungs, kept)
    boost = _boost(form, plan, kept, plan.entry[alive], survival.prod(axis=1))
    size *= np.where(form.roles[0, kept] >= PLAIN, 1.0, boost[:, None])
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
    """Return the factor on the amplitudes of each rung, (rungs,): (surviving share of the energy) ** -boost.

    Norms and biases do not count: other units cannot make up for their lost signal.
    """
    if form.whole is not None:  # the reference has most of the signal, and that is not made up for
        return np.ones(len(plan.objectives))
    energy = np.where(form.roles[0] >= PLAIN, 0.0, form.strength**2)
    total = float(energy.sum())
    factors = []
    for rung, objective in enumerate(plan.objectives):
        survived = float((energy[kept] * share[rung] * (entry <= rung)).sum())
        factors.append((survived / total) ** -objective.boost if survived > 0 else 1.0)
    return np.array(factors)


def unit_points(
    form: CanonicalForm, quantized: QuantizedForm, side: int, units: Int64Array, rung: int
) -> npt.NDArray[np.float32]:
    """Return the coefficients that a decoder has at a rung for kept units of one module, float32 (units, length)."""
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
    """Return the NMSE of the whole form as coded at a rung, with all cross terms, before the rounding to int16.

    Args:
        form: The units.
        quantized: The levels of the units.
        amplitude: int64 (kept,): the rounded codes at the rung; those of units that start later are ignored.
        basis: The id of the orthogonal basis.
        rung: The number of the rung.
    """
    total = float((form.strength**2).sum())
    if total == 0:
        return 0.0
    scale = np.exp2(amplitude / (16 * (form.lengths[:, quantized.kept] > 0).sum(axis=0)))
    records = form.record[quantized.kept]
    starts = np.searchsorted(form.record, np.arange(int(form.record.max()) + 1))

    def squared_loss(record: int) -> float:
        """Return ||delta - decoded||^2 of one record."""
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
            amplitudes = (scale[own] * np.sqrt(basis_by_id(basis).norm2(length)))[:, None]
            if amplitudes.max() > _LARGE_AMPLITUDE:  # squares of such numbers leave float32
                points = points.astype(np.float64)
            points *= amplitudes.astype(points.dtype)
            cross *= vectors @ points.T
            square *= points @ points.T
        return (float((singular**2).sum()) - 2 * float(cross.sum()) + float(square.sum())) * factor**2

    return sum(parallel_map(squared_loss, range(len(starts)))) / total
