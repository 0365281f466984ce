"""`nola-codec sweep`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nola_codec.cli.encode_options import (
    BASIS,
    CARRY_UNKNOWN_OPTION,
    IMPORTANCE_OPTION,
    SCALE_OPTION,
    SEED_OPTION,
    TARGET,
    THOROUGH_OPTION,
    read_coding_values,
)
from nola_codec.cli.help import PATH, option, options
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import OUTPUT, force_option, json_option, print_json, print_notes, quiet_option
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url

_TARGETS = (
    option("--sizes", group=TARGET, metavar="SIZE,...", help="Sizes of the files, e.g. 5KB,10KB,20KB."),
    option("--nmse", group=TARGET, metavar="E,...", help="NMSE of the files; the objective is then nmse."),
    option("--error", "errors", group=TARGET, metavar="E,...", help="Errors of the files in the objective."),
    option("--objective", group=TARGET, type=click.Choice(["effective", "nmse"]),
           help="The error that is kept small  [default: effective]."),
    option("--rank", group=TARGET, type=int, help="Components kept at most."),
)  # fmt: skip


@helpful_command(
    examples=[
        ("From 5 KB to a quarter of fp16", "nola-codec sweep my_lora"),
        ("Three sizes, with a plot", "nola-codec sweep my_lora --sizes 5KB,20KB,50KB --plot curve.svg"),
    ],
    alternatives=("sizes", "nmse", "errors"),
)
@click.argument("source", type=PATH)
@options(*_TARGETS, THOROUGH_OPTION, IMPORTANCE_OPTION, SEED_OPTION)
@option("--shared-basis", group=BASIS, is_flag=True, help="Use one basis for all weights of one shape.")
@option("--plot", group=OUTPUT, type=PATH, metavar="FILE", help="Draw the curve; .png or .svg, by matplotlib.")
@options(SCALE_OPTION, CARRY_UNKNOWN_OPTION, force_option, quiet_option, json_option)
def command(source: str, **values: Any) -> None:
    """Encode the adapter SOURCE at many sizes, show the curve of size against error, and advise a size.

    Nothing is written but the plot. "Gain kept" says what files of the same effective error kept of an adapter's gain
    on the tasks that were measured (docs/choosing-a-size.md).

    Give at most one of --sizes, --nmse and --error. With none of them, sizes go from 5 KB, or from the smallest file
    that makes sense, to a quarter of the adapter in fp16.
    """
    from nola_codec.api.plotting import check_plot, plot_sweep
    from nola_codec.api.sweeping import sweep

    plot, force, as_json = values.pop("plot"), values.pop("force"), values.pop("as_json")
    quiet = values.pop("quiet")
    if plot is not None:
        check_plot(plot, overwrite=force)
    for name in ("sizes", "nmse", "errors"):
        if values[name] is not None:
            values[name] = _parts(values[name]) if name == "sizes" else _numbers(values[name])
    with show_progress(quiet) as show:
        report = sweep(source, progress=show, **read_coding_values(values))
    if plot is not None:
        plot_sweep(report, plot, title=Path(shown_url(source)).name, overwrite=force)
    if as_json:
        print_json({**asdict(report), "plot": plot})
        return
    echo(str(report))
    print_notes(report.notes)
    if plot is not None:
        echo(f"wrote  {plot}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _parts(text)]
    except ValueError as error:
        raise click.UsageError(f"expected numbers with commas between them, found {text!r}") from error
