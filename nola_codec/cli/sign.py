"""`nola-codec sign`."""

from __future__ import annotations

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import OUTPUT, force_option, limits_option
from nola_codec.remote import shown_url


@helpful_command(
    examples=[
        ("Sign a file", "nola-codec sign my.nola --key private.pem -o signed.nola"),
        ("Check who signed it", "nola-codec verify signed.nola --key public.pem"),
    ]
)
@click.argument("file", type=PATH)
@option("--key", group="Signature", type=PATH, metavar="PEM", required=True,
        help="Private key of Ed25519, such as `openssl genpkey -algorithm ed25519` makes.")  # fmt: skip
@option("-o", "--output", "out", group=OUTPUT, type=PATH, metavar="FILE", required=True,
        help="The signed .nola file to write.")  # fmt: skip
@limits_option
@force_option
def command(file: str, key: str, out: str, force: bool) -> None:
    """Sign FILE: whoever has your public key can check that it is yours, and as you made it.

    The signature follows the content of the file, which stays as it is. A signature that is there is replaced.
    """
    from nola_codec.api.signing import sign

    sign(file, key, out, overwrite=force)
    echo(f"wrote  {shown_url(out)}")
