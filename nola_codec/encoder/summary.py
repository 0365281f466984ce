"""Make the report of a finished file from the measurements of its rungs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nola_codec.adapters.base_changes import changed_key
from nola_codec.adapters.image_models import is_of_image_model
from nola_codec.adapters.registry import dialect_of
from nola_codec.container.reader import open_container
from nola_codec.encoder.carried import report_carried, vector_bytes
from nola_codec.encoder.carried_notes import carried_note, loss_note
from nola_codec.encoder.content import QuantizedAdapter
from nola_codec.encoder.expectation import Expectation, expect_from
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.measuring import MeasuredRung
from nola_codec.encoder.notes import notes, reference_notes, target_notes
from nola_codec.encoder.report import CarriedReport, EncodeReport, TensorReport


@dataclass(frozen=True)
class CodedFile:
    """A finished file and its losses.

    Attributes:
        data: The bytes of the file.
        rungs: The measured losses of each rung, coarsest first.
    """

    data: bytes
    rungs: tuple[MeasuredRung, ...]


def reached_error(job: EncodeJob, file: CodedFile) -> float | None:
    """Return the error of a finished file in the objective; None if the estimate of its draft is exact.

    The effective error follows exactly from the quantized vectors.
    """
    if job.options.objective_name != "nmse":
        return None
    lost, whole = file.rungs[-1].squared_errors, job.energies
    return float(lost.sum() / whole.sum()) if whole.sum() else 0.0


def make_report(job: EncodeJob, quantized: QuantizedAdapter, file: CodedFile) -> EncodeReport:
    """Return the report of a file: its size, its errors and its notes."""
    options, last = job.options, file.rungs[-1]
    nmse, effective = last.facts.measured["nmse"], last.facts.measured.get("effective_error")
    carried = report_carried(job.carried, file.data) + _change_reports(job, last, file.data)
    ratio = 2 * job.parameters / len(file.data)
    is_image = is_of_image_model(job.adapter)
    rungs = _rung_reports(file)
    return EncodeReport(
        bytes=len(file.data),
        source_bytes=job.source_bytes,
        parameters=job.parameters,
        ratio=ratio,
        form="factor" if options.is_factor_form else "component",
        reference="" if job.prediction is None else job.prediction.entry.sha256.hex(),
        objective="nmse" if options.is_factor_form else "task" if options.tuner else options.objective_name,
        nmse=nmse,
        effective_error=effective,
        tensors=_tensor_reports(job, quantized, last),
        seconds=job.clock.total(),
        stages=dict(job.clock.seconds),
        rungs=rungs,
        dialect=job.adapter.dialect,
        scalings=_scalings(job),
        scale_origin=job.adapter.scale_origin,
        task=None if options.tuner is None else options.tuner.report(),
        notes=job.adapter.notes
        + reference_notes(job)
        + job.shared_deltas.notes
        + carried_note(job.carried, carried, len(file.data), ratio)
        + loss_note(carried, options.carried)
        + target_notes(job, len(file.data))
        + notes(options, nmse, effective, [int(rung["bytes"]) for rung in rungs], is_of_image_model=is_image),
        carried=carried,
        expectation=None if is_image else _expectation(job, effective),
        is_default_target=not options.has_rate and bool(job.items),
        is_of_image_model=is_image,
    )


def _expectation(job: EncodeJob, effective: float | None) -> Expectation | None:
    """Return what the measured tasks say of a LoRA of this effective error.

    They say nothing of other changes, nor of files with a reference, of which none was measured.
    """
    if job.options.importance is not None or job.prediction is not None:
        return None
    is_alike = not dialect_of(job.adapter).holds_whole_weights and job.energies.any()
    return expect_from(effective) if is_alike and any(item.is_pair for item in job.items) else None


def _scalings(job: EncodeJob) -> tuple[float, ...]:
    """Return the different scalings of all deltas, sorted, also of those that LyCORIS makes of several parts."""
    own = {module.scaling for module in job.adapter.modules if module.is_whole_delta}
    shared = job.shared_deltas
    combined = set() if shared.rules.gains_are_estimates else {d.composite.scale for d in shared.by_record.values()}
    return tuple(sorted(own | combined))


def _change_reports(job: EncodeJob, last: MeasuredRung, data: bytes) -> tuple[CarriedReport, ...]:
    """Return one report for each carried tensor that is coded as a change of the base model's."""
    references = job.adapter.references
    if not references:
        return ()
    with open_container(data) as container:
        sizes = vector_bytes(container)
    return tuple(
        CarriedReport(
            changed_key(item.name),
            item.dtype,
            item.stored_shapes[0],
            sizes[item.name],
            "change",
            math.sqrt(float(last.squared_errors[index])) / references[item.name].norm,
        )
        for index, item in enumerate(job.items)
        if item.name in references
    )


def _rung_reports(file: CodedFile) -> tuple[dict[str, float], ...]:
    """Return, for each rung, the bytes of the file's beginning and the losses."""
    with open_container(file.data) as container:
        return tuple(
            {"bytes": container.rung_bytes(number), **rung.facts.measured} for number, rung in enumerate(file.rungs)
        )


def _tensor_reports(job: EncodeJob, quantized: QuantizedAdapter, last: MeasuredRung) -> tuple[TensorReport, ...]:
    """Return one report for each coded record of a delta, by its losses at the last rung."""
    effective = None if quantized.effective_errors is None else quantized.effective_errors[-1]
    reports = []
    for index, (item, record) in enumerate(zip(job.items, quantized.content.records, strict=True)):
        if item.is_carried:
            continue
        energy, weight = float(job.energies[index]), float(quantized.weights[index])
        reports.append(
            TensorReport(
                name=item.name,
                shape=item.vector_lengths if item.is_pair else item.stored_shapes[0],
                rank=item.rank if item.is_pair else None,
                kept=record.kind.vectors(record.units),
                energy=energy,
                nmse=float(last.squared_errors[index]) * (1 / energy if energy else 0.0),
                effective_error=None if effective is None else float(effective[index]) / weight if weight else 0.0,
            )
        )
    return tuple(reports)
