"""Options of `encode` and `encode-delta`, in tables, and what both do with a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from nola_codec.cli.help import PATH, STREAM_OR_PATH, option
from nola_codec.cli.messages import STDOUT_NAME, echo
from nola_codec.cli.output import (
    OUTPUT,
    STDOUT,
    binary_stdout,
    force_option,
    json_option,
    print_json,
    print_notes,
    quiet_option,
)
from nola_codec.remote import is_url, shown_url

if TYPE_CHECKING:
    from nola_codec.encoder.report import EncodeReport

TARGET, FIT, BASIS = "Target", "Fit", "Basis"

RATE_OPTIONS = (
    option("--size", group=TARGET, metavar="SIZE", help="Most bytes that the file may take, e.g. 50KB."),
    option("--ratio", group=TARGET, type=float, help="How many times smaller than fp16 the file is, e.g. 100."),
    option("--nmse", group=TARGET, type=float,
           help="Share of ||delta_W||^2 that may be lost, e.g. 0.05; the objective is then nmse."),
    option("--error", group=TARGET, type=float, help="Error in the chosen objective that the file stays under."),
    option("--objective", group=TARGET, type=click.Choice(["effective", "nmse"]),
           help="The error that is kept small  [default: effective]."),
    option("--progressive", group=TARGET, is_flag=True,
           help="Write a file whose beginnings are coarser files (rungs); `truncate` cuts it."),
    option("--rungs", group=TARGET, metavar="SIZES",
           help="Sizes of the coarser rungs, e.g. 10KB,30KB  [default: each a quarter of the next]."),
)  # fmt: skip
RATES = ("size", "ratio", "nmse", "error")
"""The options of RATE_OPTIONS of which at most one may be given."""
FACTOR_OPTIONS = (
    option("--num-basis", group=TARGET, type=int, help="Coefficients of a factor: asks for the factor form."),
    option("--bits", group=TARGET, type=int, help="Factor form: bits of a coefficient, 1-8 or 16  [default: 4]."),
)
RANK_OPTION = option("--rank", group=TARGET, type=int,
                     help="Components kept at most; in the factor form, the rank that is fitted.")  # fmt: skip
THOROUGH_OPTION = option("--thorough", group=TARGET, is_flag=True,
                         help="For files over 1 MB: smaller by some 5%, and many times slower.")  # fmt: skip
BLOCK_OPTION = option("--block-size", group=OUTPUT, metavar="SIZE",
                      help="Size of a block: a reader of one tensor reads little more than one.  "
                      "[default: 24KiB, or 1/32 of a large file]")  # fmt: skip
IMPORTANCE_OPTION = option("--importance", group=FIT, type=PATH, metavar="FILE",
                           help="JSON or safetensors: a number for each weight, by name or pattern.")  # fmt: skip
FITS = ("weights", "task")
_GONE = (
    "--fit activations and its --calibration are gone, since they made most files worse. "
    "Give --fit task --data self, which needs no more than --base"
)


def _check_fit(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an unknown fit, and say what replaces the one that earlier versions had."""
    if value == "activations":
        raise click.UsageError(_GONE, ctx)
    if value is not None and value not in FITS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, FITS))}.", ctx, param)
    return value


