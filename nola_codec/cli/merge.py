"""`nola-codec merge`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.cli.encode_options import RANK_OPTION, RATE_OPTIONS, THOROUGH_OPTION
from nola_codec.cli.help import PATH, option, options, take
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import (
    OUTPUT,
    any_base_option,
    device_option,
    force_option,
    json_option,
    keep_undo_option,
    limits_option,
    print_json,
    print_merge,
    print_notes,
    print_scale_notes,
    quiet_option,
    references_option,
    unmerge_option,
    written_bytes,
)
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url
from nola_codec.rendering import render_size

if TYPE_CHECKING:
    from nola_codec.merger.request import MergeReport

_ADAPTER = "Adapter"


@dataclass(frozen=True)
class MergeArguments:
    """The model to merge into, and the place of the result; values of the options that `merge` and `decode` share."""

    base: str | None
    unmerge: str | None
    out: str
    keep_undo: bool
    any_base: bool
    rung: int | None
    device: str
    force: bool
    quiet: bool
    references: tuple[str, ...] | None = None

    def print_merge(self, sources: list[tuple[str, float]], *, as_json: bool) -> None:
        """Merge the files, or undo that, and print what was written. Raises UsageError for options at odds."""
        start = time.perf_counter()
        report = self._merge(sources)
        print_merge(report, time.perf_counter() - start, as_json=as_json, restored=self.unmerge is not None)
        if self.unmerge is None and not as_json:
            print_scale_notes(file for file, _ in sources)

    def _merge(self, sources: list[tuple[str, float]]) -> MergeReport:
        from nola_codec.api import merging

        if self.base is not None and self.unmerge is not None:
            raise click.UsageError("give either --base or --unmerge, not both")
        common: dict[str, Any] = {
            "rung": self.rung, "device": self.device, "overwrite": self.force, "references": self.references or None,
        }  # fmt: skip
        if self.unmerge is not None:
            for flag, is_given in (("--keep-undo", self.keep_undo), ("--any-base", self.any_base)):
                if is_given:
                    raise click.UsageError(f"{flag} is for merging")
            with show_progress(self.quiet) as show:
                return merging.unmerge(sources, self.unmerge, self.out, progress=show, **common)
        assert self.base is not None
        with show_progress(self.quiet) as show:
            return merging.merge(
                sources, self.base, self.out, keep_undo=self.keep_undo, any_base=self.any_base, progress=show, **common
            )


@helpful_command(
    examples=[
        ("One adapter into a model", "nola-codec merge my.nola --base MODEL_DIR -o merged"),
        ("Two adapters, weighted", "nola-codec merge a.nola:0.7 b.nola:0.3 --base MODEL_DIR -o merged"),
        ("Two adapters into one file", "nola-codec merge lora_a:0.7 lora_b:0.3 -o both.nola --size 50KB"),
        ("Two adapters into one adapter", "nola-codec merge lora_a lora_b -o both_lora --format peft"),
        (
            "A file that needs no earlier version any more",
            "nola-codec merge version2.nola -o whole.nola --reference version1.nola",
        ),
        ("There and back", "nola-codec merge my.nola --base MODEL_DIR -o merged --keep-undo"),
        ("", "nola-codec merge my.nola --unmerge merged -o base_again"),
    ]
)
@click.argument("files", metavar="FILE[:WEIGHT]...", nargs=-1, required=True)
@option("--base", group="Merging", type=PATH, metavar="MODEL_DIR",
        help="Base model of the files; without it, the adapters are merged into one adapter.")  # fmt: skip
@option("--format", "dialect", group=_ADAPTER, type=click.Choice(TARGET_DIALECTS),
        help="Without --base: the dialect of the adapter  [default: that of the first file].")  # fmt: skip
@option("--dtype", group=_ADAPTER, type=click.Choice(["f32", "f16", "bf16"]),
        help="Without --base: type of the adapter's factors  [default: f32].")  # fmt: skip
@options(*RATE_OPTIONS, RANK_OPTION, THOROUGH_OPTION)
@keep_undo_option
@any_base_option
@unmerge_option
@option("--rung", group="Merging", type=int, help="Use progressive files as if they ended with this rung, from 0.")
@references_option
@limits_option
@device_option
@option("-o", "--output", "out", group=OUTPUT, type=PATH, metavar="PATH", required=True,
        help="Directory to write; without --base also a .nola file, or a file of tensors as of `decode`.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(files: tuple[str, ...], as_json: bool, dialect: str | None, dtype: str | None, **values: Any) -> None:
    """Write the base model with the deltas of each FILE, times its WEIGHT (1), added to its weights.

    Exact: the same bits on every machine. A merge that was killed goes on with the shard it was at when the same
    command is run again.

    Without --base, write one adapter for all: its factors are those of the FILEs, one after another. A FILE may then
    be an adapter of any dialect. An output that ends in .nola is encoded; --size and the other targets are for it.
    """
    arguments = take(MergeArguments, values)
    sources = [file_and_weight(text) for text in files]
    given = {name: value for name, value in values.items() if value not in (None, False)}
    adapter = {name: value for name, value in (("format", dialect), ("dtype", dtype)) if value is not None}
    if arguments.base is None and arguments.unmerge is None:
        _print_adapter(sources, arguments, given | adapter, as_json=as_json)
        return
    if given or adapter:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in (*given, *adapter))
        raise click.UsageError(f"{flags}: for merging adapters into one adapter, without --base and --unmerge")
    arguments.print_merge(sources, as_json=as_json)


def _print_adapter(
    sources: list[tuple[str, float]], arguments: MergeArguments, chosen: dict[str, Any], *, as_json: bool
) -> None:
    """Merge adapters into one, and print what was written. Raises UsageError for options at odds."""
    from nola_codec.api.joining import merge_adapters
    from nola_codec.cli.encode_options import read_coding_values

    undo, base = ("--keep-undo", arguments.keep_undo), ("--any-base", arguments.any_base)
    for flag, is_given in (undo, base, ("--device", arguments.device != "cpu")):
        if is_given:
            raise click.UsageError(f"{flag} is for merging into a model: give --base")
    start = time.perf_counter()
    coding = read_coding_values(chosen)
    with show_progress(arguments.quiet) as show:
        if Path(arguments.out).suffix == ".nola":
            coding["progress"] = show
        report = merge_adapters(
            sources, arguments.out, rung=arguments.rung, overwrite=arguments.force,
            references=arguments.references or None, **coding,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    total = written_bytes(report.output)
    name = shown_url(str(report.output))
    if as_json:
        print_json({
            "output": name, "merged": True, "bytes": total, "seconds": seconds, "modules": report.modules,
            "rank": report.rank, "notes": report.notes,
            "nmse": None if report.encoded is None else report.encoded.nmse,
        })  # fmt: skip
        return
    echo(f"wrote  {name} ({render_size(total)}, {report.modules} modules) in {seconds:.2f} s")
    if report.encoded is not None:
        echo(str(report.encoded))
    print_notes(report.notes)


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
