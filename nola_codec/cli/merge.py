"""`nola-codec merge`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.help import option, take
from nola_codec.cli.output import (
    OUTPUT,
    device_option,
    force_option,
    json_option,
    keep_undo_option,
    print_merge,
    progress,
    quiet_option,
    unmerge_option,
)

if TYPE_CHECKING:
    from nola_codec.merger.request import MergeReport


@dataclass(frozen=True)
class MergeArguments:
    """The model to merge into, and the place of the result; values of the options that `merge` and `decode` share."""

    base: str | None
    unmerge: str | None
    out: str
    keep_undo: bool
    rung: int | None
    device: str
    force: bool
    quiet: bool

    def print_merge(self, sources: list[tuple[str, float]], *, as_json: bool) -> None:
        """Merge the files, or undo that, and print what was written. Raises UsageError for options at odds."""
        start = time.perf_counter()
        report = self._merge(sources)
        print_merge(report, time.perf_counter() - start, as_json=as_json, restored=self.unmerge is not None)

    def _merge(self, sources: list[tuple[str, float]]) -> MergeReport:
        from nola_codec.api import merging

        if (self.base is None) == (self.unmerge is None):
            raise click.UsageError("give either --base or --unmerge")
        common: dict[str, Any] = {"rung": self.rung, "device": self.device, "overwrite": self.force}
        if self.unmerge is not None:
            if self.keep_undo:
                raise click.UsageError("--keep-undo is for merging")
            return merging.unmerge(sources, self.unmerge, self.out, **common)
        assert self.base is not None
        show = progress(self.quiet)
        return merging.merge(sources, self.base, self.out, keep_undo=self.keep_undo, progress=show, **common)


@helpful_command(
    examples=[
        ("One adapter into a model", "nola-codec merge my.nola --base MODEL_DIR -o merged"),
        ("Two adapters, weighted", "nola-codec merge a.nola:0.7 b.nola:0.3 --base MODEL_DIR -o merged"),
        ("There and back", "nola-codec merge my.nola --base MODEL_DIR -o merged --keep-undo"),
        ("", "nola-codec merge my.nola --unmerge merged -o base_again"),
    ]
)
@click.argument("files", metavar="FILE[:WEIGHT]...", nargs=-1, required=True)
@option("--base", group="Merging", type=click.Path(), metavar="MODEL_DIR", help="Base model of the files.")
@keep_undo_option
@unmerge_option
@option("--rung", group="Merging", type=int, help="Use progressive files as if they ended with this rung, from 0.")
@device_option
@option("-o", "--output", "out", group=OUTPUT, type=click.Path(), metavar="DIRECTORY", required=True,
        help="Directory to write.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(files: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Write the base model with the deltas of each FILE, times its WEIGHT (1), added to its weights.

    Exact: the same bits on every machine. A merge that was killed goes on with the shard it was at when the same
    command is run again.
    """
    arguments = take(MergeArguments, values)
    arguments.print_merge([file_and_weight(text) for text in files], as_json=as_json)


def file_and_weight(text: str) -> tuple[str, float]:
    """``a.nola:0.7`` -> ("a.nola", 0.7); text that names a file, or has no number after its colon, is a path.

    Raises:
        UsageError: The text is a file, a colon, and something that is no number.
    """
    path, colon, number = text.rpartition(":")
    if colon and path and not Path(text).exists():
        try:
            return path, float(number)
        except ValueError:
            if Path(path).is_file():
                raise click.UsageError(f"{text}: expected a number after the colon, found {number!r}") from None
    return text, 1.0
