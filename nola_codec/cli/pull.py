"""`nola-codec pull`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import (
    OUTPUT,
    force_option,
    json_option,
    limits_option,
    print_json,
    print_notes,
    quiet_option,
)
from nola_codec.cli.push import endpoint_option, hide_bars
from nola_codec.rendering import render_size

if TYPE_CHECKING:
    from nola_codec.integrations.hub.pulling import Pulled


@helpful_command(
    examples=[
        ("Into the current directory, under its own name", "nola-codec pull someone/lora -o ."),
        ("One of several files", "nola-codec pull someone/loras:french.nola -o french.nola"),
        ("Into the cache; its path is printed", "nola-codec pull someone/lora"),
        ("Other commands take the repository as a URL", "nola-codec decode hf://someone/lora -o lora"),
    ]
)
@click.argument("repo", metavar="REPO")
@option("--revision", group="Repository", metavar="NAME", help="Branch, tag or commit  [default: main].")
@endpoint_option
@option("--offline", group="Repository", is_flag=True, help="Ask nothing; use the Hub's cache.")
@option("-o", "--output", "out", group=OUTPUT, type=PATH,
        help="Copy the file there: a path, or a directory  [default: leave it in the Hub's cache].")  # fmt: skip
@limits_option
@force_option
@quiet_option
@json_option
def command(
    repo: str, revision: str | None, endpoint: str | None, offline: bool, out: str | None, force: bool, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Get the .nola file of the repository REPO (owner/name, or owner/name:FILE) of the Hugging Face Hub.

    The file comes through the Hub's own cache, and its SHA-256 hashes are compared. Its path is printed.
    """
    from nola_codec.integrations.hub.pulling import pull

    if quiet or as_json or not sys.stderr.isatty():
        hide_bars()
    pulled = pull(repo, out=out, overwrite=force, revision=revision, endpoint=endpoint, local_files_only=offline)
    if as_json:
        print_json({**asdict(pulled), "path": str(pulled.path)})
        return
    if not quiet:
        said = f"{pulled.repo}:{pulled.file}, {render_size(pulled.bytes)}, commit {pulled.commit[:12]}, checked"
        echo(f"pulled {said}", err=True)
        if pulled.from_cache and not offline:
            echo("note: the Hub was not asked or gave no answer; this is the cached file", err=True)
    if pulled.reference is not None:
        print_notes([_say_reference(pulled)])
    echo(str(pulled.path))


def _say_reference(pulled: Pulled) -> str:
    """Return the sentence about the earlier version that a file needs."""
    assert pulled.reference is not None
    name = pulled.reference["name"]
    said = f"{name!r}, " if name else ""
    if not name.endswith(".nola"):
        return f"the file can only be decoded with its reference, {said}SHA-256 {pulled.reference['sha256']}"
    return (
        f"the file can only be decoded with its reference, {said}SHA-256 {pulled.reference['sha256'][:16]}...; if the "
        f"repository has it, `nola-codec pull {pulled.repo}:{name}` puts it beside the file"
    )
