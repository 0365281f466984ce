"""`nola-codec verify-many`."""

from __future__ import annotations

from typing import Any

import click

from nola_codec.cli.fleet_options import (
    CHECK_OPTION,
    FILES_OPTIONS,
    MANIFEST_FORMAT_OPTION,
    MANIFEST_OPTION,
    RUN_OPTIONS,
    RunRequest,
)
from nola_codec.cli.help import PATH, option, options, take
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.output import OUTPUT, limits_option, references_option


@helpful_command(
    examples=[
        ("All files that encode-many wrote: are they there, and good?", "nola-codec verify-many files"),
        ("Only those that changed since the last time", "nola-codec verify-many files -o results"),
    ],
    says_no="some files are damaged or missing",
)
@click.argument("sources", nargs=-1, type=PATH, metavar="SOURCE...")
@options(MANIFEST_OPTION, references_option, limits_option, *RUN_OPTIONS, CHECK_OPTION)
@option("-o", "--output", "out", group=OUTPUT, type=PATH, metavar="DIR",
        help="Directory for a manifest of results; later runs leave out good files that have not changed.")  # fmt: skip
@options(MANIFEST_FORMAT_OPTION, *FILES_OPTIONS)
def command(sources: tuple[str, ...], out: str | None, **values: Any) -> int:
    """Verify many .nola files, each SOURCE a path, a glob, or a directory that is searched for such files.

    Of a directory that encode-many wrote, all files of its manifest must be there, and be the ones that it wrote.
    """
    from nola_codec.fleet.many import verify_many

    request = take(RunRequest, values)
    return request.run(verify_many, sources, out, noun="files", **values)
