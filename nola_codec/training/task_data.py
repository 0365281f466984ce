"""The data of a training on a task, and its settings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import functional

from nola_codec.errors import EncodeError, mismatch
from nola_codec.training.task_distance import Distance, Divergence

LossFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, int]]
"""``loss_fn(model, batch)`` returns the loss summed over all scored items, and the number of scored items."""
LogitsFn = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]
"""``logits_fn(model, batch)`` returns the logits of the scored items (scored, classes), and their labels, int64
(scored,)."""
OutputsFn = Callable[[torch.nn.Module, Any], torch.Tensor]
"""``outputs_fn(model, batch)`` returns the outputs (items, ...) that are compared with those of the adapter."""
Against = Literal["labels", "adapter", "both"]
Precision = Literal["auto", "float32", "bfloat16"]

_RATE = 0.03
"""The learning rate for coefficients, in files of few of them."""
_RATE_NUMBERS = 350_000
"""The number of coefficients beyond which the rate falls."""


@dataclass(frozen=True)
class TaskData:
    """The data of a task, and the functions that score a model on it.

    Attributes:
        train: Batches to train on.
        validation: Batches whose loss decides when training stops, and which step is the best.
        held_out: Batches that are only used to report a loss.
        loss_fn: The loss; see `LossFn`. None is the cross-entropy of `logits_fn`.
        logits_fn: The logits; see `LogitsFn`.
        outputs_fn: The outputs that are matched with those of the adapter; None is the logits of `logits_fn`.
        distance: The distance of two outputs.
        measured: The loss of `validation` and `held_out`: ``labels`` for the loss, ``adapter`` for the distance to the
            adapter's outputs. The adapter itself then has the loss 0.
        unit: The unit of the loss.
        rows: The number of rows in `held_out`, for the report.
        identity: A name of the data and the model. Training does not resume from a checkpoint with another one.
        description: Sentences that say where the data come from, for the report; empty if the user gave them.
        are_of_task: False if the batches are not the task's, such as texts that a model writes from nothing. They can
            teach coefficients, but what a component is worth on them says little about the task, so the weights alone
            decide which components are kept.
    """

    train: Sequence[Any]
    validation: Sequence[Any]
    held_out: Sequence[Any]
    loss_fn: LossFn | None = None
    logits_fn: LogitsFn | None = None
    outputs_fn: OutputsFn | None = None
    distance: Distance = field(default_factory=Divergence)
    measured: Literal["labels", "adapter"] = "labels"
    unit: str = "nats"
    rows: int = 0
    identity: str = ""
    description: str = ""
    are_of_task: bool = True

    def choose_against(self) -> Against:
        """Return what is trained against by default: all that the functions allow; see `TaskSettings.against`."""
        if self.logits_fn is not None or (self.loss_fn is not None and self.outputs_fn is not None):
            return "both"
        return "adapter" if self.loss_fn is None else "labels"

    def check(self, against: Against) -> None:
        """Raise EncodeError ``task-data`` if there are no batches, or no function for what is asked."""
        for name in ("train", "validation", "held_out"):
            if not len(getattr(self, name)):
                raise EncodeError(f"no batches in {name}", code="task-data")
        uses_labels = against != "adapter" or self.measured == "labels"
        if uses_labels and self.loss_fn is None and self.logits_fn is None:
            raise EncodeError("neither loss_fn nor logits_fn is given", code="task-data")
        uses_adapter = against != "labels" or self.measured == "adapter"
        if uses_adapter and self.logits_fn is None and self.outputs_fn is None:
            raise EncodeError("matching the adapter's outputs needs logits_fn or outputs_fn", code="task-data")

    def loss(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        """Return the loss summed over the scored items of a batch, and the number of these items."""
        if self.loss_fn is not None:
            return self.loss_fn(model, batch)
        assert self.logits_fn is not None
        logits, labels = self.logits_fn(model, batch)
        return functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)

    def outputs(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the outputs that are matched with those of the adapter, (items, ...)."""
        if self.outputs_fn is not None:
            return self.outputs_fn(model, batch)
        assert self.logits_fn is not None
        return self.logits_fn(model, batch)[0]


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the training.

    Attributes:
        against: The loss that is minimized: ``labels`` for the loss of `TaskData`; ``adapter`` for the distance to the
            outputs of the original adapter, for logits the Kullback-Leibler divergence; ``both`` for the mean of the
            two. None is ``both`` where the data have the functions for it, since what the adapter predicts says more
            than the labels alone, and keeps more of the task (docs/experiments/e2e.md).
        steps: The most steps, with one batch each. The learning rate falls to zero along a cosine.
        learning_rate: Adam's learning rate for coefficients, which have unit variance; None is `default_rate`.
        size_rate: Adam's learning rate for the logarithms of the sizes of components.
        every: The number of steps between two validations.
        patience: The number of validations in a row without a better loss after which training stops.
        seed: The seed of the order of batches.
        checkpoint: A file that is written at every validation. If it exists, training resumes from it. The caller
            removes it.
        precision: The precision of the training passes of a float32 model: ``bfloat16``, ``float32``, or ``auto`` for
            bfloat16 where the processor or the device multiplies it faster. Losses are always measured in float32.
        worth_batches: The number of training batches by which components are weighed before the plan is made
            (`task_worth`); 0 plans by the weights alone, and so do data that are not the task's.
        teacher_bytes: The memory that the kept outputs of the adapter may take. Outputs beyond it are computed again
            at every step.
    """

    against: Against | None = None
    steps: int = 150
    learning_rate: float | None = None
    size_rate: float = 0.01
    every: int = 25
    patience: int = 3
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    precision: Precision = "auto"
    worth_batches: int = 12
    teacher_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.against not in (None, "labels", "adapter", "both"):
            raise EncodeError(mismatch("against", "labels, adapter or both", repr(self.against)), code="option")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise EncodeError(mismatch("precision", "auto, float32 or bfloat16", repr(self.precision)), code="option")
        for name in ("steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise EncodeError(mismatch(name, "a positive number", getattr(self, name)), code="option")
        for name in ("learning_rate", "size_rate"):
            value = getattr(self, name)
            if not (value is None and name == "learning_rate") and not 0 < value < math.inf:
                raise EncodeError(mismatch(name, "a positive number", value), code="option")
        for name in ("worth_batches", "teacher_bytes"):
            if getattr(self, name) < 0:
                raise EncodeError(mismatch(name, "0 or a positive number", getattr(self, name)), code="option")

    def uses_bfloat16(self, model: torch.nn.Module) -> bool:
        """Return True if the training passes of a model run under autocast to bfloat16."""
        first = next(model.parameters())
        if first.dtype != torch.float32 or self.precision == "float32":
            return False
        return self.precision == "bfloat16" or _multiplies_bfloat16(first.device)


def default_rate(numbers: int) -> float:
    """Return the learning rate for so many coefficients.

    A step of Adam moves each of n coefficients by about the rate, and all of them together by rate * sqrt(n). Beyond
    350,000 coefficients, some 10 KB, the rate falls so that a step keeps its length: files of 50 KB then end nearer to
    what they are trained for (docs/experiments/e2e.md).
    """
    return _RATE * min(1.0, math.sqrt(_RATE_NUMBERS / numbers))


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return True if a device has instructions that multiply matrices of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    found = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check is not None and check() for check in found)
