"""What an evaluation found, and its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten, wrap

from nola_codec.integrations.evaluation.statistics import Estimate
from nola_codec.integrations.evaluation.subjects import Kind
from nola_codec.rendering import render_size, render_table

UNIT = "nats a token"
_LONGEST_NAME = 24  # characters, so that the table stays within 80 columns
_LONGEST_PROMPT = 400
_WIDTH = 80
_BASE = "base model"


@dataclass(frozen=True)
class Measured:
    """The loss of one subject.

    Attributes:
        name: Its short name; empty for the base model.
        kind: ``base``, ``adapter``, ``file`` (a `.nola` file of an adapter), ``change`` (one of a whole model) or
            ``model``.
        bytes: The size of its weights on disk; 0 for the base model.
        loss: The mean loss of a scored token, in nats.
        loss_margin: Half the width of its 95% interval.
        gap: The loss minus that of the reference, on the same rows; None for the reference itself.
        gap_margin: Half the width of its 95% interval. It is much narrower than that of the loss, since both models are
            measured on the same rows.
        kept: The share of the reference's gain over the base model that is kept; None where the reference has no
            gain to speak of.
        kept_margin: Half the width of its 95% interval.
        content_sha256: The content SHA-256 that a `.nola` file states, in hexadecimal; empty for all others.
    """

    name: str
    kind: Kind
    bytes: int
    loss: float
    loss_margin: float
    gap: float | None = None
    gap_margin: float | None = None
    kept: float | None = None
    kept_margin: float | None = None
    content_sha256: str = ""

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf if self.loss == self.loss else math.nan

    @property
    def label(self) -> str:
        """The name as a table shows it."""
        return _short(self.name or _BASE)


@dataclass(frozen=True)
class Continuations:
    """How the subjects continue one prompt.

    Attributes:
        prompt: The prompt.
        expected: How the row goes on that the prompt comes from; empty if there is none.
        texts: The continuation by each subject, in the order of `Evaluation.measured`.
    """

    prompt: str
    expected: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The losses of a base model, adapters and files on the same rows. `print(evaluation)` shows a table.

    Attributes:
        measured: The base model first, then the sources in the order given.
        reference: The name of the source that the others are held against.
        base: The path of the base model.
        data: The path of the rows.
        rows: The number of rows that were scored.
        rows_in_file: The number of rows in the file.
        tokens: The number of scored tokens.
        dtype: The dtype that the model computed in.
        device: The device that it computed on.
        continuations: How the subjects continue prompts, if that was asked for.
        notes: Sentences that the user should read.
    """

    measured: tuple[Measured, ...]
    reference: str
    base: str
    data: str
    rows: int
    rows_in_file: int
    tokens: int
    dtype: str
    device: str
    continuations: tuple[Continuations, ...] = ()
    notes: tuple[str, ...] = ()

    def excesses(self, max_gap: float) -> list[str]:
        """Return a sentence for each subject whose loss is further above that of the reference than `max_gap`.

        The base model is not looked at. A loss that is no number is always too high.
        """
        found = []
        for each in self.measured[1:]:
            if each.gap is None or each.gap <= max_gap:
                continue
            found.append(
                f"{each.name}: its loss is {each.gap:.4f} above that of {self.reference}, "
                f"and the largest gap allowed is {max_gap:g}"
            )
        return found

    def __str__(self) -> str:
        share = f"{self.rows:,} of {self.rows_in_file:,}" if self.rows < self.rows_in_file else f"all {self.rows:,}"
        lines = [f"{share} rows, {self.tokens:,} scored tokens; {self.dtype} on {self.device}", ""]
        lines += render_table(
            [["", "size", "loss", "perplexity", "gap", "keeps"], *(self._cells(each) for each in self.measured)],
            right=range(1, 8),
        )
        lines += ["", *self._verdicts()]
        for number, each in enumerate(self.continuations, 1):
            lines += ["", *_side_by_side(number, each, self.measured)]
        return "\n".join(lines)

    def _cells(self, each: Measured) -> list[str]:
        size = render_size(each.bytes) if each.bytes else ""
        cells = [each.label, size, f"{each.loss:.4f}", _number(each.perplexity)]
        if each.gap is None or each.gap_margin is None:
            return [*cells, "reference", ""]
        kept = "" if each.kept is None else f"{each.kept:.1%}"
        return [*cells, f"{each.gap:+.4f} ± {each.gap_margin:.4f}", kept]

    def _verdicts(self) -> list[str]:
        """Say in a sentence what the numbers of each file mean, and how sure they are."""
        base = self.measured[0]
        lines = []
        if base.gap is not None and base.gap_margin is not None:
            down, by = ("lowers", base.gap) if base.gap > 0 else ("raises", -base.gap)
            lines.append(f"{_short(self.reference)} {down} the loss by {by:.4f} ± {base.gap_margin:.4f}.")
        for each in self.measured[1:]:
            if each.gap is None or each.gap_margin is None or each.kept is None or each.kept_margin is None:
                continue
            gap, kept = Estimate(each.gap, each.gap_margin), Estimate(each.kept, each.kept_margin)
            lines.append(_verdict(each.label, gap, kept))
        lines.append(f"The loss is in {UNIT}. ± is the 95% interval over rows.")
        return lines


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def _verdict(label: str, gap: Estimate, kept: Estimate) -> str:
    low, high = gap.interval
    by_chance = "; its gap may be chance" if low <= 0 <= high else ""
    return f"{label} keeps {kept.value:.1%} ± {100 * kept.margin:.1f} points of the gain{by_chance}."


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.2e}"


def _printable(text: str) -> str:
    """Return a text without what a terminal might obey: models and files may write anything."""
    return "".join(c if c.isprintable() else " " for c in text)


def _side_by_side(number: int, each: Continuations, measured: Sequence[Measured]) -> list[str]:
    rows = [(m.label, text) for m, text in zip(measured, each.texts, strict=True)]
    rows = [("expected", each.expected)] * bool(each.expected) + rows
    rows = [(label, _printable(text).strip()) for label, text in rows]
    width = max(len(label) for label, _ in rows)
    lines = wrap(f"prompt {number}: {shorten(_printable(each.prompt), _LONGEST_PROMPT)}", _WIDTH)
    for label, text in rows:
        start = f"  {label.ljust(width)}  "
        lines += wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start.rstrip()]
    return lines
