"""`nola-codec decode-many`."""

from __future__ import annotations

from typing import Any

import click

from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.cli.fleet_options import (
    CHECK_OPTION,
    MANIFEST_FORMAT_OPTION,
    MANIFEST_OPTION,
    OUTPUTS_OPTIONS,
    RUN_OPTIONS,
    RunRequest,
)
from nola_codec.cli.help import PATH, option, options, take
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.output import OUTPUT, limits_option, references_option

_ADAPTER = "Adapter"


@helpful_command(
    examples=[
        ("A directory for each file", "nola-codec decode-many files -o loras --trim --dtype bf16"),
        ("A lone file for each", "nola-codec decode-many files -o loras --format kohya --ending .safetensors"),
    ],
    says_no="some files failed; the others are done",
)
@click.argument("sources", nargs=-1, type=PATH, metavar="SOURCE...")
@option("--format", "dialect", group=_ADAPTER, type=click.Choice(TARGET_DIALECTS),
        help="Write the adapters in this dialect instead of their own.")  # fmt: skip
@option("--dtype", group=_ADAPTER, type=click.Choice(["f32", "f16", "bf16"]),
        help="Type of the factors; f32 is exact, the others round once  [default: f32].")  # fmt: skip
@option("--trim", group=_ADAPTER, is_flag=True, help="Leave out components that are zero.")
@option("--base", group=_ADAPTER, type=PATH, metavar="MODEL_DIR",
        help="Base model, which --format may need for names.")  # fmt: skip
@options(MANIFEST_OPTION, references_option, limits_option, *RUN_OPTIONS, CHECK_OPTION)
@option("-o", "--output", "out", group=OUTPUT, type=PATH, required=True, metavar="DIR",
        help="Directory for the adapters and the manifest.")  # fmt: skip
@option("--ending", group=OUTPUT, default="",
        help="Write lone files that end so, e.g. .safetensors  [default: a directory for each].")  # fmt: skip
@options(MANIFEST_FORMAT_OPTION, *OUTPUTS_OPTIONS)
def command(sources: tuple[str, ...], out: str, dialect: str | None, force: bool, **values: Any) -> int:
    """Decode many .nola files, each SOURCE a path, a glob, or a directory that is searched for such files.

    The same command again does only what is missing. A file that fails stops no other; failures are listed at the end.
    """
    from nola_codec.fleet.many import decode_many

    request = take(RunRequest, values)
    return request.run(decode_many, sources, out, noun="files", overwrite=force, format=dialect, **values)
