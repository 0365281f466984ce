"""`nola-codec encode`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nola_codec.cli.output import error_share, force_option, json_option, print_json, progress, quiet_option, size

if TYPE_CHECKING:
    from nola_codec.encoder.report import EncodeReport, TaskReport

_BASES = ("hadamard", "rademacher", "uniform")
_GENERATORS = ("philox4x32-10", "threefry2x32-20")


@click.command(
    epilog="""Rate: at most one of --size, --ratio, --nmse, --error, or --num-basis/--bits. With none, the file keeps
    98% of the effective signal. Sizes take B, KB (1000), KiB (1024), MB, MiB."""
)
@click.argument("source", type=click.Path())
@click.option("-o", "--output", "out", type=click.Path(), required=True, help="The .nola file to write.")
@click.option("--size", "limit", metavar="SIZE", help="Largest file, e.g. 50KB.")
@click.option("--ratio", type=float, help="Compression against the adapter in fp16, e.g. 100.")
@click.option("--nmse", type=float, help="Share of ||delta_W||^2 that may be lost; the objective is then nmse.")
@click.option("--error", type=float, help="Target in the chosen objective.")
@click.option("--objective", type=click.Choice(["effective", "nmse"]), help="What is minimised [effective].")
@click.option("--fit", type=click.Choice(["weights", "activations", "task"]), default="weights", show_default=True,
              help="What is fitted: the weights; the weights as far as they matter on --calibration; or the task of "
                   "--data, on which the coefficients are trained.")  # fmt: skip
@click.option("--base", type=click.Path(),
              help="Model that SOURCE was fine-tuned from: encode the change of its weights. With --fit activations or "
                   "task, the model directory that the adapter SOURCE belongs to.")  # fmt: skip
@click.option("--data", type=click.Path(),
              help="For --fit task: rows to train on, some set aside to stop by and to report on; files as for "
                   "--calibration.")  # fmt: skip
@click.option("--held-out", type=click.Path(), help="For --fit task: rows to report on, 96 at most [of --data].")
@click.option("--against", type=click.Choice(["labels", "adapter", "both"]),
              help="For --fit task: train on the text, on what the adapter predicts, or on both [labels].")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="For --fit task: steps of training at most [150].")
@click.option("--batch", type=click.IntRange(min=1), help="For --fit task: rows of a step [8].")
@click.option("--learning-rate", type=float, help="For --fit task: Adam's [0.03].")
@click.option("--calibration", type=click.Path(),
              help="Text of the task, a row a line; or .jsonl: text, or prompt and completion.")  # fmt: skip
@click.option("--calibration-rows", type=click.IntRange(min=1), help="Rows used at most [64].")
@click.option("--importance", type=click.Path(), help="JSON or safetensors: a number a tensor, by name or pattern.")
@click.option("--num-basis", type=int, help="The paper's form: coefficients a factor.")
@click.option("--bits", type=int, help="The paper's form: bits a coefficient, 1-8 or 16 [4].")
@click.option(
    "--rank",
    type=int,
    help="Components kept at most; in the paper's form, the rank fitted; of a change, taken at most [64].",
)
@click.option("--basis", type=click.Choice(_BASES), default="hadamard", show_default=True,
              help="Dense ones serve the paper's form only.")  # fmt: skip
@click.option("--prng", "generator", type=click.Choice(_GENERATORS), default=_GENERATORS[0], show_default=True,
              help="Generator of the basis.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="64-bit seed of the basis.")
@click.option("--shared-basis", is_flag=True, help="One basis for all weights of one shape.")
@click.option("--thorough", is_flag=True, help="For files over 1 MB: smaller by some 5%, at many times the time.")
@click.option("--progressive", is_flag=True, help="Write a ladder of rungs: `truncate` cuts it to coarser files.")
@click.option("--rungs", metavar="SIZES", help="Sizes of the ladder's coarser rungs, e.g. 10KB,30KB [quarters].")
@click.option("--energy", type=float, help="Of a change: take components up to this share of a matrix' energy.")
@click.option("--residue/--no-residue", default=None, help="Of a change: code what the components leave, too [yes].")
@click.option("--include", multiple=True, metavar="REGEX", help="Of a change: only weights whose names match.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Of a change: no weights whose names match.")
@click.option("--embeddings", is_flag=True, help="Of a change: the input embeddings too.")
@click.option("--head", is_flag=True, help="Of a change: the output layer too.")
@click.option("--passthrough", is_flag=True, help="Carry unknown tensors exactly instead of refusing them.")
@click.option("-n", "--dry-run", is_flag=True, help="Encode and report, write nothing.")
@force_option
@quiet_option
@json_option
def command(
    source: str, out: str, limit: str | None, fit: str, base: str | None, data: str | None, held_out: str | None,
    against: str | None, steps: int | None, batch: int | None, learning_rate: float | None, calibration: str | None,
    calibration_rows: int | None, importance: str | None, rungs: str | None, energy: float | None,
    residue: bool | None, include: tuple[str, ...], exclude: tuple[str, ...], embeddings: bool, head: bool,
    passthrough: bool, dry_run: bool, force: bool, quiet: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Encode the adapter SOURCE: a directory or a file.

    Its dialect (PEFT, kohya, LyCORIS, diffusers, MLX, GGUF and others) is told from its keys.

    With --fit task, training is resumed where it was interrupted: run the same command again.

    With --base, encode what a fine-tuning changed in the weights of the model SOURCE (a directory or a .safetensors
    file).
    """
    from nola_codec.api.encoding import checked, encode
    from nola_codec.encoder.sizes import parse_size

    show = progress(quiet)
    change: dict[str, Any] = {
        "energy": energy, "residue": residue, "include": include, "exclude": exclude, "embeddings": embeddings,
        "head": head,
    }  # fmt: skip
    given = [f"--{name}" for name, value in change.items() if value not in (None, (), False)]
    given += ["--no-residue"] if residue is False else []
    whole = base is not None and fit == "weights" and calibration is None
    if given and not whole:
        raise click.UsageError(f"{' and '.join(given)}: only for the change from a --base (without --fit activations)")
    if whole:
        _check_change(options, passthrough)
    if rungs is not None:
        options["rungs"] = tuple(parse_size(part) for part in rungs.split(","))
    task = {
        "--data": data, "--held-out": held_out, "--against": against, "--steps": steps, "--batch": batch,
        "--learning-rate": learning_rate,
    }  # fmt: skip
    _check_partners("activations", fit, {"--base": base, "--calibration": calibration},
                    {"--calibration": calibration, "--calibration-rows": calibration_rows})  # fmt: skip
    _check_partners("task", fit, {"--base": base, "--data": data}, task)
    if importance is not None:
        from nola_codec.encoder.importance import read_importance

        options["importance"] = read_importance(importance)
    if whole and base is not None:
        from nola_codec.api.dense import encode_delta

        del options["num_basis"], options["bits"]
        change["residue"] = residue is not False
        report = encode_delta(source, base, None if dry_run else out, size=limit, overwrite=force, progress=show,
                              **change, **options)  # fmt: skip
        _report(report, out, dry_run=dry_run, as_json=as_json)
        return
    if base is not None and calibration is not None:
        from nola_codec.adapters import read
        from nola_codec.integrations.calibration import ROWS, collect_moments

        # Minutes may pass before the encoder would say so.
        checked(None if dry_run else out, size=limit, overwrite=force, fit=fit, weighting={}, **options)
        modules = read(source, carry_unknown=passthrough).modules
        options["weighting"] = collect_moments(base, modules, calibration, rows=calibration_rows or ROWS, progress=show)
    checkpoint = Path(f"{out}.training")
    if base is not None and data is not None:
        from nola_codec.integrations.task_text import BATCH, text_tuner
        from nola_codec.training.task import TaskSettings

        checked(None if dry_run else out, size=limit, overwrite=force, fit=fit, tuner=object(), **options)
        chosen = {"against": against, "steps": steps, "learning_rate": learning_rate}
        settings = TaskSettings(
            checkpoint=None if dry_run else checkpoint,
            **{k: v for k, v in chosen.items() if v is not None},  # type: ignore[arg-type]
        )
        options["tuner"] = text_tuner(base, source, data, held_out=held_out, settings=settings, batch=batch or BATCH,
                                      progress=show)  # fmt: skip
    report = encode(
        source,
        None if dry_run else out,
        size=limit,
        fit=fit,
        overwrite=force,
        carry_unknown=passthrough,
        progress=show,
        **options,
    )
    if fit == "task" and not dry_run:
        checkpoint.unlink(missing_ok=True)
    _report(report, out, dry_run=dry_run, as_json=as_json)


