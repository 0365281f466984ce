"""`nola-codec verify`."""

from __future__ import annotations

import click

from nola_codec.cli.output import json_option, print_json, size
from nola_codec.errors import FormatError


@click.command()
@click.argument("file", type=click.Path())
@json_option
def command(file: str, as_json: bool) -> int:
    """Check FILE through and through: layout, every checksum, and the digest of all it decodes to.

    Exit status 1 says that the file is not good.
    """
    from nola_codec.api.decoding import verify

    try:
        facts = verify(file)
    except FormatError as error:
        if as_json:
            print_json({"ok": False, "code": error.code, "error": str(error)})
        else:
            click.echo(f"bad   {error} [{error.code}]")
        return 1
    if as_json:
        print_json({"ok": True, **facts})
        return 0
    click.echo(f"good  {file}: {size(facts['bytes'])}, {facts['tensors']} tensors")
    click.echo(f"file SHA-256     {facts['content_sha256']}")
    click.echo(f"decoded SHA-256  {facts['factors_sha256']}")
    return 0
