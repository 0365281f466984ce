"""`nola-codec encode-many`."""

from __future__ import annotations

from typing import Any

import click

from nola_codec.cli.encode_options import (
    BASIS_OPTIONS,
    BLOCK_OPTION,
    CARRIED_OPTION,
    CARRY_UNKNOWN_OPTION,
    FACTOR_OPTIONS,
    RANK_OPTION,
    RATE_OPTIONS,
    RATES,
    SCALE_OPTION,
    THOROUGH_OPTION,
    read_coding_values,
)
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
from nola_codec.cli.output import OUTPUT


@helpful_command(
    examples=[
        ("All adapters in a directory", "nola-codec encode-many loras -o files --ratio 30"),
        ("Some of them", "nola-codec encode-many 'loras/*/checkpoint-1000' -o files --size 50KB"),
        (
            "The checkpoints of a run, each as the difference to the one before it",
            "nola-codec encode-many 'run/checkpoint-*' -o files --chain",
        ),
        ("Those of a list, each with its own options", "nola-codec encode-many --manifest list.csv -o files"),
        ("On a Ray cluster", "nola-codec encode-many loras -o files --engine ray --ray-address auto"),
    ],
    alternatives=RATES,
    says_no="some sources failed; the others are done",
)
@click.argument("sources", nargs=-1, type=PATH, metavar="SOURCE...")
@options(MANIFEST_OPTION, *RATE_OPTIONS, *FACTOR_OPTIONS, RANK_OPTION, THOROUGH_OPTION, *RUN_OPTIONS, CHECK_OPTION)
@option("--chain", group="Reference", is_flag=True,
        help="Code the sources of a folder, such as the checkpoints of a run, in the order of the numbers in their "
             "names, each as the difference to the one before it. Each file then needs those before it. Lone files in "
             "folders that differ in numbers alone are a chain too.")  # fmt: skip
@options(*BASIS_OPTIONS, SCALE_OPTION)
@option("--base", group="Adapter", type=PATH, metavar="MODEL_DIR",
        help="Base model of all adapters: carried tensors that equal its own are left out.")  # fmt: skip
@option("-o", "--output", "out", group=OUTPUT, type=PATH, required=True, metavar="DIR",
        help="Directory for the .nola files and the manifest.")  # fmt: skip
@options(BLOCK_OPTION, CARRIED_OPTION, CARRY_UNKNOWN_OPTION, MANIFEST_FORMAT_OPTION, *OUTPUTS_OPTIONS)
def command(
    sources: tuple[str, ...], out: str, manifest: str | None, check: bool, chain: bool, force: bool, **values: Any
) -> int:
    """Encode many adapters, each SOURCE a path, a glob, or a directory that is searched for adapters.

    The same command again does only what is missing: new and changed adapters, other options, and what failed. It can
    be stopped at any time. A source that fails stops no other; failures are listed at the end.

    The manifest in DIR has a row for each file: source, hashes, size, errors, scale, seconds, and reason of a failure.
    """
    from nola_codec.fleet.many import encode_many

    request = take(RunRequest, values)
    encoding = {name: value for name, value in read_coding_values(values).items() if value is not None}
    return request.run(
        encode_many,
        sources,
        out,
        noun="adapters",
        manifest=manifest,
        check=check,
        chain=chain,
        overwrite=force,
        encoding=encoding,
    )
