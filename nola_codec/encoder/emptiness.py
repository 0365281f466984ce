"""Refuse a file that is too small to hold any part of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nola_codec.encoder.expectation import MOST_MEASURED_ERROR
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import EncodeError


def require_content(job: EncodeJob, report: EncodeReport, measure: Callable[[EncodeOptions], int]) -> None:
    """Check that a file made to a size has a part of some delta, or carried tensors at least.

    Args:
        job: The encode.
        report: The report of its file.
        measure: Returns the bytes of a file of the same adapter with other options.

    Raises:
        EncodeError: ``unreachable``: The file has names and a configuration alone. The message says which size is the
            smallest that makes sense.
    """
    options = job.options
    if options.error_target is not None or not report.keeps_nothing or report.carried:
        return
    advice = ""
    try:
        sensible = measure(replace(options, size=None, ratio=None, error=MOST_MEASURED_ERROR))
    except EncodeError:  # an adapter this small may have no quantizer for an error
        pass
    else:
        advice = f"; the smallest sensible size is about {sensible:,} bytes, with which a file "
        if options.objective_name == "effective":
            advice += f"loses {MOST_MEASURED_ERROR:.0%} of the signal, as much as any that was measured on all tasks"
        else:  # the measured tasks say nothing about such files
            advice += f"has an NMSE of {MOST_MEASURED_ERROR:.2f}"
    wanted = f"size {options.size} bytes" if options.ratio is None else f"ratio {options.ratio:g}"
    held = f"the file would have names and configuration ({report.bytes:,} bytes), and nothing of the deltas"
    raise EncodeError(f"{wanted} cannot be reached: {held}{advice}", code="unreachable")
