"""`nola-codec eval`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from nola_codec.cli.help import PATH, option, options
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import (
    json_option,
    limits_option,
    print_json,
    print_notes,
    quiet_option,
    references_option,
    usable_device,
)
from nola_codec.cli.progress import show_progress


def _torch_device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """Try the device of a model out, which PyTorch runs; for an option's `callback`."""
    if name == "numpy":
        raise click.BadParameter(
            "a model runs in PyTorch; give cpu, cuda or another of its devices", context, parameter
        )
    return usable_device(context, parameter, name)


_DATA, _GENERATION, _COMPUTATION = "Data", "Generation", "Computation"
_DEVICE_OPTION = option(
    "--device", group=_COMPUTATION, default="cpu", show_default=True, callback=_torch_device,
    help="Where the model runs: cpu, cuda and so on. Losses differ from device to device in their last digits.",
)  # fmt: skip
_DATA_OPTIONS = (
    option("--base", group=_DATA, required=True, type=PATH, metavar="MODEL_DIR",
           help="Base model: a Transformers directory of a causal language model, with its tokenizer."),
    option("--data", group=_DATA, required=True, type=PATH, metavar="FILE",
           help="Held-out rows: plain text, one row a line; or .jsonl with text, with prompt and completion, or with "
                "messages. Prompts are not scored."),
    option("--max-rows", group=_DATA, type=click.IntRange(min=1), default=256, show_default=True,
           help="Rows used at most, drawn at random from a longer file."),
    option("--max-tokens", group=_DATA, type=click.IntRange(min=1), default=1024, show_default=True,
           help="Tokens of a row at most."),
    option("--seed", group=_DATA, type=int, default=0, show_default=True, help="Seed that rows are drawn with."),
    option("--max-loss-gap", group="Target", type=click.FloatRange(min=0),
           help="End with exit status 1 if a loss is more than this above that of the reference, in nats a token."),
    option("--scale", group="Adapter", type=float, help="Scaling of each adapter that does not say it."),
)  # fmt: skip
_GENERATION_OPTIONS = (
    option("--generate", group=_GENERATION, type=click.IntRange(min=0, max=1000), default=0, metavar="N",
           help="Have everything continue the prompts of N rows, or of --prompts, and show it side by side."),
    option("--prompts", group=_GENERATION, type=PATH, metavar="FILE",
           help="Prompts to continue: plain text, or .jsonl with prompt or messages  [default: those of --data]."),
    option("--max-new-tokens", group=_GENERATION, type=click.IntRange(min=1), default=64, show_default=True,
           help="Tokens of a continuation at most. Each is the likeliest one."),
)  # fmt: skip
_COMPUTATION_OPTIONS = (
    option("--batch", group=_COMPUTATION, type=click.IntRange(min=1), default=8, show_default=True,
           help="Rows of a batch at most."),
    option("--dtype", group=_COMPUTATION, type=click.Choice(["f32", "bf16", "f16"]), default="f32", show_default=True,
           help="What the model computes in."),
)  # fmt: skip


@helpful_command(
    examples=[
        ("What does the file keep of the task?", "nola-codec eval --base model my_lora my.nola --data held_out.jsonl"),
        (
            "Fail in a script if the loss rises by more than 0.02",
            "nola-codec eval --base model my_lora my.nola --data held_out.jsonl --max-loss-gap 0.02",
        ),
        (
            "Read what each writes after three prompts",
            "nola-codec eval --base model my_lora my.nola --data held_out.jsonl --generate 3",
        ),
    ],
    says_no="a loss is more than --max-loss-gap above that of the reference",
)
@click.argument("sources", nargs=-1, required=True, type=PATH)
@options(*_DATA_OPTIONS, *_GENERATION_OPTIONS, *_COMPUTATION_OPTIONS)
@options(references_option, limits_option, _DEVICE_OPTION, quiet_option, json_option)
def command(sources: tuple[str, ...], **values: Any) -> int:
    """Measure the loss of a task with each of SOURCES: adapters, .nola files, whole models.

    The base model alone is measured too, on the same rows. The first source that is no .nola file is the reference: of
    each other one, the report says how much higher its loss is, how much of the reference's gain over the base model
    it keeps, and how sure that is.
    """
    as_json, max_gap = values.pop("as_json"), values.pop("max_loss_gap")
    if max_gap is not None and len(sources) < 2:
        raise click.UsageError("--max-loss-gap needs a reference: name the adapter first, then the files made from it")
    with show_progress(values.pop("quiet"), "loading libraries") as show:
        from nola_codec.integrations.evaluation.evaluating import evaluate

        found = evaluate(sources=sources, progress=show, references=values.pop("references") or None, **values)
    excesses = [] if max_gap is None else found.excesses(max_gap)
    if as_json:
        measured = [{**asdict(each), "perplexity": each.perplexity} for each in found.measured]
        print_json({"ok": not excesses, **asdict(found), "measured": measured, "excesses": excesses})
    else:
        echo(str(found))
    print_notes(found.notes)
    for sentence in excesses:
        echo(f"nola-codec: {sentence}", err=True)
    return 1 if excesses else 0
