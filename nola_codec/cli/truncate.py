"""`nola-codec truncate`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_codec.cli.help import PATH, STREAM_OR_PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import (
    OUTPUT,
    STDOUT,
    binary_stdout,
    force_option,
    json_option,
    limits_option,
    print_json,
    quiet_option,
)
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url


@helpful_command(
    examples=[
        ("The finest rung that fits into 20 KB", "nola-codec truncate my.nola -o small.nola --size 20KB"),
        ("The same, piped on", "nola-codec truncate my.nola -o - --size 20KB | ssh host 'cat > small.nola'"),
        ("What an interrupted download is good for", "nola-codec truncate partial.nola -o whole.nola"),
    ],
    alternatives=("limit", "rung"),
)
@click.argument("file", type=PATH)
@option("--size", "limit", group="Target", metavar="SIZE", help="Largest file, e.g. 50KB: the finest rung that fits.")
@option("--rung", group="Target", type=int, help="Number of the rung, from 0, the coarsest.")
@option("-o", "--output", "out", group=OUTPUT, type=STREAM_OR_PATH, metavar="FILE", required=True,
        help="The .nola file to write; - is standard output, and the report then goes to stderr.")  # fmt: skip
@limits_option
@force_option
@quiet_option
@json_option
def command(file: str, limit: str | None, rung: int | None, out: str, force: bool, quiet: bool, as_json: bool) -> None:
    """Cut the progressive FILE to one of its coarser rungs. Nothing is encoded again.

    FILE may be the beginning of a file, as an interrupted download leaves it: without --size and --rung, the finest
    rung that is complete is kept. `inspect` lists a file's rungs; `encode --progressive` makes them.
    """
    from nola_codec.api.truncating import truncate

    piped = out == STDOUT
    target = binary_stdout() if piped else out
    with show_progress(quiet, "cutting"):
        report = truncate(file, target, size=limit, rung=rung, overwrite=force)
    if as_json:
        print_json({**asdict(report), "output": shown_url(out)}, err=piped)
        return
    echo(f"wrote  {'standard output' if piped else shown_url(out)}", err=piped)
    echo(str(report), err=piped)
