"""`nola-codec report`."""

from __future__ import annotations

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
    print_sentences,
    quiet_option,
    references_option,
)
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url


@helpful_command(
    examples=[
        ("Where do the bytes go?", "nola-codec report my.nola -o report.html"),
        ("And what was lost?", "nola-codec report my.nola --against my_lora -o report.html"),
        ("What would other sizes lose?", "nola-codec report my.nola --against my_lora --sweep -o report.html"),
        (
            "Does the task still work?",
            "nola-codec report my.nola --against my_lora --eval losses.json -o report.html",
        ),
        ("The figures alone", "nola-codec report my.nola --against my_lora --json"),
    ]
)
@click.argument("file", type=PATH)
@option("--against", group="Adapter", type=PATH, metavar="SRC",
        help="The original adapter; the report then says what was kept of it.")  # fmt: skip
@option("--scale", group="Adapter", type=float, help="Scaling of the original, if it does not say it.")
@option("--sweep", group="Adapter", is_flag=True,
        help="Also encode the original at six other sizes, for the curve of size against error.")  # fmt: skip
@option("--eval", "evaluation", group="Adapter", type=PATH, metavar="RESULT.json",
        help="What eval --json printed about FILE; the page then has losses and texts side by side.")  # fmt: skip
@option("-o", "--output", "out", group=OUTPUT, type=PATH, metavar="FILE",
        help="The HTML page to write. It may be left out with --json.")  # fmt: skip
@references_option
@limits_option
@force_option
@quiet_option
@json_option
def command(
    file: str,
    against: str | None,
    scale: float | None,
    sweep: bool,
    evaluation: str | None,
    out: str | None,
    references: tuple[str, ...],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a page that says what FILE holds, what its bytes are spent on, and what was lost.

    The page is one HTML file. It needs no network and no scripts, and --json prints every figure of it.
    """
    from nola_codec.reporting.writing import report

    if out is None and not as_json:
        raise click.UsageError("give -o FILE for the page, or --json for its figures")
    with show_progress(quiet) as show:
        found = report(
            file, out, against=against, scale=scale, sweep=sweep, evaluation=evaluation,
            references=references or None, progress=show, overwrite=force,
        )  # fmt: skip
    if as_json:
        print_json({**found.to_dict(), "output": None if out is None else shown_url(out)})
        return
    echo(f"wrote  {shown_url(str(out))}")
    print_sentences((found.verdict, found.reason, *([] if found.losses is None else [str(found.losses)])))
    if found.losses is not None:
        print_notes((*found.losses.doubts, *found.losses.comparison.notes))
