"""Tune on a task of text: a causal language model of Transformers, and the rows of a file."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nola_codec.adapters import AnySource, dialect_of, read
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import EncodeError, require_torch
from nola_codec.integrations.causal import load_causal, use_plain_attention
from nola_codec.integrations.text_batches import (
    ScoredLogits,
    TokenizedRow,
    make_batch,
    measured_batches,
    padding_token,
    similar_lengths,
)
from nola_codec.integrations.text_rows import Row, read_rows, tokenize
from nola_codec.progress import Progress
from nola_codec.remote import accepts_urls

if TYPE_CHECKING:
    import torch

    from nola_codec.training.task import TaskSettings, TaskTuner

require_torch("nola_codec.integrations.task_text")

BATCH = 8
"""Rows in a batch by default."""
TOKENS = 512
"""The most tokens of a row that are used."""
HELD_OUT, VALIDATION = 96, 48
"""The most rows that are set aside to report on (a tenth of the file), and to validate on (a twentieth)."""
_LEAST = 16
_MOST = 1 << 20
"""The least and the most rows of a file."""


@accepts_urls("base", "source", "data", "held_out")
def text_tuner(
    base: str | os.PathLike[str],
    source: AnySource,
    data: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    settings: TaskSettings | None = None,
    batch: int = BATCH,
    scale: float | None = None,
    progress: Progress | None = None,
) -> TaskTuner:
    """Make the tuner with which `encode --fit task` trains.

    Args:
        base: A Transformers model directory with its tokenizer. The model is loaded in float32, on the CPU.
        source: The adapter. The biases and whole modules that it carries are put into the model.
        data: A file of rows of the task; see `read_rows`. A twentieth of the rows is set aside to decide when training
            stops. If there is no `held_out`, a tenth is set aside to report on.
        held_out: A file of rows to report on, or None.
        settings: The settings of the training; None is `TaskSettings()`.
        batch: The number of rows in a batch.
        scale: The scaling of an adapter that does not say it, as in `encode`.
        progress: Called as (stage, done, total), or None.

    Raises:
        EncodeError: ``base-model``, ``rows`` (the files), ``task-data`` (too few rows), ``task-form``.
    """
    from nola_codec.training.task import TaskData, TaskTuner

    require_trainable(source, scale)
    rows = read_rows(data, _MOST)
    if len(rows) < _LEAST:
        raise EncodeError(f"expected at least {_LEAST} rows, found {len(rows)}", code="task-data", where=str(data))
    # Files are often sorted, so their last rows would not represent the others.
    random.Random(0).shuffle(rows)
    if held_out is None:
        count = min(HELD_OUT, len(rows) // 10 + 1)
        kept, rows = rows[:count], rows[count:]
    else:
        kept = read_rows(held_out, HELD_OUT)
    count = min(VALIDATION, len(rows) // 20 + 1)
    chosen, rows = rows[:count], rows[count:]
    if progress is not None:
        progress("loading the base model", 0, 0)
    model, tokenizer = load_causal(Path(base))
    use_plain_attention(model)
    load_carried_tensors(model, source, scale)

    fill = padding_token(tokenizer)

    def tokenized(own: Sequence[Row]) -> list[TokenizedRow]:
        return [tokenize(tokenizer, row, TOKENS) for row in own]

    task = TaskData(
        train=[make_batch(own, fill) for own in similar_lengths(tokenized(rows), batch, seed=0)],
        validation=measured_batches(tokenized(chosen), fill),
        held_out=measured_batches(tokenized(kept), fill),
        logits_fn=ScoredLogits(),
        unit="nats a token",
        rows=len(kept),
        identity=f"{Path(base).resolve()} {batch} {hashlib.sha256(repr((rows, chosen, kept)).encode()).hexdigest()}",
    )
    return TaskTuner(model, task, settings, progress)


def require_trainable(source: AnySource, scale: float | None) -> None:
    """Refuse an adapter that no task can train, before a model is loaded.

    Raises:
        EncodeError: ``task-form``: DoRA, or a method that is coded by its own numbers; ``task-data``: all deltas are
            zero.
    """
    adapter = read(source, scale=scale)
    dialect = dialect_of(adapter)
    magnitudes = [key for key in adapter.raw if dialect.is_magnitude(key) or ".lora_magnitude_vector" in key]
    reason = dialect.coding_rules(adapter).objectives_reason
    if magnitudes:
        reason = "DoRA cannot be trained on a task"
    if reason:
        where = magnitudes[0] if magnitudes else ""
        raise EncodeError(f"{reason}; leave --fit task out, and its data", code="task-form", where=where)
    if adapter.modules and not any(module.lora_B.any() and module.lora_A.any() for module in adapter.modules):
        message = "all deltas of the adapter are zero, as before a training, so nothing can be learned from it"
        raise EncodeError(message, code="task-data")


def load_carried_tensors(model: torch.nn.Module, source: AnySource, scale: float | None) -> None:
    """Put the tensors that an adapter carries besides its factors into the model.

    Raises:
        EncodeError: ``task-form``: a tensor that the model has no place for.
    """
    import torch

    from nola_codec.decoder.torch_raw import to_torch

    adapter = read(source, scale=scale)
    own = dict(model.named_parameters())
    for key, tensor in adapter.raw.items():
        path = module_path(key)
        if path not in own or tuple(own[path].shape) != tensor.shape:
            raise EncodeError("the base model has no such parameter", code="task-form", where=key)
        with torch.no_grad():
            own[path].copy_(to_torch(tensor))
