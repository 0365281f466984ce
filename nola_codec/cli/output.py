"""Printing: JSON, sizes, tables, progress. Results go to stdout, progress to stderr and only to a terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nola_codec.merge.request import MergeReport

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")
keep_undo_option = click.option("--keep-undo", is_flag=True, help="Write what --unmerge needs beside the weights.")
unmerge_option = click.option("--unmerge", type=click.Path(), metavar="MERGED_DIR",
                              help="Restore the base of a model merged with --keep-undo, to the bit.")  # fmt: skip
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite the output.")


def usable_device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """A device's name, tried out where it is neither the CPU nor "numpy"; for an option's `callback`."""
    if name not in ("cpu", "numpy"):
        import torch

        try:
            torch.zeros(1, device=name).cpu()  # "meta" takes tensors and gives none back
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise click.BadParameter(f"{name!r} cannot be used here: {reason}", context, parameter) from error
    return name


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinities become null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def size(count: float) -> str:
    """Bytes for people, in thousands: ``157.3 KB``."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def print_merge(report: MergeReport, seconds: float, *, as_json: bool, restored: bool = False) -> None:
    """What a merge wrote, or its undoing; that it went on from a killed run is said on stderr."""
    found = report.output.rglob("*") if report.output.is_dir() else [report.output]
    total = sum(path.stat().st_size for path in found)
    if as_json:
        print_json({
            "output": str(report.output), "merged": not restored, "bytes": total, "seconds": seconds,
            "shards": report.shards, "resumed": report.resumed, "weights": report.weights,
        })  # fmt: skip
        return
    if report.resumed:
        click.echo(f"resumed: {report.resumed} of {report.shards} shards were finished by an earlier run", err=True)
    click.echo(f"wrote  {report.output} ({size(total)}, {'restored' if restored else 'merged'}) in {seconds:.2f} s")


def error_share(value: float) -> str:
    """A relative error: four digits, and a percentage when it is small."""
    return f"{value:.4f}" if value >= 0.001 else f"{value:.2e}"


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns; those in `right` are flush right. The first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(cells).rstrip())


def progress(quiet: bool) -> Callable[[str, int, int], None] | None:
    """A progress line on a terminal's stderr, else None."""
    if quiet or not sys.stderr.isatty():
        return None
    last = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.1 and done < total:
            return
        last = now
        click.echo(f"\r\x1b[K{stage} {done}/{total}", nl=False, err=True)
        if done >= total:
            click.echo("\r\x1b[K", nl=False, err=True)

    return show


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
