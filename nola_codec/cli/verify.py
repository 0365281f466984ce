"""`nola-codec verify`."""

from __future__ import annotations

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import describe_error, echo, one_line
from nola_codec.cli.output import json_option, limits_option, print_json, quiet_option, references_option
from nola_codec.cli.progress import show_progress
from nola_codec.errors import FormatError
from nola_codec.remote import shown_url
from nola_codec.rendering import render_size


@helpful_command(
    examples=[
        ("Is the file good?", "nola-codec verify my.nola"),
        ("Is it theirs?", "nola-codec verify signed.nola --key public.pem"),
        ("The file SHA-256 is the one that sha256sum prints", "nola-codec verify my.nola --json"),
    ],
    says_no="the file is damaged",
)
@click.argument("file", type=PATH)
@option("--key", group="Signature", type=PATH, metavar="PEM",
        help="Public key of Ed25519: the file must be signed with its private key.")  # fmt: skip
@references_option
@limits_option
@quiet_option
@json_option
def command(file: str, key: str | None, references: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Check all of FILE: its layout, every checksum, and the hash of everything it decodes to.

    It prints three hashes: the file SHA-256 is what sha256sum prints, the content SHA-256 is stored in the file over
    the rest of it, and the decoded SHA-256 is over the decoded numbers, which are the same on every machine.
    """
    from nola_codec.api.decoding import verify

    try:
        with show_progress(quiet) as show:
            facts = verify(file, progress=show, references=references or None, key=key)
    except FormatError as error:
        if error.code in ("reference", "limit"):  # the file may be good
            raise
        if as_json:
            print_json({"ok": False, "code": error.code, "error": str(error)})
        else:
            echo(f"bad   {one_line(describe_error(error))}")
        return 1
    if as_json:
        print_json({"ok": True, **facts})
        return 0
    echo(f"good  {shown_url(file)}: {render_size(facts['bytes'])}, {facts['tensors']} tensors")
    if facts["signed_by"] is not None:
        echo(f"signed by       {facts['signed_by']}{'' if key else ' (not checked: give --key)'}")
    echo(f"file SHA-256    {facts['file_sha256']}")
    echo(f"content SHA-256 {facts['content_sha256']}")
    echo(f"decoded SHA-256 {facts['decoded_sha256']}")
    return 0
