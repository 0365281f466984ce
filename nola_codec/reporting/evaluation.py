"""Read what `nola-codec eval --json` printed, for the report of a file that it measured."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nola_codec.api.inspecting import FileFacts
from nola_codec.errors import AdapterError, EncodeError, mismatch
from nola_codec.stores.files import read_json

MOST_MEASURED = 64
"""The greatest number of models, adapters and files in an evaluation."""
MOST_PROMPTS = 1000
"""The greatest number of prompts in an evaluation."""
_LARGEST = 700.0
"""The greatest loss that has a perplexity."""
_FOUND = {
    "html-page": "a web page", "bad-json": "text that is no JSON object", "empty-file": "an empty file",
    "nola-file": "a .nola file",
}  # fmt: skip
"""What a file is that is no JSON object, by the code of the error of `read_json`."""
_KINDS = ("base", "adapter", "file", "change", "model")


@dataclass(frozen=True)
class MeasuredLoss:
    """The loss of one model on the task: the base model alone, or with an adapter or a file in it.

    Attributes:
        name: Its short name; empty for the base model.
        kind: ``base``, ``adapter``, ``file``, ``change`` or ``model``, as `nola-codec eval` has it.
        bytes: The size of its weights on disk; 0 for the base model.
        loss, loss_margin: The mean loss of a scored token in nats, and half the width of its 95% interval.
        perplexity: The exponential of the loss; None if that is too large for a float.
        gap, gap_margin: The loss minus that of the reference; None for the reference itself.
        kept, kept_margin: The share of the reference's gain that is kept; None where there is no gain.
        is_own: True for the file of the report.
    """

    name: str
    kind: str
    bytes: int
    loss: float | None
    loss_margin: float | None
    perplexity: float | None
    gap: float | None
    gap_margin: float | None
    kept: float | None
    kept_margin: float | None
    is_own: bool


@dataclass(frozen=True)
class Answers:
    """How all of them continue one prompt.

    Attributes:
        prompt: The prompt.
        expected: How the row goes on that the prompt comes from; empty if there is none.
        texts: The continuation by each of them, in the order of `TaskResults.measured`.
    """

    prompt: str
    expected: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TaskResults:
    """What an evaluation found.

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
        answers: How all of them continue prompts.
        notes: Sentences that the user should read.
    """

    measured: tuple[MeasuredLoss, ...]
    reference: str
    base: str
    data: str
    rows: int
    rows_in_file: int
    tokens: int
    dtype: str
    device: str
    answers: tuple[Answers, ...]
    notes: tuple[str, ...]

    @property
    def own(self) -> MeasuredLoss:
        """The file of the report."""
        return next(each for each in self.measured if each.is_own)


def read_evaluation(source: str | os.PathLike[str] | Mapping[str, Any], facts: FileFacts) -> TaskResults:
    """Read an evaluation, and find the file of the report in it by the content SHA-256.

    Args:
        source: The JSON file that `nola-codec eval --json` printed, or the same as a mapping: `dataclasses.asdict` of
            what `evaluate` returned.
        facts: What `inspect` says of the file.

    Raises:
        AdapterError: ``not-found``, ``unreadable``, ``limit``.
        EncodeError: ``evaluation``: it is no JSON object, no evaluation, or none of this file.
    """
    where = "" if isinstance(source, Mapping) else str(source)
    document = source if isinstance(source, Mapping) else _read_document(Path(source))
    fields = _Fields(document, where, "the evaluation")
    entries = fields.entries("measured", MOST_MEASURED)
    measured = tuple(_measured(each, facts.content_sha256) for each in entries)
    if not any(each.is_own for each in measured):
        message = (
            f"the evaluation has no file with the content SHA-256 {facts.content_sha256}; "
            "run nola-codec eval --json with this file"
        )
        raise EncodeError(message, code="evaluation", where=where)
    answers = []
    for each in fields.entries("continuations", MOST_PROMPTS):
        texts = each.texts("texts")
        if len(texts) != len(measured):
            each.refuse("texts", f"{len(measured)} texts", len(texts))
        answers.append(Answers(each.text("prompt"), each.text("expected"), texts))
    return TaskResults(
        measured, fields.text("reference"), fields.text("base"), fields.text("data"),
        fields.count("rows"), fields.count("rows_in_file"), fields.count("tokens"), fields.text("dtype"),
        fields.text("device"), tuple(answers), fields.texts("notes"),
    )  # fmt: skip


def _read_document(path: Path) -> Mapping[str, Any]:
    """Read a JSON object. Raises EncodeError ``evaluation`` for other content, and AdapterError as `read_json` does."""
    try:
        return read_json(path)
    except AdapterError as error:
        if error.code in ("not-found", "unreadable", "limit"):
            raise
        found = _FOUND.get(error.code, "another kind of file")
        message = mismatch("evaluation", "what `nola-codec eval --json` printed", found)
        raise EncodeError(message, code="evaluation", where=str(path)) from error


def _measured(fields: _Fields, content_sha256: str) -> MeasuredLoss:
    kind = fields.text("kind")
    if kind not in _KINDS:
        fields.refuse("kind", "one of " + ", ".join(_KINDS), kind)
    loss = fields.number("loss")
    return MeasuredLoss(
        name=fields.text("name"),
        kind=kind,
        bytes=fields.count("bytes"),
        loss=loss,
        loss_margin=fields.number("loss_margin"),
        perplexity=math.exp(loss) if loss is not None and loss < _LARGEST else None,
        gap=fields.number("gap"),
        gap_margin=fields.number("gap_margin"),
        kept=fields.number("kept"),
        kept_margin=fields.number("kept_margin"),
        is_own=fields.text("content_sha256") == content_sha256,
    )


@dataclass(frozen=True)
class _Fields:
    """A JSON object whose fields are checked as they are taken."""

    document: Mapping[str, Any]
    where: str
    name: str

    def text(self, field: str) -> str:
        """Return a field that is a text."""
        value = self.document.get(field)
        if not isinstance(value, str):
            self.refuse(field, "a text", value)
        return value

    def count(self, field: str) -> int:
        """Return a field that counts something."""
        value = self.document.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            self.refuse(field, "a number from 0 to 2^63 - 1", value)
        return value

    def number(self, field: str) -> float | None:
        """Return a number, or None for null, which stands for what is not defined or not finite."""
        value = self.document.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            self.refuse(field, "a finite number or null", value)
        return float(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of texts."""
        values = self.document.get(field)
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            self.refuse(field, "a list of texts", values)
        return tuple(values)

    def entries(self, field: str, most: int) -> Sequence[_Fields]:
        """Return a list of JSON objects."""
        values = self.document.get(field)
        if not isinstance(values, list | tuple) or not all(isinstance(value, dict) for value in values):
            self.refuse(field, "a list of objects", values)
        if len(values) > most:
            self.refuse(field, f"at most {most} entries", len(values))
        return [_Fields(value, self.where, f"{field}[{number}]") for number, value in enumerate(values)]

    def refuse(self, field: str, expected: object, found: object) -> NoReturn:
        """Raise EncodeError ``evaluation``."""
        message = mismatch(f"{self.name}, field {field!r}", str(expected), f"{found!r:.60}")
        raise EncodeError(f"{message}; is it what nola-codec eval --json printed?", code="evaluation", where=self.where)
