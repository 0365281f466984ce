"""Format the report of an encode as text, for `print(report)` and for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nola_codec.encoder.expectation import UNKNOWN_OUTLOOK, render_lost_energy
from nola_codec.encoder.options import DEFAULT_ERROR
from nola_codec.rendering import (
    render_error,
    render_error_name,
    render_ratio,
    render_row,
    render_scalings,
    render_size,
    render_size_in_fp16,
    render_verdict,
)

if TYPE_CHECKING:
    from nola_codec.encoder.report import EncodeReport, TaskReport


UNTRAINED = "no: the file from the weights alone was as good on the validation rows, and was written"
"""What a report says of a training that gained nothing."""
NOTHING_KEPT = "it holds carried tensors alone, and nothing of the adapter's deltas"
"""The second half of the verdict of a file that only has carried tensors."""
LARGE_NMSE = 0.3
"""The NMSE from which a report says why it is large."""
LABEL_WIDTH = 13
"""The columns that the labels of a report take."""
_SMALL_SHARE = 0.05
"""The share of a file below which its carried tensors have no line of their own."""


def render_encode_report(report: EncodeReport) -> str:
    """Return the verdict, and below it lines of a label and a value each, without the notes."""
    lines = [render_verdict(report.bytes, report.ratio, _outlook(report))]
    return "\n".join(lines + [render_row(label, value, LABEL_WIDTH) for label, value in _rows(report)])


def _rows(report: EncodeReport) -> Iterator[tuple[str, str]]:
    """Yield the labels and values of a report."""
    task = report.task
    if report.keeps_nothing:
        yield "expectation", "no gain: the file changes the base model by its carried tensors alone"
    elif report.expectation is not None and task is None:
        yield "expectation", report.expectation.basis
    elif report.is_of_image_model and task is None:
        yield "expectation", "none for image models: the measured tasks are of text models"
    if report.is_default_target:
        then = "" if task is None else ", before the training"
        what = f"keep {1 - DEFAULT_ERROR:.0%} of the signal{then}" if report.objective != "nmse" else "bound the NMSE"
        yield "target", f"none was given: {what} (--error {DEFAULT_ERROR})"
    yield "size", render_size_in_fp16(report.bytes, report.parameters)
    yield from _part_rows(report)
    yield "source", f"{report.dialect}, {render_size(report.source_bytes)} ({report.source_bytes:,} bytes)"
    yield "parameters", f"{report.parameters:,}, in {len(report.tensors)} records"
    yield "objective", report.objective
    if report.scalings and report.scale_origin:
        yield "scaling", render_scalings(report.scalings, report.scale_origin)
    if report.effective_error is not None:
        yield "eff. error", f"{render_error(report.effective_error)}  (signal lost and visible noise, estimated)"
    if task is not None:
        yield from _task_rows(task)
    yield "NMSE", f"{render_error(report.nmse)}  ({_explain_nmse(report)})"
    for number, rung in enumerate(report.rungs[:-1]):
        errors = ", ".join(
            f"{render_error_name(name)} {render_error(value)}" for name, value in rung.items() if name != "bytes"
        )
        yield f"rung {number}", f"{render_size(rung['bytes'])}, {errors}"
    yield "time", f"{report.seconds:.2f} s"


def _outlook(report: EncodeReport) -> str:
    """Return what to expect of the file, as the second half of its verdict."""
    if report.keeps_nothing:
        return NOTHING_KEPT
    if report.task is not None:
        return _task_outlook(report.task)
    if report.expectation is not None:
        return report.expectation.outlook
    if report.objective == "nmse" and report.nmse:
        return render_lost_energy(report.nmse)
    return UNKNOWN_OUTLOOK


def _task_outlook(task: TaskReport) -> str:
    if task.is_distance and task.kept is None:
        return "the adapter predicts what the base model predicts"
    if task.is_distance:
        return f"{task.kept:.1%} of the way from the base model's predictions to the adapter's; no task was measured"
    if task.kept is None:
        return "the adapter gains nothing on this task"
    return f"{task.kept:.1%} of the adapter's gain is kept, measured"


def _explain_nmse(report: EncodeReport) -> str:
    effective = report.effective_error
    if effective is not None and report.nmse > max(LARGE_NMSE, 3 * effective):
        return "of the weights: noise, mostly, which models hardly see"
    if report.task is not None and report.nmse > LARGE_NMSE:
        return "of the weights, which were trained anew: it tells nothing"
    return "||delta_W - decoded||^2 / ||delta_W||^2, measured"


def _part_rows(report: EncodeReport) -> list[tuple[str, str]]:
    """Return one row for the coded part of the file and one for the carried part, if neither is small."""
    if report.carried_bytes < _SMALL_SHARE * report.bytes or report.parameters == report.carried_parameters:
        return []
    coded = report.bytes - report.carried_bytes, report.parameters - report.carried_parameters
    carried = report.carried_bytes, report.carried_parameters
    return [
        (f"  {name}", f"{render_size(size)} for {count:,} parameters, {render_ratio(2 * count / size)} than fp16")
        for name, (size, count) in (("coded", coded), ("carried", carried))
    ]


def _task_rows(task: TaskReport) -> list[tuple[str, str]]:
    return [
        (
            "distance" if task.is_distance else "task",
            f"{task.file:.4f} {task.unit}  ({task.rows} held-out rows, measured)",
        ),
        ("  of them", f"base {task.base:.4f}, adapter {task.adapter:.4f}, weights alone {task.start:.4f}"),
        ("  trained", f"{task.steps} steps" if task.is_trained else UNTRAINED),
        *([("  data", task.data)] if task.data else []),
    ]