def _refuse_calibration(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Refuse an option of the fit that is gone."""
    if value is not None:
        raise click.UsageError(_GONE, ctx)


FIT_OPTIONS = (
    option("--fit", group=FIT, metavar="[weights|task]", callback=_check_fit,
           help="What is fitted: the weights, or the task of --data, on which the coefficients are trained  [default: "
                "task with --data or --prompts, else weights]."),
    option("--base", group=FIT, type=PATH, metavar="MODEL_DIR",
           help="Base model of the adapter, for --fit task, and for PEFT methods that PEFT turns into "
                "LoRA first. Carried tensors that equal its own are left out; with --carried coded, those near its own "
                "become changes of them."),
    option("--calibration", "--calibration-rows", group=FIT, hidden=True, expose_value=False,
           callback=_refuse_calibration),
    option("--data", group=FIT, metavar="FILE|self",
           help="For --fit task: text of the task, one row a line, or .jsonl with text, with prompt and completion, or "
                "with messages, of which some rows are held out; or self, by default: the adapter draws its own data, "
                "and the file learns its outputs."),
    option("--prompts", group=FIT, type=PATH, metavar="FILE",
           help="For --data self: prompts that the adapter answers, a dozen or more: text, or .jsonl with prompt or "
                "messages. Without them it writes text from nothing. An encoder model takes them as its texts."),
    option("--held-out", group=FIT, type=PATH, metavar="FILE",
           help="For --fit task: rows to report the loss on, 96 at most  [default: some of --data]."),
    option("--against", group=FIT, type=click.Choice(["labels", "adapter", "both"]),
           help="For --fit task: train on the text, on what the adapter predicts, or on both  [default: both; for "
                "--data self, adapter]."),
    option("--steps", group=FIT, type=click.IntRange(min=1), help="For --fit task: steps at most  [default: 150]."),
    option("--batch", group=FIT, type=click.IntRange(min=1),
           help="For --fit task: rows of a step  [default: 8; 32 for an encoder, 2 for a denoiser]."),
    option("--learning-rate", group=FIT, type=float,
           help="For --fit task: Adam's learning rate  [default: 0.03, and less for files over some 10 KB]."),
    IMPORTANCE_OPTION,
)  # fmt: skip
SEED_OPTION = option("--seed", group=BASIS, type=int, default=0, show_default=True, help="64-bit seed of the basis.")
BASIS_OPTIONS = (
    option("--basis", group=BASIS, type=click.Choice(["hadamard", "rademacher", "uniform"]), default="hadamard",
           show_default=True, help="rademacher and uniform serve the factor form only."),
    SEED_OPTION,
    option("--shared-basis", group=BASIS, is_flag=True, help="Use one basis for all weights of one shape."),
)  # fmt: skip
CARRY_UNKNOWN_OPTION = option("--carry-unknown", group=OUTPUT, is_flag=True,
                              help="Carry unknown tensors exactly instead of refusing them.")  # fmt: skip
CARRIED_OPTION = option("--carried", group=OUTPUT, type=click.Choice(["exact", "bf16", "int8", "coded"]),
                        default="exact", show_default=True,
                        help="Form of heads, embeddings and other carried tensors of floats; the report says what they "
                             "lose.")  # fmt: skip
REFERENCE_OPTION = option("--reference", group="Reference", type=PATH, metavar="OLD",
                          help="An earlier version, a .nola file or an adapter: the file holds the difference to it, "
                               "and needs it to be decoded.")  # fmt: skip
SCALE_OPTION = option("--scale", group="Adapter", type=float,
                      help="Scaling (alpha / r) of an adapter that does not say it.")  # fmt: skip
OUTPUT_OPTIONS = (
    option("-o", "--output", "out", group=OUTPUT, type=STREAM_OR_PATH, metavar="FILE",
           help="The .nola file to write; - is standard output, and the report then goes to stderr."),
    option("-n", "--dry-run", group=OUTPUT, is_flag=True, help="Encode and report, write nothing; needs no -o."),
    force_option,
    quiet_option,
    json_option,
)  # fmt: skip


@dataclass(frozen=True)
class OutputRequest:
    """The place that a file goes to and the way to report it; the values of `OUTPUT_OPTIONS`."""

    out: str | None
    dry_run: bool
    force: bool
    quiet: bool
    as_json: bool

    def open_target(self) -> str | BinaryIO | None:
        """A path, standard output, or None for a dry run. Raises UsageError if there is none."""
        if self.dry_run:
            return None
        if self.out is None:
            raise click.UsageError("Missing option '-o' / '--output' (or -n, which writes nothing).")
        return binary_stdout() if self.out == STDOUT else self.out

    @property
    def file(self) -> Path | None:
        """The file that is written on this machine, or None."""
        return None if self.dry_run or self.out in (None, STDOUT) or is_url(self.out) else Path(str(self.out))

    def print_report(self, report: EncodeReport) -> None:
        """Print the report on stdout, or on stderr if stdout is the file; notes go to stderr."""
        err = self.out == STDOUT and not self.dry_run
        from nola_codec.encoder.report_rendering import LABEL_WIDTH

        if self.as_json:
            task = report.task and {**asdict(report.task), "kept": report.task.kept}
            out = None if self.dry_run or self.out is None else shown_url(self.out)
            print_json({**asdict(report), "task": task, "output": out}, err=err)
            return
        verdict, _, rows = str(report).partition("\n")
        if self.out is None:
            written = ("dry run", "nothing is written")
        else:
            name = STDOUT_NAME if self.out == STDOUT else shown_url(self.out)
            there = self.dry_run and not self.force and self.out != STDOUT and Path(self.out).exists()
            needed = " (it exists already, so -f is needed)" if there else ""
            written = ("would write" if self.dry_run else "wrote", f"{name}{needed}")
        echo(f"{verdict}\n{written[0]:<{LABEL_WIDTH}}{written[1]}\n{rows}", err=err)
        print_notes(report.notes)


def read_coding_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `encode` that need more than click's types: sizes of rungs, and the file of importances."""
    found = dict(values)
    if found.get("rungs") is not None:
        found["rungs"] = tuple(part.strip() for part in found["rungs"].split(","))
    if found.get("importance") is not None:
        from nola_codec.encoder.importance import read_importance
        from nola_codec.remote import local_path

        found["importance"] = read_importance(local_path(found["importance"]))
    return found
