"""`nola-codec inspect`."""

from __future__ import annotations

import click

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.help import option
from nola_codec.cli.messages import echo
from nola_codec.cli.output import OUTPUT, json_option, limits_option, print_json


@helpful_command(
    examples=[
        ("What is in the file, and what was lost", "nola-codec inspect my.nola"),
        ("Every tensor, for programs", "nola-codec inspect my.nola --tensors --json"),
    ]
)
@click.argument("file", type=click.Path())
@option("--tensors", group=OUTPUT, is_flag=True, help="List every tensor.")
@limits_option
@json_option
def command(file: str, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds. It reads the header only; `verify` checks the rest."""
    from nola_codec.api.inspecting import inspect

    facts = inspect(file)
    if as_json:
        plain = facts.to_dict()
        if not tensors:
            plain["tensors"] = len(facts.tensors)
        print_json(plain)
        return
    echo(str(facts))
    if tensors:
        echo("")
        echo(facts.tensor_table())
