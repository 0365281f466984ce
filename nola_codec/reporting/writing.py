"""`report`: what a file holds, what it costs and what it lost, as figures and as a page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nola_codec.api.arguments import require_source, require_target, write_output
from nola_codec.api.comparing import read_pair
from nola_codec.api.inspecting import inspect
from nola_codec.api.live_sources import AdapterInput
from nola_codec.arrays import NUMPY
from nola_codec.container.limits import Limits, resolve_limits
from nola_codec.container.reader import open_container
from nola_codec.errors import EncodeError, FormatError
from nola_codec.progress import Progress
from nola_codec.references.finding import References, open_decoder
from nola_codec.remote import accepts_urls, is_url, shown_url
from nola_codec.reporting.coefficient_costs import measure_coefficients
from nola_codec.reporting.curve import measure_curve, require_sweepable
from nola_codec.reporting.data import FileReport, make_report
from nola_codec.reporting.evaluation import read_evaluation
from nola_codec.reporting.losses import measure_losses
from nola_codec.reporting.page import render_page

MOST_HISTOGRAMS = 6
"""The number of module types whose histograms are shown."""


def report(
    source: str | os.PathLike[str] | bytes,
    out: str | os.PathLike[str] | None = None,
    *,
    against: AdapterInput | None = None,
    scale: float | None = None,
    sweep: bool = False,
    evaluation: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    references: References = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> FileReport:
    """Describe a `.nola` file, and write the description as one HTML page.

    Args:
        source: The `.nola` file.
        out: The page to write; None only returns the figures.
        against: The original adapter: anything that `encode` reads, or a `.nola` file. With it the report says what
            was kept of it.
        scale: The scaling of the original, if it does not say it; as in `compare`.
        sweep: True also encodes the original at six other sizes, for the curve of size against error. The original is
            then no `.nola` file.
        evaluation: What `nola-codec eval --json` printed about this file, as a path; or `dataclasses.asdict` of what
            `evaluate` returned. The page then has the losses, and the texts that the models wrote.
        references: Where the earlier versions are that a file needs which was encoded against one; as in `decode`.
        progress: Called as (stage, done, total).
        overwrite: True replaces a page that is there.
        limits: What a file may declare; as in `load`.

    Returns:
        All figures of the page.

    Raises:
        AdapterError: ``source-type``, or the original or the evaluation cannot be read; the original has other shapes.
        EncodeError: ``option``: a scale or a sweep without an original, or a sweep of a `.nola` file;
            ``evaluation``: the evaluation is none, or none of this file; ``target-type``, ``no-directory``.
        FormatError, ChecksumMismatch: The file is damaged.
        OutputExists: `out` is there and `overwrite` is false.
    """
    made = _report(
        source, out, against, scale, references, sweep=sweep, evaluation=evaluation, progress=progress,
        overwrite=overwrite, limits=limits,
    )  # fmt: skip
    if isinstance(source, str) and is_url(source):
        return replace(made, facts=replace(made.facts, name=shown_url(source)))  # not the name of its copy here
    return made


@accepts_urls("source", "against", "evaluation", out="out")
def _report(
    source: str | os.PathLike[str] | bytes,
    out: str | os.PathLike[str] | None,
    against: AdapterInput | None,
    scale: float | None,
    references: References,
    *,
    sweep: bool,
    evaluation: str | os.PathLike[str] | Mapping[str, Any] | None,
    progress: Progress | None,
    overwrite: bool,
    limits: Limits | None,
) -> FileReport:
    require_source(source)
    require_target(out, overwrite=overwrite)
    if scale is not None and against is None:
        raise EncodeError("a scale is that of the original adapter; give the original, too", code="option")
    if sweep:
        against = require_sweepable(against)
    if out is not None and _is_input(out, source, against, evaluation):
        raise EncodeError("the page would replace what it describes; give it another name", code="option")
    limits = resolve_limits(limits)
    facts = inspect(source, limits=limits)
    task = None if evaluation is None else read_evaluation(evaluation, facts)
    with open_container(source, limits) as container:
        try:
            costs = measure_coefficients(open_decoder(container, NUMPY, references), MOST_HISTOGRAMS, progress)
        except FormatError as error:
            if error.where.startswith(container.name):
                raise
            raise error.within(container.name) from error
    losses = curve = None
    if against is not None:
        pair = read_pair(against, source, scale=scale, progress=progress, references=references, limits=limits)
        losses = measure_losses(pair, facts.measured, progress=progress)
        del pair
        if sweep:
            curve = measure_curve(against, facts, scale=scale, progress=progress)
    made = make_report(facts, costs, losses, curve, task)
    if out is not None:
        write_output(out, render_page(made).encode("utf-8", "backslashreplace"))
    return made


def _is_input(out: str | os.PathLike[str], *inputs: object) -> bool:
    """Return True if a page would replace one of the files that it is made from."""
    paths = [each for each in inputs if isinstance(each, str | os.PathLike)]
    return os.path.exists(out) and any(os.path.exists(path) and os.path.samefile(out, path) for path in paths)
