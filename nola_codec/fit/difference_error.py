"""Complete and measure quantized forms of differences to a reference (`difference_form.py`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nola_codec.array_types import Float64Array, Int64Array
from nola_codec.basis import basis_by_id
from nola_codec.fit.allocation import P_LOW, RatePlan, coder_class, precision_shift, rate_table
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.fit.components import squared_error
from nola_codec.fit.quantize import QuantizedForm, unit_points


def add_idle_units(form: CanonicalForm, plan: RatePlan, quantized: QuantizedForm) -> QuantizedForm:
    """Return the quantized form with all units of each difference that has a unit.

    A record in the difference form has all of its units or none. Those that are not worth their bits get the greatest
    precision that adds no layer.
    """
    there = np.isin(np.arange(form.units), quantized.kept)
    used = np.unique(form.record[quantized.kept])
    wanted = [record for record in form.differences if record in used]
    idle = np.flatnonzero(np.isin(form.record, wanted) & ~there)
    if not len(idle):
        return quantized
    precision = np.zeros(len(idle), np.int64)
    for role, length, own in form.groups(0, idle):
        coder = rate_table(plan.objectives, role, coder_class(role, length), plan.steps).coder
        none = np.flatnonzero((coder >= 0).any(axis=0))
        place = P_LOW + (int(none[0]) if len(none) else coder.shape[1]) - 1
        precision[own] = np.clip(place - precision_shift(length), 0, 255)
    rungs, count = quantized.rungs, len(idle)
    gone = np.zeros((rungs, 2, count))
    gone[:, 1] = 1.0
    amplitude = np.full(
        (rungs, count), quantized.amplitude.min()
    )  # a scale that fits, though there is nothing to scale
    return replace(
        quantized,
        kept=np.concatenate((quantized.kept, idle)),
        entry=np.concatenate((quantized.entry, np.zeros(count, np.int64))),
        precision=np.concatenate((quantized.precision, precision)),
        quantizer=np.concatenate((quantized.quantizer, np.full((rungs, 2, count), -1)), axis=2),
        weight=np.concatenate((quantized.weight, np.zeros((rungs, 2, count), np.int64)), axis=2),
        amplitude=np.concatenate((quantized.amplitude, amplitude), axis=1),
        survival=np.concatenate((quantized.survival, gone), axis=2),
        squares=np.concatenate((quantized.squares, np.zeros((rungs, 2, count))), axis=2),
    )


def difference_nmse(form: CanonicalForm, quantized: QuantizedForm, amplitude: Int64Array, basis: int) -> float:
    """Return the NMSE of an adapter whose differences are coded so, before the rounding to int16.

    Pairs count by the error of their products. Other records count by what survives of their units.

    Args:
        form: The units.
        quantized: The levels of the units.
        amplitude: int64 (kept,): the rounded amplitudes.
        basis: The id of the orthogonal basis.
    """
    total = form.total
    if total == 0:
        return 0.0
    ratio = np.exp2((amplitude - quantized.amplitude[-1]) / 16)
    share = np.prod(quantized.survival[-1], axis=0) * (2 * ratio - ratio**2)
    survived = np.zeros(form.units)
    survived[quantized.kept] = share
    lost = form.strength**2 * (1 - survived)
    error = float(lost[~np.isin(form.record, list(form.differences))].sum())
    position = np.full(form.units, -1)
    position[quantized.kept] = np.arange(len(quantized.kept))
    for record, difference in form.differences.items():
        first, rank = int(np.searchsorted(form.record, record)), difference.rank
        errors = [
            _errors(form, quantized, amplitude, basis, np.arange(start, start + rank), position)
            for start in (first, first + rank)
        ]
        B, A = difference.lora_B.T, difference.lora_A
        error += squared_error(B, A, B + errors[0].T, A + errors[1]) * difference.error_gain**2
    return error / total


def _errors(
    form: CanonicalForm,
    quantized: QuantizedForm,
    amplitude: Int64Array,
    basis: int,
    units: Int64Array,
    position: Int64Array,
) -> Float64Array:
    """Return what is decoded of some vectors of one length minus what they are, in coefficients, (units, length)."""
    length = int(form.lengths[0, units[0]])
    errors = form.matrices[0][length][form.rows[0, units]] * (-form.singular[units] / np.sqrt(length))[:, None]
    coded = np.flatnonzero(position[units] >= 0)
    if len(coded):
        own = position[units[coded]]
        scale = np.exp2(amplitude[own] / 16) * np.sqrt(basis_by_id(basis).norm2(length))
        errors[coded] += unit_points(form, quantized, 0, own, quantized.rungs - 1) * scale[:, None]
    return np.asarray(errors, np.float64)
