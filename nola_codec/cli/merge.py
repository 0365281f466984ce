"""`nola-codec merge`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.help import option
from nola_codec.cli.output import (
    OUTPUT,
    device_option,
    force_option,
    json_option,
    keep_undo_option,
    print_merge,
    progress,
    quiet_option,
    unmerge_option,
)

if TYPE_CHECKING:
    from nola_codec.merge.request import MergeReport


@helpful_command(
    examples=[
        ("One adapter into a model", "nola-codec merge my.nola --base MODEL_DIR -o merged"),
        ("Two adapters, weighted", "nola-codec merge a.nola:0.7 b.nola:0.3 --base MODEL_DIR -o merged"),
        ("There and back", "nola-codec merge my.nola --base MODEL_DIR -o merged --keep-undo"),
        ("", "nola-codec merge my.nola --unmerge merged -o base_again"),
    ]
)
@click.argument("files", metavar="FILE[:WEIGHT]...", nargs=-1, required=True)
@option("--base", group="Merging", type=click.Path(), metavar="MODEL_DIR", help="Base model of the files.")
@keep_undo_option
@unmerge_option
@option("--rung", group="Merging", type=int, help="Use progressive files as if they ended with this rung, from 0.")
@device_option
@option("-o", "--output", "out", group=OUTPUT, type=click.Path(), metavar="DIRECTORY", required=True,
        help="Directory to write.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(
    files: tuple[str, ...], base: str | None, keep_undo: bool, unmerge: str | None, out: str, rung: int | None,
    device: str, force: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the base model with the deltas of each FILE, times its WEIGHT (1), added to its weights.

    Exact: the same bits on every machine. Killed and run again, it goes on with the shard it was at.
    """
    start = time.perf_counter()
    sources = [file_and_weight(text) for text in files]
    report = run_merge(
        sources, base, unmerge, out, rung=rung, device=device, keep_undo=keep_undo, force=force, quiet=quiet
    )
    print_merge(report, time.perf_counter() - start, as_json=as_json, restored=unmerge is not None)


def run_merge(
    sources: list[tuple[str, float]],
    base: str | None,
    unmerge: str | None,
    out: str,
    *,
    rung: int | None,
    device: str,
    keep_undo: bool,
    force: bool,
    quiet: bool,
) -> MergeReport:
    """Merge, or undo it; what `merge` and `decode` have in common."""
    from nola_codec.api import merging

    if (base is None) == (unmerge is None):
        raise click.UsageError("give either --base or --unmerge")
    if unmerge is not None:
        if keep_undo:
            raise click.UsageError("--keep-undo is for merging")
        return merging.unmerge(sources, unmerge, out, rung=rung, device=device, overwrite=force)
    assert base is not None
    return merging.merge(
        sources, base, out, rung=rung, device=device, overwrite=force, keep_undo=keep_undo, progress=progress(quiet)
    )


def file_and_weight(text: str) -> tuple[str, float]:
    """``a.nola:0.7`` -> ("a.nola", 0.7); what is a file as it stands, or has no number after its colon, is a path."""
    path, colon, number = text.rpartition(":")
    if colon and path and not Path(text).exists():
        try:
            return path, float(number)
        except ValueError:
            pass
    return text, 1.0
