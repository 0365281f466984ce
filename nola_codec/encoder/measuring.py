"""Measure what a quantized adapter loses: decode every record, and compare it with the source."""

from __future__ import annotations

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
from nola_codec.fit.components import sides_error
from nola_codec.fit.weighting import activation_errors


@dataclass(frozen=True)
class MeasuredRung:
    """The losses of one rung, as measured on what it decodes to.

    Attributes:
        facts: The part of the header about the rung.
        squared_errors: float64 (records,): the squared error of each record in the delta.
        activations: float64 (2, records): the squared error and the energy of each layer's output on the calibration
            set; None without one.
    """

    facts: RungFacts
    squared_errors: Float64Array
    activations: Float64Array | None


def measure_rung(job: EncodeJob, quantized: QuantizedAdapter, rung: int) -> MeasuredRung:
    """Decode a rung, and measure its errors.

    Memory holds a few decoded records at a time, and the parts of a delta until all of them are decoded. For
    ``fit task`` it holds all factors.
    """
    collector = FactsCollector()
    errors = np.zeros(len(job.items))
    activations = None if job.moments is None else np.zeros((2, len(job.items)))
    waiting: dict[str, dict[str, npt.NDArray[np.floating]]] = {}  # decoded parts of deltas that are not complete
    factors: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    stage = f"measuring rung {rung}" if len(quantized.content.rungs) > 1 else "measuring"
    for index, decoded in enumerate(decode_rung(quantized.content, job.envelope, rung)):
        job.show_progress(stage, index + 1, len(job.items))
        collector.add(decoded)
        item = job.items[index]
        if job.options.tuner is not None and item.is_pair:
            lora_B, lora_A = decoded.float32(NUMPY)
            factors[item.name] = lora_B, lora_A
        with job.clock.stage("measuring"):
            delta = job.shared_deltas.by_record.get(index)
            if delta is None:
                errors[index], outputs = _record_errors(job, index, decoded)
                if activations is not None:
                    activations[:, index] = outputs
                continue
            parts = waiting.setdefault(delta.composite.name, {})
            parts[item.name] = decoded_part(decoded)
            if len(parts) == len(delta.members):
                error = delta.squared_error(waiting.pop(delta.composite.name))
                errors[list(delta.members)] = error / len(delta.members)
    facts = collector.finish(job.envelope, _losses(job, quantized, rung, errors, activations))
    if job.options.tuner is not None:
        with job.clock.stage("measuring the task"):
            loss = job.options.tuner.measure(factors)
        facts = replace(facts, measured={**facts.measured, "loss": loss})
    return MeasuredRung(facts, errors, activations)


def lost_share(lost_and_energy: Float64Array) -> float:
    """Return the sum of errors over the sum of energies, given as (2, ...) numbers; 0 if there is no energy."""
    lost, energy = lost_and_energy.reshape(2, -1).sum(axis=1)
    return float(lost / energy) if energy else 0.0


def _losses(
    job: EncodeJob, quantized: QuantizedAdapter, rung: int, errors: Float64Array, activations: Float64Array | None
) -> dict[str, float]:
    """Return the losses of the whole adapter at a rung, by the names that they have in the header."""
    total = float(job.energies.sum())
    losses = {"nmse": float(errors.sum()) / total if total else 0.0}
    if quantized.effective_errors is not None:
        whole = float(quantized.weights.sum())
        losses["effective_error"] = float(quantized.effective_errors[rung].sum()) / whole if whole else 0.0
    if activations is not None:
        losses["activation_error"] = lost_share(activations)
    return losses


def _record_errors(job: EncodeJob, index: int, decoded: DecodedRecord) -> tuple[float, tuple[float, float]]:
    """Return a record's squared error in the delta, and (squared error, energy) of the output of its layer.

    The pair is zero without a calibration set, and for a vector, whose layer has no moments.
    """
    item = job.items[index]
    sides, outputs = decoded.float32(NUMPY), (0.0, 0.0)
    if job.moments is not None and item.is_pair:
        missed, energy = activation_errors(item, sides[0], sides[1], job.moments[index])
        outputs = missed * item.scaling**2, energy * item.scaling**2
    return sides_error(item.sides, sides) * item.error_gain**2, outputs
