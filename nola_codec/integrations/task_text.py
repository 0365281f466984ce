"""Tune on a task of text: a causal language model of Transformers, and the rows of a file."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import AnySource, read
from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import EncodeError, require_torch
from nola_codec.integrations.calibration_data import Row, read_rows, tokenize
from nola_codec.integrations.causal import load_causal
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
Batch = dict[str, "torch.Tensor"]


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
        EncodeError: ``calibration-model``, ``calibration`` (the files), ``task-data`` (too few rows), ``task-form``.
    """
    from nola_codec.training.task import TaskData, TaskTuner

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
    _load_carried_tensors(model, source, scale)

    def batches(own: Sequence[Row], size: int) -> list[Batch]:
        return [_batch(tokenizer, own[start : start + size]) for start in range(0, len(own), size)]

    task = TaskData(
        train=batches(rows, batch),
        validation=batches(_sort_by_length(chosen), 16),
        held_out=batches(_sort_by_length(kept), 16),
        logits_fn=_Logits(),
        unit="nats a token",
        rows=len(kept),
        identity=f"{Path(base).resolve()} {batch} {hashlib.sha256(repr((rows, chosen, kept)).encode()).hexdigest()}",
    )
    return TaskTuner(model, task, settings, progress)


def _sort_by_length(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by length, the shortest first, since batches of similar lengths need less padding."""
    return sorted(rows, key=lambda row: len(row.prompt) + len(row.completion))


def _batch(tokenizer: Any, rows: Sequence[Row]) -> Batch:
    """Return input_ids, attention_mask and labels of rows, (rows, length) each; labels of unscored tokens are -100."""
    import torch

    each = [tokenize(tokenizer, row, TOKENS) for row in rows]
    length = max(len(ids) for ids, _ in each)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    made = {
        "input_ids": torch.full((len(rows), length), fill),
        "attention_mask": torch.zeros((len(rows), length), dtype=torch.int64),
        "labels": torch.full((len(rows), length), -100),
    }
    for index, (ids, prompt) in enumerate(each):
        tokens = torch.tensor(list(ids))
        made["input_ids"][index, : len(ids)] = tokens
        made["attention_mask"][index, : len(ids)] = 1
        made["labels"][index, prompt : len(ids)] = tokens[prompt:]
    return made


class _Logits:
    """Computes the logits of the scored positions, and their labels.

    If a model is only a body and a head, the head is run on the scored positions alone, which saves much time. Some
    models also scale or cap their logits, so the first batch is run both ways to find out.
    """

    def __init__(self) -> None:
        self._plain: bool | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (scored, vocabulary) and the labels, int64 (scored,)."""
        import torch

        device = next(model.parameters()).device
        labels = batch["labels"][:, 1:].to(device)
        scored = labels != -100
        inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": batch["attention_mask"].to(device)}
        if self._plain is None:
            with torch.no_grad():
                short = {name: tensor[:1] for name, tensor in inputs.items()}
                whole = model(**short, use_cache=False).logits
                parts = _body_and_head(model)
                self._plain = parts is not None and bool(
                    torch.allclose(parts[1](parts[0](**short, use_cache=False).last_hidden_state), whole, atol=1e-4)
                )
        parts = _body_and_head(model) if self._plain else None
        if parts is None:
            return model(**inputs, use_cache=False).logits[:, :-1][scored], labels[scored]
        hidden = parts[0](**inputs, use_cache=False).last_hidden_state[:, :-1]
        return parts[1](hidden[scored]), labels[scored]


def _body_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = getattr(model, getattr(model, "base_model_prefix", "") or " ", None)
    return None if head is None or body is None else (body, head)


def _load_carried_tensors(model: torch.nn.Module, source: AnySource, scale: float | None) -> None:
    """Put the tensors that an adapter carries besides its factors into the model.

    Raises:
        EncodeError: ``task-form``: DoRA, or a tensor that the model has no place for.
    """
    import torch

    from nola_codec.decoder.torch_raw import to_torch

    adapter = read(source, scale=scale)
    own = dict(model.named_parameters())
    for key, tensor in adapter.raw.items():
        path = module_path(key)
        if "lora_magnitude_vector" in key:
            raise EncodeError("DoRA cannot be trained on a task", code="task-form", where=key)
        if path not in own or tuple(own[path].shape) != tensor.shape:
            raise EncodeError("the base model has no such parameter", code="task-form", where=key)
        with torch.no_grad():
            own[path].copy_(to_torch(tensor))
