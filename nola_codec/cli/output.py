"""Options and printing that commands share. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from nola_codec.cli.help import PATH, option, options
from nola_codec.cli.messages import STDOUT_NAME, break_lines, echo
from nola_codec.remote import is_url, shown_url
from nola_codec.rendering import render_scalings, render_size

if TYPE_CHECKING:
    from nola_codec.merger.request import MergeReport

STDOUT = "-"
_OBEYED = re.compile(r"[^\x00-\x7e]")
"""Characters outside of ASCII, and the last control character of ASCII; JSON escapes the other ones itself."""
OUTPUT = "Output"

json_option = option("--json", "as_json", group=OUTPUT, is_flag=True, help="Print the result as JSON.")
quiet_option = option("-q", "--quiet", group=OUTPUT, is_flag=True, help="Show no progress.")
force_option = option("-f", "--force", group=OUTPUT, is_flag=True, help="Overwrite the output.")
keep_undo_option = option("--keep-undo", group="Merging", is_flag=True,
                          help="Write an undo file beside the weights, which --unmerge needs.")  # fmt: skip
any_base_option = option("--any-base", group="Merging", is_flag=True,
                         help="Merge even if the file names another base model, as those of encode-delta and of "
                              "encode --base do.")  # fmt: skip
unmerge_option = option("--unmerge", group="Merging", type=PATH, metavar="MERGED_DIR",
                        help="Restore, byte for byte, the base of a model merged with --keep-undo.")  # fmt: skip


references_option = option("--reference", "references", group="Reference", type=PATH, multiple=True,
                           metavar="PATH",
                           help="For a file that holds the difference to an earlier version: that version, or a folder "
                                "that has it. May be repeated  [default: the file's folder].")  # fmt: skip


def set_limits(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Put limits into the environment of this run, where all that opens a file finds them; for an option's `callback`.

    Raises:
        NolaError: ``option``: The limits cannot be read.
    """
    from nola_codec.container.limits import VARIABLE, parse_limits

    if value is None:
        return
    before = os.environ.get(VARIABLE)
    added = f"memory={value}" if parameter.name == "max_memory" else value
    parse_limits(added)
    os.environ[VARIABLE] = f"{before},{added}" if before else added

    def restore() -> None:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before

    context.call_on_close(restore)


limits_option = options(
    option("--max-memory", group="Limits", metavar="SIZE", expose_value=False, callback=set_limits,
           help="Refuse a file that would take more memory than about this, e.g. 500MB."),
    option("--limits", group="Limits", metavar="NAME=N,...", expose_value=False, callback=set_limits,
           help="Other limits for what a file may ask for; a refusal says which one to raise."),
)  # fmt: skip
"""Of commands that read `.nola` files. NOLA_LIMITS gives the same limits to every command."""


def usable_device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """Try a device out unless it is "cpu" or "numpy"; for an option's `callback`.

    Raises:
        BadParameter: The device cannot be used here.
        NolaError: ``needs-torch``.
    """
    if name not in ("cpu", "numpy"):
        from nola_codec.errors import require_torch

        require_torch(f"the device {name!r}")
        import torch

        try:
            torch.zeros(1, device=name).cpu()  # "meta" takes tensors and gives none back
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise click.BadParameter(f"{name!r} cannot be used here: {reason}", context, parameter) from error
    return name


device_option = option("--device", group="Computation", default="cpu", show_default=True, callback=usable_device,
                       help="Where to compute: cpu, cuda and so on. It changes no bit.")  # fmt: skip


def print_json(value: Any, *, err: bool = False) -> None:
    """Print one JSON document; NaN and infinities become null, and what a terminal would obey stands as an escape."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False)
    click.echo(text if text.isascii() and "\x7f" not in text else _OBEYED.sub(_escape_json, text), err=err)


class _BinaryOutput(io.RawIOBase):
    """Standard output for bytes. What is written is written out at once, and an error of the system names it."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            count = sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT_NAME) from error
        return count


def binary_stdout() -> BinaryIO:
    """Standard output for a file's bytes. Raises UsageError if it is a terminal."""
    if sys.stdout.isatty():
        raise click.UsageError("-o - writes binary data: send it to a file or a pipe")
    return cast("BinaryIO", _BinaryOutput())


def print_merge(report: MergeReport, seconds: float, *, as_json: bool, restored: bool = False) -> None:
    """Print what a merge, or undoing it, wrote; on stderr, whether it went on from a killed run."""
    total = written_bytes(report.output)
    if as_json:
        print_json({
            "output": shown_url(str(report.output)), "merged": not restored, "bytes": total, "seconds": seconds,
            "shards": report.shards, "resumed": report.resumed, "weights": report.weights,
        })  # fmt: skip
        return
    if report.resumed:
        echo(f"resumed: {report.resumed} of {report.shards} shards were finished by an earlier run", err=True)
    done = "restored" if restored else "merged"
    echo(f"wrote  {shown_url(str(report.output))} ({render_size(total)}, {done}) in {seconds:.2f} s")


def written_bytes(output: str | os.PathLike[str]) -> int:
    """Return the size of a file, or of all files in a directory; of a URL, what the store says."""
    if isinstance(output, str) and is_url(output):
        from nola_codec.remote import published_bytes

        return published_bytes(output)
    path = Path(output)
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size


def print_notes(notes: Iterable[str]) -> None:
    """Print sentences that the user should read, on stderr; on a terminal in lines of at most 80 columns."""
    for note in notes:
        text = break_lines("note:", note, sys.stderr)
        click.echo(click.style("note:", fg="yellow") + text.removeprefix("note:"), err=True)


def print_sentences(sentences: Iterable[str]) -> None:
    """Print sentences on stdout, one a line; on a terminal in lines of at most 80 columns."""
    for sentence in sentences:
        click.echo(break_lines("", sentence, sys.stdout))


def print_scale_notes(files: Iterable[str]) -> None:
    """Print a note on stderr for each `.nola` file whose scaling was assumed when it was encoded."""
    from nola_codec.api.inspecting import inspect
    from nola_codec.container.limits import resolve_limits

    for file in files:
        facts = inspect(file, limits=resolve_limits(None))
        if facts.scale_origin == "assumed":
            shown = render_scalings(facts.scalings, facts.scale_origin)
            print_notes([f"{shown_url(file)}: scaling {shown}; encode it with --scale to set another one"])


def _escape_json(found: re.Match[str]) -> str:
    """Return a character as JSON escapes it: alone, or as two halves."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
