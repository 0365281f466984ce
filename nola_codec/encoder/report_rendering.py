"""Format the report of an encode as text, for `print(report)` and for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.encoder.options import DEFAULT_ERROR
from nola_codec.rendering import render_error, render_error_name, render_ratio, render_scalings, render_size

if TYPE_CHECKING:
    from nola_codec.encoder.report import EncodeReport, TaskReport


UNTRAINED = "no: the file from the weights alone was as good on the validation rows, and was written"
"""What a report says of a training that gained nothing."""
LARGE_NMSE = 0.3
"""The NMSE from which a report says why it is large."""
_SMALL_SHARE = 0.05
"""The share of a file below which its carried tensors have no line of their own."""


def render_encode_report(report: EncodeReport) -> str:
    """Return a report as lines of a label and a value each, without the notes."""
    lines = [
        *_verdict_lines(report),
        f"size         {render_size(report.bytes)} ({report.bytes:,} bytes), {render_ratio(report.ratio)} than fp16",
        *_part_lines(report),
        f"source       {report.dialect}, {render_size(report.source_bytes)}, {report.parameters:,} parameters, "
        f"{len(report.tensors)} records",
        f"objective    {report.objective}",
    ]
    if report.scalings and report.scale_origin:
        lines.append(f"scaling      {render_scalings(report.scalings, report.scale_origin)}")
    if report.effective_error is not None:
        lines.append(f"eff. error   {render_error(report.effective_error)}  (signal lost and visible noise, estimated)")
    if report.task is not None:
        lines += _task_lines(report.task)
    lines.append(f"NMSE         {render_error(report.nmse)}  ({_explain_nmse(report)})")
    for number, rung in enumerate(report.rungs[:-1]):
        errors = ", ".join(
            f"{render_error_name(name)} {render_error(value)}" for name, value in rung.items() if name != "bytes"
        )
        lines.append(f"rung {number}       {render_size(rung['bytes'])}, {errors}")
    lines.append(f"time         {report.seconds:.2f} s")
    return "\n".join(lines)


def _verdict_lines(report: EncodeReport) -> list[str]:
    """Return the lines that say what to expect, and how the size was chosen if nobody asked for one."""
    said = ""
    if report.task is not None and report.task.kept is not None:
        said = f"{report.task.kept:.1%} of the adapter's gain is kept, on {report.task.rows} held-out rows"
    elif report.expectation is not None:
        said = f"expect {report.expectation}"
    elif report.objective == "nmse" and report.nmse:
        said = f"the weights lose {report.nmse:.1%} of their energy (the NMSE)"
    elif report.is_of_image_model:
        said = "none for image models: the tasks that were measured are of text models"
    lines = [f"verdict      {said}"] if said else []
    if report.is_default_target:
        then = "" if report.task is None else ", before the training"
        lines.append(
            f"target       none was given: keep {1 - DEFAULT_ERROR:.0%} of the signal{then} (--error {DEFAULT_ERROR})"
        )
    return lines


def _explain_nmse(report: EncodeReport) -> str:
    effective = report.effective_error
    if effective is not None and report.nmse > max(LARGE_NMSE, 3 * effective):
        return "of the weights: noise, mostly, which models hardly see"
    if report.task is not None and report.nmse > LARGE_NMSE:
        return "of the weights, which were trained anew: it tells nothing"
    return "||delta_W - decoded||^2 / ||delta_W||^2, measured"


def _part_lines(report: EncodeReport) -> list[str]:
    """Return one line for the coded part of the file and one for the carried part, if neither is small."""
    if report.carried_bytes < _SMALL_SHARE * report.bytes or report.parameters == report.carried_parameters:
        return []
    coded = report.bytes - report.carried_bytes, report.parameters - report.carried_parameters
    carried = report.carried_bytes, report.carried_parameters
    return [
        f"  {name:<11}{render_size(size)} for {count:,} parameters, {render_ratio(2 * count / size)} than fp16"
        for name, (size, count) in (("coded", coded), ("carried", carried))
    ]


def _task_lines(task: TaskReport) -> list[str]:
    kept = "the adapter gains nothing on them" if task.kept is None else f"{task.kept:.1%} of the adapter's gain"
    return [
        f"task         {task.file:.4f} {task.unit}, {kept}  ({task.rows} held-out rows, measured)",
        f"  of them    base {task.base:.4f}, adapter {task.adapter:.4f}, weights alone {task.start:.4f}",
        f"  trained    {task.steps} steps" if task.is_trained else f"  trained    {UNTRAINED}",
        *([f"  data       {task.data}"] if task.data else []),
    ]
