"""`evaluate`: a base model, adapters and files, measured on the same held-out rows."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nola_codec.container.limits import Limits
from nola_codec.errors import NolaError, mismatch
from nola_codec.integrations.evaluation.live_base import LiveBase
from nola_codec.integrations.evaluation.measuring import (
    Prompt,
    ScoredRows,
    continue_prompt,
    make_prompts,
    measure_rows,
    prepare_rows,
)
from nola_codec.integrations.evaluation.report import Continuations, Evaluation, Measured
from nola_codec.integrations.evaluation.statistics import Rows, estimate_ratio
from nola_codec.integrations.evaluation.subjects import Subject, open_subjects
from nola_codec.integrations.text_rows import Row, read_rows
from nola_codec.progress import Progress
from nola_codec.references.finding import References
from nola_codec.remote import accepts_urls

ROWS, BATCH, TOKENS, NEW_TOKENS = 256, 8, 1024, 64
"""The defaults: rows at most, rows of a batch, tokens of a row, tokens of a continuation."""
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_MOST_ROWS = 1 << 20
_MOST_PROMPTS = 1000


@accepts_urls("base", "sources", "data", "prompts")
def evaluate(
    base: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    max_rows: int = ROWS,
    batch: int = BATCH,
    max_tokens: int = TOKENS,
    dtype: Literal["f32", "bf16", "f16"] = "f32",
    device: object = "cpu",
    seed: int = 0,
    scale: float | None = None,
    references: References = None,
    generate: int = 0,
    prompts: str | os.PathLike[str] | None = None,
    max_new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Evaluation:
    """Measure the loss of a task: of the base model alone, and with each source in it, on the same rows.

    One model is in memory at a time. PEFT puts each adapter into it, and each `.nola` file as `decode` writes it. All
    paths may be URLs.

    Args:
        base: A Transformers directory of a causal language model, with its tokenizer.
        sources: Adapters of any dialect that PEFT's can express, `.nola` files, and whole models. The first one that is
            no `.nola` file is the reference, or the first of all; the others are held against it.
        data: A file of rows that no training used; see `read_rows`. Of a row with a prompt, the prompt is not scored.
        max_rows: The most rows that are used. If the file has more, they are drawn at random.
        batch: The most rows of a batch.
        max_tokens: The most tokens of a row. The end of a longer row is left out, and a note says how many were cut.
        dtype: The dtype that the model computes in.
        device: The device that it computes on: anything that `torch.device` takes.
        seed: The seed that rows are drawn with.
        scale: The scaling of each adapter that does not say it.
        references: Where the earlier versions are that files need which were encoded against one; as in `decode`.
        generate: The number of prompts that every subject continues: those of `prompts`, else those of the rows.
        prompts: A file of prompts, as `data` with or without answers. All are continued unless `generate` says less.
        max_new_tokens: The most tokens of a continuation. It takes the likeliest token each time.
        progress: Called as (stage, done, total).
        limits: What a `.nola` file may declare; as in `load`.

    Raises:
        MissingPackage: ``needs-torch``, ``needs-peft``.
        NolaError: ``option``: a number is not positive, or no source is given.
        EncodeError: ``base-model``: the base is no causal language model that Transformers can load;
            ``rows``, ``not-found``: `data` or `prompts` is no such file.
        AdapterError: ``base-mismatch``: an adapter does not fit the base model; or a source cannot be read or
            brought into PEFT's dialect.
        FormatError, ChecksumMismatch: A `.nola` file is damaged.

    Example:
        >>> found = evaluate("model", ["my_lora", "task.nola"], "held_out.jsonl")  # doctest: +SKIP
        >>> found.measured[-1].kept  # doctest: +SKIP
        0.988
    """
    _check(sources, dtype, {
        "max_rows": max_rows, "batch": batch, "max_tokens": max_tokens, "max_new_tokens": max_new_tokens,
    }, generate)  # fmt: skip
    drawn = _read(data, max_rows, seed)
    asked = [] if prompts is None else read_rows(prompts, generate or _MOST_PROMPTS, are_prompts=True)
    if prompts is None:
        asked = drawn.rows[:generate]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opened = open_subjects(sources, Path(base), folder, scale, references, limits)
        subjects = [Subject("", "base", Path(base)), *opened]
        if progress is not None:
            progress("loading the base model", 0, 0)
        live = LiveBase(Path(base), DTYPES[dtype], device)
        limit, notes = _limit(live.model, max_tokens)
        vocabulary = live.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        scored = prepare_rows(drawn.rows, live.tokenizer, vocabulary, batch, limit)
        made = make_prompts(asked, live.tokenizer, max(1, limit - max_new_tokens))
        _require_fit(subjects, live, folder, progress)
        counter = _Counter(progress, len(subjects) * (len(scored.batches) + len(made)))
        runs = [_run(subject, live, folder, scored, made, max_new_tokens, counter) for subject in subjects]
    reference = _reference(subjects)
    continuations = tuple(
        Continuations(prompt.text, prompt.expected, tuple(run.texts[index] for run in runs))
        for index, prompt in enumerate(made)
    )
    measured = tuple(_hold_against(run, runs, reference, scored.tokens) for run in runs)
    notes = [note for subject in subjects for note in subject.notes] + notes + _row_notes(scored, limit)
    notes += _gain_notes(runs, reference, scored.tokens)
    return Evaluation(
        measured, subjects[reference].name, str(base), str(data), len(scored.tokens),
        drawn.in_file, int(scored.tokens.sum()), DTYPES[dtype], str(device), continuations, tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Drawn:
    """The rows that are used, and the number of rows in their file."""

    rows: list[Row]
    in_file: int


@dataclass(frozen=True)
class _Run:
    """What was measured of one subject: the loss of each row, and the continuation of each prompt."""

    subject: Subject
    losses: Rows
    texts: list[str]


def _check(sources: Sequence[object], dtype: str, numbers: dict[str, int], generate: int) -> None:
    """Refuse what would fail after minutes. Raises NolaError ``option``."""
    if isinstance(sources, str | bytes | os.PathLike) or not sources:
        raise NolaError(mismatch("sources", "a list of paths", repr(sources)), code="option")
    if dtype not in DTYPES:
        raise NolaError(mismatch("dtype", "one of " + ", ".join(DTYPES), repr(dtype)), code="option")
    for name, value in numbers.items():
        if value < 1:
            raise NolaError(mismatch(name, "a positive number", value), code="option")
    if not 0 <= generate <= _MOST_PROMPTS:
        raise NolaError(mismatch("generate", f"a number from 0 to {_MOST_PROMPTS}", generate), code="option")


def _read(data: str | os.PathLike[str], count: int, seed: int) -> _Drawn:
    rows = read_rows(data, _MOST_ROWS)
    # Files are often sorted, so their first rows would not represent the others.
    return _Drawn(random.Random(seed).sample(rows, count) if count < len(rows) else rows, len(rows))


def _limit(model: object, max_tokens: int) -> tuple[int, list[str]]:
    """Return the most tokens of a row, which the positions of the model may bound, and a note if they do."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < max_tokens:
        return positions, []
    return max_tokens, []


