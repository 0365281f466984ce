"""`nola-codec compare`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo, screen_width
from nola_codec.cli.output import (
    OUTPUT,
    force_option,
    json_option,
    limits_option,
    print_json,
    print_notes,
    quiet_option,
    references_option,
)
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url


@helpful_command(
    examples=[
        ("What did a file lose?", "nola-codec compare my_lora my.nola"),
        ("Which layers lost most?", "nola-codec compare my_lora my.nola --plot losses.svg"),
        ("Fail in a script above an NMSE of 5%", "nola-codec compare my_lora my.nola --max-nmse 0.05"),
    ],
    says_no="weights are missing on one side, carried tensors differ, or --max-nmse is exceeded",
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@option("--per-tensor", group=OUTPUT, is_flag=True, help="List every delta, the worst first.")
@option("--plot", group=OUTPUT, type=PATH, metavar="FILE",
        help="Draw NMSE and signal by layer and module type; .png or .svg, by matplotlib.")  # fmt: skip
@option("--max-nmse", group="Target", type=float, help="End with exit status 1 above this NMSE.")
@option("--scale", group="Adapter", type=float,
        help="Scaling of each of the two that is no .nola file and does not say it.")  # fmt: skip
@references_option
@limits_option
@force_option
@quiet_option
@json_option
def command(
    a: str,
    b: str,
    per_tensor: bool,
    plot: str | None,
    max_nmse: float | None,
    scale: float | None,
    references: tuple[str, ...],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Compare the deltas of adapter B with those of adapter A, the reference; either may be a .nola file."""
    from nola_codec.api.comparing import compare
    from nola_codec.api.plotting import check_plot

    if plot is not None:
        check_plot(plot, overwrite=force)
    with show_progress(quiet) as show:
        found = compare(a, b, scale=scale, progress=show, references=references or None)
    if plot is not None:
        from nola_codec.reporting.comparison_plot import plot_comparison

        names = [Path(shown_url(each)).name for each in (a, b)]
        plot_comparison(found, plot, title=f"{names[1]} against {names[0]}", overwrite=force)
    good = found.same_structure and (max_nmse is None or found.nmse <= max_nmse)
    if as_json:
        print_json({"ok": good, **asdict(found), "plot": plot})
        return 0 if good else 1
    echo(str(found))
    print_notes(found.notes)
    if per_tensor:
        echo("")
        echo(found.tensor_table(screen_width(sys.stdout)))
    if plot is not None:
        echo(f"wrote  {plot}")
    return 0 if good else 1
