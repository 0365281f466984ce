"""`nola-codec sweep`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.output import (
    error_share,
    force_option,
    json_option,
    print_json,
    progress,
    quiet_option,
    size,
    table,
)

if TYPE_CHECKING:
    from nola_codec.api.sweeping import SweepReport


@click.command(
    epilog="""Nothing is written but the plot. The default sizes go from 5 KB, or the least there can be, to a quarter
    of the adapter in fp16."""
)
@click.argument("source", type=click.Path())
@click.option("--sizes", metavar="SIZE,...", help="Sizes of the files, e.g. 5KB,10KB,20KB.")
@click.option("--nmse", metavar="E,...", help="Errors of the files, e.g. 0.01,0.03,0.1.")
@click.option("--error", "errors", metavar="E,...", help="The same in the chosen objective.")
@click.option("--objective", type=click.Choice(["nmse", "effective"]), default="nmse", show_default=True,
              help="What is minimised; encode's own default is effective.")  # fmt: skip
@click.option("--rank", type=int, help="Components kept at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="64-bit seed of the basis.")
@click.option("--peers/--no-peers", default=True, show_default=True,
              help="Ask what truncated and rounded SVDs need for the same NMSE.")  # fmt: skip
@click.option("--passthrough", is_flag=True, help="Carry unknown tensors exactly instead of refusing them.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the curve as .png or .svg; needs matplotlib.")
@force_option
@quiet_option
@json_option
def command(
    source: str, sizes: str | None, nmse: str | None, errors: str | None, objective: str, rank: int | None, seed: int,
    peers: bool, passthrough: bool, plot: str | None, force: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Encode the adapter SOURCE at many sizes: the whole curve of size against error, and what peers need for it."""
    from nola_codec.api.plotting import check_plot, plot_sweep
    from nola_codec.api.sweeping import sweep

    if sum(text is not None for text in (sizes, nmse, errors)) > 1:
        raise click.UsageError("choose one of --sizes, --nmse, --error")
    if nmse is not None and objective != "nmse":
        raise click.UsageError("--nmse is a target of --objective nmse; use --error with another objective")
    if plot is not None:
        check_plot(plot, overwrite=force)
    listed = nmse if nmse is not None else errors
    report = sweep(
        source,
        sizes=None if sizes is None else [item.strip() for item in sizes.split(",")],
        errors=None if listed is None else _numbers(listed),
        objective=objective,
        peers=peers,
        carry_unknown=passthrough,
        progress=progress(quiet),
        rank=rank,
        seed=seed,
    )
    if plot is not None:
        plot_sweep(report, plot, title=Path(source).name, overwrite=force)
    if as_json:
        print_json({**asdict(report), "plot": plot})
        return
    _print(report, plot)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError as error:
        raise click.UsageError(f"expected numbers with commas between them, found {text!r}") from error


def _print(report: SweepReport, plot: str | None) -> None:
    effective = report.objective == "effective"
    heading = ["target", "file", "vs fp16", "NMSE", *["eff. error"] * effective, *report.peers]
    rows = [heading]
    for point in report.points:
        target = size(point.target) if report.by == "size" else f"{point.target:g}"
        if point.bytes is None or point.nmse is None or point.ratio is None:
            rows.append([target, "none", *[""] * (len(heading) - 2)])
            continue
        files = {file.name: file for file in point.peers}
        rows.append([
            target, size(point.bytes), f"{point.ratio:.1f}x", error_share(point.nmse),
            *[error_share(point.effective_error or 0.0)] * effective, *(_cell(files.get(n)) for n in report.peers),
        ])  # fmt: skip
    table(rows, right=range(1, len(heading)))
    for point in report.points:
        if point.problem:
            click.echo(f"none: {point.problem}")
    if report.peers:
        click.echo("Peers: the bytes they need for the NMSE of the row, and how many times ours that is.")
    if plot is not None:
        click.echo(f"wrote  {plot}")


def _cell(file: Any) -> str:
    if file is None:
        return "-"
    return "not reached" if file.bytes is None else f"{size(file.bytes)} {file.ratio:5.2f}x"
