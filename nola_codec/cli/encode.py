"""`nola-codec encode`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.encode_options import (
    BASIS_OPTIONS,
    BLOCK_OPTION,
    CARRIED_OPTION,
    CARRY_UNKNOWN_OPTION,
    FACTOR_OPTIONS,
    FIT_OPTIONS,
    OUTPUT_OPTIONS,
    RANK_OPTION,
    RATE_OPTIONS,
    RATES,
    REFERENCE_OPTION,
    SCALE_OPTION,
    THOROUGH_OPTION,
    OutputRequest,
    read_coding_values,
)
from nola_codec.cli.help import PATH, options, take
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.output import limits_option, print_notes
from nola_codec.cli.peft_source import encodable_source
from nola_codec.cli.progress import show_progress
from nola_codec.errors import require_torch
from nola_codec.remote import local_copies, shown_url

if TYPE_CHECKING:
    from nola_codec.encoder.report import EncodeReport
    from nola_codec.progress import Progress

_TASK = ("data", "prompts", "held_out", "against", "steps", "batch", "learning_rate")
_SELF = "self"
"""The value of --data for which the adapter draws its own data; a file of this name is ./self."""
_OFFER = (
    "the base model is at hand, so a dozen --prompts, or --data self without any, would train the file on what the "
    "adapter writes. It takes minutes. Where it was measured, files kept "
)


@dataclass(frozen=True)
class FitRequest:
    """The goal of the coefficients; the values of `FIT_OPTIONS`."""

    fit: str | None
    base: str | None
    data: str | None
    prompts: str | None
    held_out: str | None
    against: str | None
    steps: int | None
    batch: int | None
    learning_rate: float | None

    def complete(self) -> FitRequest:
        """Fill in what was left out, and refuse what does not go together. Raises UsageError."""
        fit = self.fit or ("task" if self.data is not None or self.prompts is not None else "weights")
        data = _SELF if fit == "task" and self.data is None else self.data
        found = replace(self, fit=fit, data=data)
        found._check_partners("task", ("base",), _TASK)
        if data != _SELF and self.prompts is not None:
            raise click.UsageError("--prompts serves --data self: give prompts, or the data of the task")
        if data == _SELF and (self.held_out is not None or self.against not in (None, "adapter")):
            wrong = "--held-out" if self.held_out is not None else f"--against {self.against}"
            raise click.UsageError(f"{wrong} needs the data of the task (--data FILE): --data self has no labels")
        return found

    @contextmanager
    def with_copies(self, source: str, show: Progress | None) -> Iterator[tuple[str, FitRequest]]:
        """Yield the adapter and this request with local copies in place of URLs. Raises UsageError for a model."""
        if self.base is None:  # `encode` itself takes URLs
            yield source, self
            return
        own_data = self.data == _SELF
        files = (source, self.base, None if own_data else self.data, self.held_out, self.prompts)
        with local_copies(*files, progress=show) as (copy, base, data, held_out, prompts):
            assert copy is not None
            data = _SELF if own_data else data
            if looks_like_model(copy):
                raise click.UsageError(
                    "encode is for adapters. To encode what a training changed in a whole model: "
                    f"nola-codec encode-delta {shown_url(source)} --base {shown_url(self.base)}"
                )
            found = replace(self, base=base, data=data, held_out=held_out, prompts=prompts)
            yield copy, found

    def offer_training(self, report: EncodeReport) -> str | None:
        """Return a note that the file could be trained, if its loss can be seen and the base model is at hand."""
        expected = report.expectation
        if self.fit != "weights" or self.base is None or expected is None or expected.words == "no visible loss":
            return None
        from nola_codec.encoder.expectation import render_taught_gains
        from nola_codec.integrations.causal import holds_causal

        return _OFFER + render_taught_gains() if holds_causal(Path(self.base)) else None

    def _check_partners(self, name: str, needed: tuple[str, ...], own: tuple[str, ...]) -> None:
        if self.fit == name:
            if missing := [_flag(option) for option in needed if getattr(self, option) is None]:
                raise click.UsageError(f"--fit {name} needs {' and '.join(missing)}")
        elif given := [_flag(option) for option in own if getattr(self, option) is not None]:
            raise click.UsageError(f"{' and '.join(given)} {'serves' if len(given) == 1 else 'serve'} --fit {name}")

    def refuse_pipeline(self) -> None:
        """Raise UsageError for a pipeline of Diffusers, which has no weights of its own, unless it is trained with."""
        if self.fit != "task" and self.base is not None and (Path(self.base) / "model_index.json").is_file():
            raise click.UsageError(
                f"{shown_url(self.base)} is a pipeline of Diffusers: give --base its unet or transformer folder. "
                "Only --fit task takes a whole pipeline"
            )

    def is_for_pipeline(self) -> bool:
        """Return True if the base model is a component of a pipeline of Diffusers, whose folder was given."""
        return self.fit == "task" and self.base is not None and (Path(self.base) / "model_index.json").is_file()

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
        if self.fit == "task" and self.base is not None and self.data is not None:
            from nola_codec.training import TaskSettings

            chosen: dict[str, Any] = {
                "against": self.against, "steps": self.steps, "learning_rate": self.learning_rate,
            }  # fmt: skip
            settings = TaskSettings(checkpoint=checkpoint, **{k: v for k, v in chosen.items() if v is not None})
            shared: dict[str, Any] = {"settings": settings, "scale": more.get("scale"), "progress": show}
            if self.batch is not None:
                shared["batch"] = self.batch
            if self.data == _SELF:
                from nola_codec.integrations.self_teaching import self_tuner

                return {"tuner": self_tuner(self.base, source, prompts=self.prompts, **shared)}
            from nola_codec.integrations.self_teaching import require_language_model
            from nola_codec.integrations.task_text import text_tuner

            require_language_model(Path(self.base))
            return {"tuner": text_tuner(self.base, source, self.data, held_out=self.held_out, **shared)}
        return {}


def looks_like_model(source: str) -> bool:
    """Return True for a directory with the configuration of a model and none of an adapter."""
    return (Path(source) / "config.json").exists() and not (Path(source) / "adapter_config.json").exists()


def _describe_saved(checkpoint: Path | None) -> str:
    """Return the sentence that says what an interrupted training has saved."""
    if checkpoint is not None and checkpoint.is_file():
        return f"{checkpoint} has what was trained: the same command goes on from there"
    samples = None if checkpoint is None else Path(f"{checkpoint}-samples")
    if samples is not None and samples.is_file():
        return f"{samples} has what the adapter wrote; nothing was trained yet, so the same command begins the training"
    return "nothing was saved yet: the same command begins anew"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@helpful_command(
    examples=[
        ("A file of at most 50 KB", "nola-codec encode my_lora -o my.nola --size 50KB"),
        ("A file that loses at most 5% of the delta's energy", "nola-codec encode my_lora -o my.nola --nmse 0.05"),
        ("How large would it be?", "nola-codec encode my_lora -n"),
        (
            "The next version, as the difference to the last one",
            "nola-codec encode my_lora_2 -o my2.nola --reference my.nola",
        ),
        (
            "10 KB, trained on the task's own text",
            "nola-codec encode my_lora -o my.nola --size 10KB --fit task --base MODEL_DIR --data rows.jsonl",
        ),
        (
            "10 KB, without data: the adapter answers your prompts, and teaches the file",
            "nola-codec encode my_lora -o my.nola --size 10KB --base MODEL_DIR --prompts prompts.txt",
        ),
        (
            "The form of the NOLA paper: 500 coefficients of 4 bits for each factor",
            "nola-codec encode my_lora -o my.nola --num-basis 500 --bits 4",
        ),
    ],
    alternatives=(*RATES, "num_basis/bits"),
)
@click.argument("source", type=PATH)
@options(*RATE_OPTIONS, *FACTOR_OPTIONS, RANK_OPTION, THOROUGH_OPTION)
@options(BLOCK_OPTION)
@options(
    *FIT_OPTIONS,
    *BASIS_OPTIONS,
    REFERENCE_OPTION,
    limits_option,
    SCALE_OPTION,
    CARRIED_OPTION,
    CARRY_UNKNOWN_OPTION,
    *OUTPUT_OPTIONS,
)
def command(source: str, **values: Any) -> None:
    """Encode the adapter SOURCE, a directory or a file, as a .nola file.

    Its dialect (PEFT, kohya, LyCORIS, diffusers, MLX, GGUF and others) is detected from its keys.

    Give at most one of --size, --ratio, --nmse, --error and --num-basis/--bits. With none of them, the file keeps 98%
    of the signal (--error 0.02). The verdict says what to expect of the task, by tasks that were measured. Sizes
    take B, KB (1000 bytes), KiB (1024), MB and MiB.

    With --base, PEFT turns adapters of its other methods (MiSS, DeLoRA, GraLoRA and more) into LoRA first.

    --fit task needs minutes, and the base model. --data self needs no data: the adapter draws inputs, or answers your
    --prompts, and the file learns what the adapter makes of them. Training that was interrupted goes on when the same
    command is run again.
    """
    from nola_codec.api.encoding import check_options, encode

    output, fit = take(OutputRequest, values), take(FitRequest, values)
    reading: dict[str, Any] = {name: values.pop(name) for name in ("carry_unknown", "scale")}
    fit = fit.complete()
    target = output.open_target()
    coding = read_coding_values(values)
    if fit.fit != "weights":
        # Minutes of work with the model come before the encoder would see these options.
        partner: dict[str, Any] = {"tuner": object()}
        check_options(target, overwrite=output.force, fit=fit.fit, **partner, **coding)
    checkpoint = None if output.file is None else Path(f"{output.file}.training")
    with (
        show_progress(output.quiet) as show,
        fit.with_copies(source, show) as (copy, fit),
        encodable_source(copy, fit.base, show) as (source, note),
    ):
        fit.refuse_pipeline()
        begin = time.perf_counter()
        # The base model has served already to make a LoRA of another method; a pipeline has no weights of its own.
        base = None if note or fit.is_for_pipeline() else fit.base
        try:
            coding |= {"fit": fit.fit, **fit.make_keywords(source, checkpoint, show, **reading)}
            report = encode(source, target, overwrite=output.force, base=base, progress=show, **reading, **coding)
        except KeyboardInterrupt:
            if fit.fit == "task":
                print_notes([_describe_saved(checkpoint)])
            raise
        offer = fit.offer_training(report)
        # Loading the model and drawing texts come before the encode, and may take the most time.
        report = replace(report, seconds=time.perf_counter() - begin)
    report = replace(report, notes=(*([note] if note else []), *report.notes, *([offer] if offer else [])))
    if fit.fit == "task" and checkpoint is not None:
        for path in (checkpoint, Path(f"{checkpoint}-samples")):
            path.unlink(missing_ok=True)
    output.print_report(report)
