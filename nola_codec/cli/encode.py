"""`nola-codec encode`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.encode_options import (
    BASIS_OPTIONS,
    CARRIED_OPTION,
    CARRY_UNKNOWN_OPTION,
    FACTOR_OPTIONS,
    FIT_OPTIONS,
    OUTPUT_OPTIONS,
    RANK_OPTION,
    RATE_OPTIONS,
    SCALE_OPTION,
    THOROUGH_OPTION,
    OutputRequest,
    read_coding_values,
)
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.help import options, take
from nola_codec.cli.peft_source import encodable_source
from nola_codec.cli.progress import show_progress
from nola_codec.errors import require_torch
from nola_codec.remote import local_copies, shown_url

if TYPE_CHECKING:
    from nola_codec.progress import Progress

_TASK = ("data", "held_out", "against", "steps", "batch", "learning_rate")


@dataclass(frozen=True)
class FitRequest:
    """The goal of the coefficients; the values of `FIT_OPTIONS`."""

    fit: str
    base: str | None
    calibration: str | None
    calibration_rows: int | None
    data: str | None
    held_out: str | None
    against: str | None
    steps: int | None
    batch: int | None
    learning_rate: float | None

    def check(self) -> None:
        """Refuse a fit without its files, and its options with another fit. Raises UsageError."""
        self._check_partners("activations", ("base", "calibration"), ("calibration", "calibration_rows"))
        self._check_partners("task", ("base", "data"), _TASK)

    @contextmanager
    def with_copies(self, source: str, show: Progress | None) -> Iterator[tuple[str, FitRequest]]:
        """Yield the adapter and this request with local copies in place of URLs. Raises UsageError for a model."""
        if self.base is None:  # `encode` itself takes URLs
            yield source, self
            return
        files = (source, self.base, self.calibration, self.data, self.held_out)
        with local_copies(*files, progress=show) as (copy, base, calibration, data, held_out):
            assert copy is not None
            if looks_like_model(copy):
                raise click.UsageError(
                    "encode is for adapters. To encode what a training changed in a whole model: "
                    f"nola-codec encode-delta {shown_url(source)} --base {shown_url(self.base)}"
                )
            yield copy, replace(self, base=base, calibration=calibration, data=data, held_out=held_out)

    def _check_partners(self, name: str, needed: tuple[str, ...], own: tuple[str, ...]) -> None:
        if self.fit == name:
            if missing := [_flag(option) for option in needed if getattr(self, option) is None]:
                raise click.UsageError(f"--fit {name} needs {' and '.join(missing)}")
        elif given := [_flag(option) for option in own if getattr(self, option) is not None]:
            raise click.UsageError(f"{' and '.join(given)} {'serves' if len(given) == 1 else 'serve'} --fit {name}")

    def make_keywords(self, source: str, checkpoint: Path | None, show: Progress | None, **more: Any) -> dict[str, Any]:
        """The keywords of `encode` for this fit; loads the model where one is needed.

        Args:
            source: The adapter.
            checkpoint: Where training is saved, so that it can go on after it was interrupted.
            show: Shows progress.
            more: ``carry_unknown`` and ``scale``.
        """
        if self.fit != "weights":
            require_torch(f"--fit {self.fit}")
        if self.fit == "activations" and self.base is not None and self.calibration is not None:
            from nola_codec.adapters import read
            from nola_codec.integrations.calibration import ROWS, collect_moments

            modules = read(source, **more).modules
            rows = self.calibration_rows or ROWS
            return {"weighting": collect_moments(self.base, modules, self.calibration, rows=rows, progress=show)}
        if self.fit == "task" and self.base is not None and self.data is not None:
            from nola_codec.integrations.task_text import BATCH, text_tuner
            from nola_codec.training.task import TaskSettings

            chosen: dict[str, Any] = {
                "against": self.against, "steps": self.steps, "learning_rate": self.learning_rate,
            }  # fmt: skip
            settings = TaskSettings(checkpoint=checkpoint, **{k: v for k, v in chosen.items() if v is not None})
            tuner = text_tuner(self.base, source, self.data, held_out=self.held_out, settings=settings,
                               batch=self.batch or BATCH, scale=more.get("scale"), progress=show)  # fmt: skip
            return {"tuner": tuner}
        return {}


def looks_like_model(source: str) -> bool:
    """Return True for a directory with the configuration of a model and none of an adapter."""
    return (Path(source) / "config.json").exists() and not (Path(source) / "adapter_config.json").exists()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@helpful_command(
    examples=[
        ("A file of at most 50 KB", "nola-codec encode my_lora -o my.nola --size 50KB"),
        ("A file that loses at most 5% of the delta's energy", "nola-codec encode my_lora -o my.nola --nmse 0.05"),
        ("How large would it be?", "nola-codec encode my_lora -n"),
        (
            "10 KB, trained on the task's own text",
            "nola-codec encode my_lora -o my.nola --size 10KB --fit task --base MODEL_DIR --data rows.jsonl",
        ),
        (
            "The form of the NOLA paper: 500 coefficients of 4 bits for each factor",
            "nola-codec encode my_lora -o my.nola --num-basis 500 --bits 4",
        ),
    ]
)
@click.argument("source", type=click.Path())
@options(*RATE_OPTIONS, *FACTOR_OPTIONS, RANK_OPTION, THOROUGH_OPTION)
@options(*FIT_OPTIONS, *BASIS_OPTIONS, SCALE_OPTION, CARRIED_OPTION, CARRY_UNKNOWN_OPTION, *OUTPUT_OPTIONS)
def command(source: str, **values: Any) -> None:
    """Encode the adapter SOURCE, a directory or a file, as a .nola file.

    Its dialect (PEFT, kohya, LyCORIS, diffusers, MLX, GGUF and others) is detected from its keys.

    Give at most one of --size, --ratio, --nmse, --error and --num-basis/--bits. With none of them, the file keeps 98%
    of the signal (--error 0.02). The verdict says what to expect of the task, by tasks that were measured. Sizes
    take B, KB (1000 bytes), KiB (1024), MB and MiB.

    With --base, PEFT turns adapters of its other methods (MiSS, FourierFT, VB-LoRA and more) into LoRA first.

    With --fit task, training that was interrupted goes on when the same command is run again.
    """
    from nola_codec.api.encoding import check_options, encode

    output, fit = take(OutputRequest, values), take(FitRequest, values)
    reading: dict[str, Any] = {name: values.pop(name) for name in ("carry_unknown", "scale")}
    fit.check()
    target = output.open_target()
    coding = read_coding_values(values)
    if fit.fit != "weights":
        # Minutes of work with the model come before the encoder would see these options.
        partner: dict[str, Any] = {"weighting": {}} if fit.fit == "activations" else {"tuner": object()}
        check_options(target, overwrite=output.force, fit=fit.fit, **partner, **coding)
    checkpoint = None if output.file is None else Path(f"{output.file}.training")
    with (
        show_progress(output.quiet) as show,
        fit.with_copies(source, show) as (copy, fit),
        encodable_source(copy, fit.base, show) as (source, note),
    ):
        coding |= {"fit": fit.fit, **fit.make_keywords(source, checkpoint, show, **reading)}
        base = None if note else fit.base  # the base model has served already to make a LoRA of another method
        report = encode(source, target, overwrite=output.force, base=base, progress=show, **reading, **coding)
    if note:
        report = replace(report, notes=(note, *report.notes))
    if fit.fit == "task" and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    output.print_report(report)
