"""`nola-codec encode-delta`."""

from __future__ import annotations

from typing import Any

import click

from nola_codec.cli.encode_options import (
    BLOCK_OPTION,
    IMPORTANCE_OPTION,
    OUTPUT_OPTIONS,
    RATE_OPTIONS,
    RATES,
    SEED_OPTION,
    TARGET,
    THOROUGH_OPTION,
    OutputRequest,
    read_coding_values,
)
from nola_codec.cli.help import PATH, option, options, take
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.progress import show_progress

_WEIGHTS = "Weights"
_WEIGHT_OPTIONS = (
    option("--base", group=_WEIGHTS, type=PATH, required=True, metavar="BASE",
           help="The model that TUNED was trained from: a directory or a .safetensors file."),
    option("--include", group=_WEIGHTS, multiple=True, metavar="REGEX", help="Code only weights whose names match."),
    option("--exclude", group=_WEIGHTS, multiple=True, metavar="REGEX", help="Code no weights whose names match."),
    option("--embeddings", group=_WEIGHTS, is_flag=True, help="Code the input embeddings too."),
    option("--head", group=_WEIGHTS, is_flag=True, help="Code the output layer too."),
)  # fmt: skip
_SPLIT_OPTIONS = (
    option("--rank", group=TARGET, type=int, help="Singular components taken of a matrix at most  [default: 64]."),
    option("--energy", group=TARGET, type=float, help="Take components up to this share of a matrix' energy."),
    option("--residue/--no-residue", group=TARGET, default=True, show_default=True,
           help="Code what the components leave, too."),
)  # fmt: skip


@helpful_command(
    examples=[
        (
            "32 times smaller than the changed weights",
            "nola-codec encode-delta tuned --base base -o change.nola --ratio 32",
        ),
        ("And back", "nola-codec decode change.nola --base base -o tuned_again"),
    ],
    alternatives=RATES,
)
@click.argument("tuned", type=PATH)
@options(*_WEIGHT_OPTIONS, *RATE_OPTIONS, *_SPLIT_OPTIONS, THOROUGH_OPTION, IMPORTANCE_OPTION)
@options(SEED_OPTION, BLOCK_OPTION, *OUTPUT_OPTIONS)
def command(tuned: str, base: str, **values: Any) -> None:
    """Encode what a training changed in the whole model TUNED, a directory or a .safetensors file.

    A changed matrix is coded as its strongest singular components and what they leave; norms and biases are coded as
    vectors. Embeddings and the output layer are left out unless asked for, and a note says how much they hold.

    Give at most one of --size, --ratio, --nmse and --error; --ratio counts the changed weights in 16 bits.
    """
    from nola_codec.api.delta_encoding import encode_delta

    output = take(OutputRequest, values)
    target = output.open_target()
    with show_progress(output.quiet) as show:
        report = encode_delta(tuned, base, target, overwrite=output.force, progress=show, **read_coding_values(values))
    output.print_report(report)
