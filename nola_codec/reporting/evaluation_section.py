"""The section of a page that shows the losses of a task, and what the models write, side by side."""

from __future__ import annotations

from nola_codec.rendering import render_size
from nola_codec.reporting.evaluation import Answers, MeasuredLoss, TaskResults
from nola_codec.reporting.markup import make_figure, make_section, make_table, put_beside
from nola_codec.reporting.svg import draw_bars, safe

_MOST_SHOWN = 12
"""The greatest number of prompts on a page."""
_LONGEST = 1200
"""The greatest number of characters of a prompt or an answer on a page."""


def state_result(results: TaskResults) -> str:
    """Return the sentence that says what the file keeps of the task."""
    own = results.own
    if own.kept is not None:
        kept = _share(own.kept, own.kept_margin)
        return f"Measured on {results.data}: it keeps {kept} of what {results.reference} gains."
    if own.gap is not None:
        return f"Measured on {results.data}: its loss is {own.gap:+.4f} from that of {results.reference}."
    return f"Measured on {results.data}: it is the reference there, so nothing says what it lost."


def render_evaluation(results: TaskResults) -> str:
    """Return the section."""
    measured, own = results.measured, results.own
    bars = [(_label(each), each.loss, f"{each.loss:.4f}") for each in measured if each.loss is not None]
    drawing = draw_bars("losses", "Loss on the task, in nats a token", bars)
    rows = [_cells(each) for each in measured]
    heads = ["model", "size", "loss", "perplexity", "above the reference", "gain kept"]
    share = f"all {results.rows:,}"
    if results.rows < results.rows_in_file:
        share = f"{results.rows:,} of {results.rows_in_file:,}"
    prompts = [_render_answers(number, each, results) for number, each in enumerate(results.answers[:_MOST_SHOWN], 1)]
    more = len(results.answers) - len(prompts)
    return make_section(
        "Losses on the task",
        f"<p>Measured on {share} rows of {safe(results.data)} with {results.tokens:,} scored tokens, with the base "
        f"model {safe(results.base)} in {safe(results.dtype)} on {safe(results.device)}. The loss is in nats a token; "
        "\u00b1 is half of the 95% interval over rows.</p>",
        put_beside(
            make_figure(drawing, "Shorter is better.") if bars else "",
            make_table("Losses on the same rows", heads, rows, range(1, len(heads)), measured.index(own)),
        ),
        *(f'<p class="soft">{safe(note, 400)}</p>' for note in results.notes),
        "<h3>What they write</h3>" if prompts else "",
        *prompts,
        f"<p>{more} more prompts are left out; <code>--json</code> has them.</p>" if more else "",
    )


def _label(each: MeasuredLoss) -> str:
    name = each.name or "base model"
    return f"{name} (this file)" if each.is_own else name


def _cells(each: MeasuredLoss) -> list[str]:
    gap = "reference" if each.gap is None else _nats(f"{each.gap:+.4f}", each.gap_margin)
    kept = "" if each.kept is None else _share(each.kept, each.kept_margin)
    return [
        _label(each),
        render_size(each.bytes) if each.bytes else "",
        "not a number" if each.loss is None else _nats(f"{each.loss:.4f}", each.loss_margin),
        "" if each.perplexity is None else f"{each.perplexity:.2f}" if each.perplexity < 1e4 else "over 10,000",
        gap,
        kept,
    ]


def _nats(text: str, margin: float | None) -> str:
    return text if margin is None else f"{text} \u00b1 {margin:.4f}"


def _share(kept: float, margin: float | None) -> str:
    return f"{kept:.1%}" if margin is None else f"{kept:.1%} \u00b1 {100 * margin:.1f} points"


def _render_answers(number: int, answers: Answers, results: TaskResults) -> str:
    """Return a prompt and all continuations of it, each as text as it was written."""
    entries = [("expected", answers.expected, False)] if answers.expected else []
    entries += [(_label(each), text, each.is_own) for each, text in zip(results.measured, answers.texts, strict=True)]
    body = "".join(
        f"<div{' class=own' if is_own else ''}><dt>{safe(label)}</dt><dd>{_text(text)}</dd></div>"
        for label, text, is_own in entries
    )
    return (
        f'<article><h4>Prompt {number}</h4><p class="text">{_text(answers.prompt)}</p><dl class="many">{body}</dl>'
        "</article>"
    )


def _text(text: str) -> str:
    return safe(text.strip(), _LONGEST, keep="\n") or "(nothing)"