def _check_partners(name: str, fit: str, needed: dict[str, Any], all_of_them: dict[str, Any]) -> None:
    """Refuse a fit without its files, and its options with another fit."""
    if fit == name:
        if missing := [option for option, value in needed.items() if value is None]:
            raise click.UsageError(f"--fit {name} needs {' and '.join(missing)}")
    elif given := [option for option, value in all_of_them.items() if value is not None]:
        raise click.UsageError(f"{' and '.join(given)} {'serves' if len(given) == 1 else 'serve'} --fit {name}")


def _check_change(options: dict[str, Any], passthrough: bool) -> None:
    """Refuse options of adapters for a change."""
    wrong = [f"--{name.replace('_', '-')}" for name in ("num_basis", "bits") if options[name] is not None]
    wrong += ["--basis"] if options["basis"] != "hadamard" else []
    wrong += ["--passthrough"] if passthrough else []
    if wrong:
        raise click.UsageError(f"{' and '.join(wrong)}: for adapters, not for the change from a --base")


def _report(report: EncodeReport, out: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        task = report.task and {**asdict(report.task), "kept": report.task.kept}
        print_json({**asdict(report), "task": task, "output": None if dry_run else out})
        return
    click.echo(f"{'would write' if dry_run else 'wrote'}  {out}")
    click.echo(f"size         {size(report.bytes)} ({report.bytes:,} bytes), {report.ratio:.1f}x smaller than fp16")
    click.echo(
        f"source       {report.dialect}, {size(report.source_bytes)}, {report.parameters:,} parameters, "
        f"{len(report.tensors)} records"
    )
    click.echo(f"objective    {report.objective}")
    if report.effective_error is not None:
        click.echo(f"eff. error   {error_share(report.effective_error)}  (signal lost and visible noise, estimated)")
    if report.task is not None:
        _report_task(report.task)
    click.echo(f"NMSE         {error_share(report.nmse)}  (||delta_W - decoded||^2 / ||delta_W||^2, measured)")
    if report.activation_error is not None:
        click.echo(
            f"activations  {error_share(report.activation_error)}  (the same of delta_W x, on the calibration set)"
        )
    for number, rung in enumerate(report.rungs[:-1]):
        errors = ", ".join(f"{name} {error_share(value)}" for name, value in rung.items() if name != "bytes")
        click.echo(f"rung {number}       {size(rung['bytes'])}, {errors}")
    click.echo(f"time         {report.seconds:.2f} s")
    for note in report.notes:
        click.echo(f"note: {note}", err=True)


def _report_task(task: TaskReport) -> None:
    kept = "the adapter gains nothing on them" if task.kept is None else f"{task.kept:.1%} of the adapter's gain"
    click.echo(f"task         {task.file:.4f} {task.unit}, {kept}  ({task.rows} held-out rows, measured)")
    click.echo(f"  of them    base {task.base:.4f}, adapter {task.adapter:.4f}, before training {task.start:.4f}")
    click.echo(f"  trained    {task.steps} steps")
