"""Measure what a quantized adapter loses: decode every record, and compare it with the source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nola_codec.array_types import Float64Array
from nola_codec.arrays import NUMPY
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.encoder.assemble import RungFacts
from nola_codec.encoder.content import QuantizedAdapter
from nola_codec.encoder.delta_errors import decoded_part
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.reconstruct import FactsCollector, decode_rung
from nola_codec.encoder.tuning import FactorPairs
from nola_codec.fit.components import sides_error
from nola_codec.spool import release_pages

_BITS = 21
"""The binary digits of a loss that are written: a float64 with more has other bytes than four and zeros."""


@dataclass(frozen=True)
class MeasuredRung:
    """The losses of one rung, as measured on what it decodes to.

    Attributes:
        facts: The part of the header about the rung.
        squared_errors: float64 (records,): the squared error of each record in the delta.
    """

    facts: RungFacts
    squared_errors: Float64Array


def measure_rung(job: EncodeJob, quantized: QuantizedAdapter, rung: int) -> MeasuredRung:
    """Decode a rung, and measure its errors.

    Memory holds a few decoded records at a time, and the parts of a delta until all of them are decoded. For
    ``fit task`` it holds all factors.
    """
    collector = FactsCollector()
    errors = np.zeros(len(job.items))
    waiting: dict[str, dict[str, npt.NDArray[np.floating]]] = {}  # decoded parts of deltas that are not complete
    factors: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    stage = f"measuring rung {rung}" if len(quantized.content.rungs) > 1 else "measuring"
    for index, decoded in enumerate(decode_rung(quantized.content, job.envelope, rung, job.prediction)):
        job.show_progress(stage, index + 1, len(job.items))
        collector.add(decoded)
        item = job.items[index]
        if job.options.tuner is not None and item.is_pair:
            lora_B, lora_A = decoded.float32(NUMPY)
            factors[item.name] = lora_B, lora_A
        with job.clock.stage("measuring"):
            delta = job.shared_deltas.by_record.get(index)
            if delta is None:
                errors[index] = _squared_error(job, index, decoded)
                continue
            parts = waiting.setdefault(delta.composite.name, {})
            parts[item.name] = decoded_part(decoded)
            if len(parts) == len(delta.members):
                error = delta.squared_error(waiting.pop(delta.composite.name))
                errors[list(delta.members)] = error / len(delta.members)
    facts = collector.finish(job.envelope, _losses(job, quantized, rung, errors))
    if job.options.tuner is not None:
        with job.clock.stage("measuring the task"):
            found = job.options.tuner.measure(factors)
        facts = replace(facts, measured={**facts.measured, **found})
    return MeasuredRung(facts, errors)


def decode_factors(job: EncodeJob, quantized: QuantizedAdapter) -> FactorPairs:
    """Return the factors that the file of a quantized adapter decodes to, by module name."""
    last = len(quantized.content.rungs) - 1
    found = {}
    for item, decoded in zip(
        job.items, decode_rung(quantized.content, job.envelope, last, job.prediction), strict=True
    ):
        if item.is_pair:
            lora_B, lora_A = decoded.float32(NUMPY)
            found[item.name] = lora_B, lora_A
    return found


def _losses(job: EncodeJob, quantized: QuantizedAdapter, rung: int, errors: Float64Array) -> dict[str, float]:
    """Return the losses of the whole adapter at a rung, by the names that they have in the header."""
    total = float(job.energies.sum())
    losses = {"nmse": float(errors.sum()) / total if total else 0.0}
    if quantized.effective_errors is not None:
        whole = float(quantized.weights.sum())
        losses["effective_error"] = float(quantized.effective_errors[rung].sum()) / whole if whole else 0.0
    # Machines sum floats in different orders, and the file should not depend on the last bits.
    return {name: _rounded(loss) for name, loss in losses.items()}


def _rounded(loss: float) -> float:
    """Return a loss with _BITS significant bits."""
    mantissa, exponent = math.frexp(loss)
    return math.ldexp(round(math.ldexp(mantissa, _BITS)), exponent - _BITS)


def _squared_error(job: EncodeJob, index: int, decoded: DecodedRecord) -> float:
    """Return the squared error of a record in the delta."""
    item = job.items[index]
    error = sides_error(item.sides, decoded.float32(NUMPY)) * item.error_gain**2
    release_pages(*item.sides)
    return error
