"""`nola-codec merge`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from nola_codec.cli.output import force_option, json_option, print_merge, progress, quiet_option, usable_device


@click.command()
@click.argument("files", metavar="FILE[:WEIGHT]...", nargs=-1, required=True)
@click.option("--base", type=click.Path(), required=True, help="Model directory that the files belong to.")
@click.option("-o", "--output", "out", type=click.Path(), required=True, help="Directory to write.")
@click.option("--rung", type=int, help="Of progressive files: as if they ended with this rung, from 0.")
@click.option("--device", default="cpu", show_default=True, callback=usable_device,
              help="Where factors are synthesized; it changes no bit.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(
    files: tuple[str, ...], base: str, out: str, rung: int | None, device: str, force: bool, quiet: bool, as_json: bool
) -> None:
    """Write the base model with the deltas of each FILE, times its WEIGHT (1), added to its weights.

    Exact: the same bits on every machine. Killed and run again, it goes on with the shard it was at.
    """
    from nola_codec.api.merging import merge

    start = time.perf_counter()
    sources = [file_and_weight(text) for text in files]
    report = merge(sources, base, out, rung=rung, device=device, overwrite=force, progress=progress(quiet))
    print_merge(report, time.perf_counter() - start, as_json=as_json)


def file_and_weight(text: str) -> tuple[str, float]:
    """``a.nola:0.7`` -> ("a.nola", 0.7); what is a file as it stands, or has no number after its colon, is a path."""
    path, colon, number = text.rpartition(":")
    if colon and path and not Path(text).exists():
        try:
            return path, float(number)
        except ValueError:
            pass
    return text, 1.0