def _require_fit(subjects: Sequence[Subject], live: LiveBase, folder: Path, progress: Progress | None) -> None:
    """Put each adapter into the model once, so that one that does not fit is refused before minutes of measuring."""
    adapters = [subject for subject in subjects if subject.kind in ("adapter", "file")]
    if progress is not None:  # without a count, whose time left would look like that of the whole work
        progress("loading the adapters", 0, 0)
    for subject in adapters:
        with subject.put_into(live, folder):
            pass


class _Counter:
    """The count of the batches and prompts of all subjects, so that progress tells of the whole evaluation."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def stage(self, name: str, steps: int) -> Callable[[int, int], None]:
        """Begin a stage of some steps; the function that is returned is called as (done, steps)."""
        before = self._before
        self._before += steps

        def tell(done: int, steps: int) -> None:
            if self._progress is not None:
                self._progress(name, before + done, self._total)

        return tell


def _run(
    subject: Subject, live: LiveBase, folder: Path, scored: ScoredRows, prompts: Sequence[Prompt], new_tokens: int,
    counter: _Counter,
) -> _Run:  # fmt: skip
    """Measure one subject."""
    shown = subject.name or "the base model"
    with subject.put_into(live, folder) as model:
        losses = measure_rows(model, scored, counter.stage(f"measuring {shown}", len(scored.batches)))
        texts = []
        show = counter.stage(f"generating with {shown}", len(prompts))
        for done, prompt in enumerate(prompts, 1):
            texts.append(continue_prompt(model, live.tokenizer, prompt, new_tokens))
            show(done, len(prompts))
    return _Run(subject, losses, texts)


def _reference(subjects: Sequence[Subject]) -> int:
    """Return the index of the subject that the others are held against; the base model, which comes first, is none."""
    return next((index for index, subject in enumerate(subjects) if index and not subject.is_nola), 1)


def _hold_against(run: _Run, runs: Sequence[_Run], reference: int, tokens: Rows) -> Measured:
    loss = estimate_ratio(run.losses, tokens)
    subject = run.subject
    measured = Measured(
        subject.name, subject.kind, subject.bytes, loss.value, loss.margin, content_sha256=subject.content_sha256
    )
    if run is runs[reference]:
        return measured
    base, best = runs[0].losses, runs[reference].losses
    gap = estimate_ratio(run.losses - best, tokens)
    measured = replace(measured, gap=gap.value, gap_margin=gap.margin)
    if run is not runs[0] and estimate_ratio(base - best, tokens).is_positive:
        kept = estimate_ratio(base - run.losses, base - best)
        measured = replace(measured, kept=kept.value, kept_margin=kept.margin)
    return measured


def _row_notes(rows: ScoredRows, limit: int) -> list[str]:
    notes = []
    if rows.cut:
        notes.append(f"{rows.cut} rows are longer than {limit} tokens, and their ends are not scored")
    if rows.unscored:
        notes.append(f"{rows.unscored} rows have nothing to score within their first {limit} tokens, and are left out")
    return notes


def _gain_notes(runs: Sequence[_Run], reference: int, tokens: Rows) -> list[str]:
    """Warn if the reference does not lower the loss: the scaling, the base model or the rows may be the wrong ones."""
    if estimate_ratio(runs[0].losses - runs[reference].losses, tokens).is_positive:
        return []
    return [
        f"{runs[reference].subject.name} does not surely lower the loss on these rows, so there is no gain to keep. "
        "Are these rows of its task? Is this its base model, and is its scaling right?"
    ]
