"""`nola-codec truncate`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_codec.cli.output import error_share, force_option, json_option, print_json, size


@click.command()
@click.argument("file", type=click.Path())
@click.option("-o", "--output", "out", type=click.Path(), required=True, help="The .nola file to write.")
@click.option("--size", "limit", metavar="SIZE", help="Largest file, e.g. 50KB: the finest rung that fits.")
@click.option("--rung", type=int, help="Number of the rung, from 0, the coarsest.")
@force_option
@json_option
def command(file: str, out: str, limit: str | None, rung: int | None, force: bool, as_json: bool) -> None:
    """Cut the progressive FILE to one of its coarser rungs.

    FILE may be the beginning of a file, as an interrupted download leaves it: without --size and --rung, what is whole
    of it is kept. `inspect` lists a file's rungs; `encode --progressive` makes them.
    """
    from nola_codec.api.truncating import truncate

    report = truncate(file, out, size=limit, rung=rung, overwrite=force)
    if as_json:
        print_json({**asdict(report), "output": out})
        return
    click.echo(f"wrote  {out}")
    click.echo(f"rung   {report.rung} of 0 to {report.rungs - 1}")
    click.echo(f"size   {size(report.bytes)} ({report.bytes:,} bytes)")
    for name, value in report.measured.items():
        click.echo(f"{name}  {error_share(value)}")
