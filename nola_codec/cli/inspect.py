"""`nola-codec inspect`."""

from __future__ import annotations

import sys

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo, screen_width
from nola_codec.cli.output import OUTPUT, json_option, limits_option, print_json


@helpful_command(
    examples=[
        ("What is in the file, and what was lost", "nola-codec inspect my.nola"),
        ("Every tensor, the largest first", "nola-codec inspect my.nola --tensors --sort coefficients"),
        ("Every tensor, for programs", "nola-codec inspect my.nola --tensors --json"),
    ]
)
@click.argument("file", type=PATH)
@option("--tensors", group=OUTPUT, is_flag=True, help="List every tensor, and the sums by module type.")
@option("--sort", group=OUTPUT, type=click.Choice(["file", "name", "coefficients", "kept"]),
        help="Order of --tensors: as in the file, by name, the most coefficients first, or the fewest kept components "
             "first  [default: file].")  # fmt: skip
@limits_option
@json_option
def command(file: str, tensors: bool, sort: str | None, as_json: bool) -> None:
    """Show what FILE holds. It reads the header only; `verify` checks the rest.

    The first line has the size, and what to expect of the task, by tasks that were measured. With --json, tensors are
    in the order of the file.
    """
    from nola_codec.api.inspecting import inspect

    if sort is not None and (as_json or not tensors):
        raise click.UsageError("--sort is the order of the table of --tensors" + ", and --json has none" * as_json)
    facts = inspect(file)
    if as_json:
        plain = facts.to_dict()
        if not tensors:
            plain["tensors"] = len(facts.tensors)
        print_json(plain)
        return
    echo(str(facts))
    if tensors:
        from nola_codec.reporting.type_table import render_type_table

        width = screen_width(sys.stdout)
        echo(f"\n{facts.tensor_table(sort or 'file', width)}")
        echo(f"\n{render_type_table(facts, width)}")
